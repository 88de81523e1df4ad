"""Repeated work, recorded once and replayed as a CUDA graph, so that no kernel waits for Python.

With a small network, a GPU is idle while Python launches kernels. A recording repeats the kernels of one call on the
same memory. Counters in Python do not advance in a replay, so callers must ensure that all numbers that change are on
the device. Each recording is checked once.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from optbench.engine.faults import is_out_of_memory, of_the_machine

T = TypeVar("T")
Recorder = Callable[[Callable[[], object]], Callable[[], None]]
"""recorder(work): calls `work` to record it, possibly executing it, and returns a function that repeats the work."""
WARM_UP = 3
"""Number of calls before recording, during which state, buffers and libraries are initialised."""
NO_MEMORY = "not enough memory"


@dataclass(frozen=True)
class Recordings:
    """The recorder of a cohort's repeated work, and the reasons why some of the work is not recorded."""

    record: Recorder | None
    """The function that records work; None to record nothing."""
    refused: dict[str, str] = field(default_factory=dict)
    """Reasons why some of the work is not recorded, keyed by the name of the work."""


class Recorded(Generic[T]):
    """Repeated work on tensors with fixed memory, replayed from a recording after a few calls.

    A recording is used only if it gives the same bits as the work itself. Otherwise, or if recording fails, the work is
    still executed at every call, and `Recordings.refused` holds the reason. The return value is that of the last actual
    execution.
    """

    def __init__(self, name: str, recordings: Recordings) -> None:
        self._name = name
        self._recordings = recordings
        self._calls = 0
        self._replay: Callable[[], None] | None = None
        self._answer: T

    def __call__(self, work: Callable[[], T], tensors: Callable[[], Sequence[Tensor]]) -> T:
        """Execute or replay the work.

        work: the function that does the work, the same at every call. It is not stored, because a reference to it would
            keep its owner's device memory alive.
        tensors: returns all tensors that the work changes and that are read later.
        """
        record = self._recordings.record
        if self._replay is not None:
            self._replay()
        elif record is None or self._calls < WARM_UP or self._name in self._recordings.refused:
            self._calls += 1
            self._answer = work()
        else:
            self._attempt(record, work, [tensor.detach() for tensor in tensors()])
        return self._answer

    def _attempt(self, record: Recorder, work: Callable[[], T], tensors: list[Tensor]) -> None:
        """Execute the work, record it, and check that a replay gives the same result."""
        before = _copies(tensors)
        self._answer = work()
        after = _copies(tensors) if before is not None else None
        if before is None or after is None:
            self._refuse(NO_MEMORY)
            return
        try:
            _put(tensors, before)
            replay = record(functools.partial(self._once_more, work))
            _put(tensors, before)
            replay()
            if _equal(tensors, after):
                self._replay = replay
                return
            reason = "a replay gave different numbers"
        except Exception as error:
            if is_out_of_memory(error):
                reason = NO_MEMORY
            elif of_the_machine(error):
                raise
            else:
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        _put(tensors, after)
        self._refuse(reason)

    def _once_more(self, work: Callable[[], T]) -> None:
        answer = work()
        if answer != self._answer:  # e.g. an optimizer raised an exception during recording
            raise RuntimeError(f"expected the recorded call to return {self._answer!r}, got {answer!r}")

    def _refuse(self, reason: str) -> None:
        self._recordings.refused[self._name] = reason


def recorder(device: torch.device) -> Recorder | None:
    """Return a function that records work on a device; None if work on this device cannot be recorded."""
    return functools.partial(record_cuda, device) if device.type == "cuda" else None


def record_cuda(device: torch.device, work: Callable[[], object]) -> Callable[[], None]:
    """Record work as a CUDA graph, without executing it, and return a function that replays the graph.

    Raises:
        RuntimeError: the work contains something that cannot be recorded, such as a synchronisation.
    """
    graph = torch.cuda.CUDAGraph()
    here, side, pool = torch.cuda.current_stream(device), _side_stream(device), _pool(device).id
    side.wait_stream(here)
    # A run makes hundreds of recordings, and `torch.cuda.graph` would empty the allocator's cache for each of them.
    with torch.cuda.stream(side), _no_collection():
        graph.capture_begin(pool)  # type: ignore[arg-type]  # torch gives the same pair two types
        try:
            work()
            graph.capture_end()
        except BaseException:
            with contextlib.suppress(Exception):  # it would only report that there was an earlier error
                graph.capture_end()
            with contextlib.suppress(Exception):  # older PyTorch leaves the allocator in recording mode
                torch._C._cuda_endAllocateToPool(side.device_index, pool)
            raise
    here.wait_stream(side)
    return graph.replay


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream used only for recordings.

    The default stream cannot be recorded. A library's workspace belongs to a stream and must outlive the recordings
    that use it, so one stream is kept for all recordings."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # of torch


@functools.cache
def _pool(device: torch.device) -> torch.cuda.MemPool:
    """Return the memory pool for temporaries of all recordings.

    All recordings can share the pool, because nothing in it outlives a replay and replays never overlap. No other code
    uses the pool."""
    with torch.cuda.device(device):
        return torch.cuda.MemPool()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection in the block, where destroying a device object would become part of the recording."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@torch.no_grad()
def _copies(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """Return copies of tensors; None if memory is insufficient."""
    try:
        return [tensor.clone() for tensor in tensors]
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise


@torch.no_grad()
def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _equal(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether all pairs of tensors are equal, treating all NaN as equal, with one synchronisation."""
    same = [(a == b) | ((a != a) & (b != b)) for a, b in zip(tensors, others, strict=True)]
    return bool(torch.stack([each.all() for each in same]).all())
