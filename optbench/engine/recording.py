"""Work that is the same every time, recorded once and replayed: a CUDA graph, in which no kernel waits for Python.

A small network leaves a GPU idle while Python says, kernel by kernel, what is next. A recording repeats the kernels of
one call on the same memory, so it is right only for work whose every number is on the device: what Python counts
stands still in it. Who offers work to be recorded promises that; and the promise is checked, once for each recording.
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
"""Calls work, so that what it does is recorded and perhaps done, and returns what does the same again."""
WARM_UP = 3
"""Calls before the recording: state that is made at the first step, buffers, libraries' own preparations."""
NO_MEMORY = "not enough memory"


@dataclass(frozen=True)
class Recordings:
    """Whether and how a cohort's work is recorded."""

    record: Recorder | None
    """None to record nothing."""
    refused: dict[str, str] = field(default_factory=dict)
    """By the name of work that might have been recorded, why it is done as it is: for the cohort, once and for all."""


class Recorded(Generic[T]):
    """Work on tensors that stay where they are, called again and again; after a few calls a recording is replayed.

    A recording is believed if, from the same numbers, it comes to the same bits as the work itself; otherwise, and
    where it cannot be made, the work is done as before, and `Recordings.refused` says why. What is returned is the
    work's own answer of its last call that was no replay.
    """

    def __init__(self, name: str, recordings: Recordings) -> None:
        self._name = name
        self._recordings = recordings
        self._calls = 0
        self._replay: Callable[[], None] | None = None
        self._answer: T

    def __call__(self, work: Callable[[], T], tensors: Callable[[], Sequence[Tensor]]) -> T:
        """Do the work, one way or the other.

        work: always the same; handed over at every call, as to keep it would keep its owner, and all that it has on
        the device, alive beyond its time. tensors: everything that the work changes and anybody reads later.
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
        """Do the work once more, and see whether a recording of it comes to the same."""
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
            reason = "a replay gave other numbers"
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
        if answer != self._answer:  # such as what an optimizer raised in being recorded
            raise RuntimeError(f"when recorded it answered {answer!r}")

    def _refuse(self, reason: str) -> None:
        self._recordings.refused[self._name] = reason


def recorder(device: torch.device) -> Recorder | None:
    """How work is recorded on a device; None where it is not."""
    return functools.partial(record_cuda, device) if device.type == "cuda" else None


def record_cuda(device: torch.device, work: Callable[[], object]) -> Callable[[], None]:
    """Work as a CUDA graph; it is recorded without being done.

    Raises:
        RuntimeError: something in it cannot be recorded, such as waiting for the device.
    """
    graph = torch.cuda.CUDAGraph()
    here, side, pool = torch.cuda.current_stream(device), _side_stream(device), _pool(device).id
    side.wait_stream(here)
    # Not `torch.cuda.graph`, which empties the cache of the allocator every time: a run makes hundreds of recordings.
    with torch.cuda.stream(side), _no_collection():
        graph.capture_begin(pool)  # type: ignore[arg-type]  # torch gives the same pair two types
        try:
            work()
            graph.capture_end()
        except BaseException:
            with contextlib.suppress(Exception):  # which says only that there was another error before
                graph.capture_end()
            with contextlib.suppress(Exception):  # older versions leave the allocator believing that it is recorded
                torch._C._cuda_endAllocateToPool(side.device_index, pool)
            raise
    here.wait_stream(side)
    return graph.replay


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where everything is recorded, and nothing else happens: the default stream cannot be, and a library's work space,
    which belongs to a stream, must not be taken from under recordings that use it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # of torch


@functools.cache
def _pool(device: torch.device) -> torch.cuda.MemPool:
    """The memory of what is passing in all recordings. Nothing in it outlives a replay, and no two replays are at once,
    so they may share it; no other code is given any of it."""
    with torch.cuda.device(device):
        return torch.cuda.MemPool()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A collection that happens to destroy something on the device would end up in the recording."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@torch.no_grad()
def _copies(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """None where memory does not hold them."""
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
    """Whether all are equal, NaN included; the device is asked once."""
    same = [(a == b) | ((a != a) & (b != b)) for a, b in zip(tensors, others, strict=True)]
    return bool(torch.stack([each.all() for each in same]).all())
