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

from optbench.engine.faults import of_the_machine

T = TypeVar("T")
Recorder = Callable[[Callable[[], object]], Callable[[], None]]
"""Calls work, so that what it does is recorded and perhaps done, and returns what does the same again."""
WARM_UP = 3
"""Calls before the recording: state that is made at the first step, buffers, libraries' own preparations."""


@dataclass(frozen=True)
class Recordings:
    """Whether and how a cohort's work is recorded."""

    record: Recorder | None
    """None to record nothing."""
    refused: set[str] = field(default_factory=set)
    """Why some of the work is done as it is, although it might have been recorded."""


class Recorded(Generic[T]):
    """Work on tensors that stay where they are, called again and again; after a few calls a recording is replayed.

    A recording is believed if, from the same numbers, it comes to the same bits as the work itself; otherwise, and
    where it cannot be made, the work is done as before, and `Recordings.refused` says why. What is returned is the
    work's own answer of its last call that was no replay.
    """

    def __init__(self, work: Callable[[], T], tensors: Callable[[], Sequence[Tensor]], recordings: Recordings) -> None:
        """tensors: everything that the work changes and anybody reads later."""
        self._work = work
        self._tensors = tensors
        self._record = recordings.record
        self._refused = recordings.refused
        self._calls = 0
        self._replay: Callable[[], None] | None = None
        self._answer: T

    def __call__(self) -> T:
        if self._replay is not None:
            self._replay()
            return self._answer
        if self._record is None or self._calls < WARM_UP:
            self._calls += 1
            self._answer = self._work()
        else:
            self._attempt(self._record)
        return self._answer

    def _attempt(self, record: Recorder) -> None:
        """Do the work once more, and see whether a recording of it comes to the same."""
        tensors = [tensor.detach() for tensor in self._tensors()]
        before = [tensor.clone() for tensor in tensors]
        self._answer = self._work()
        after = [tensor.clone() for tensor in tensors]
        _put(tensors, before)
        try:
            replay = record(self._work)
            _put(tensors, before)
            replay()
            if _same_bits(tensors, after):
                self._replay = replay
                return
            reason = "a replay came to other numbers"
        except Exception as error:
            if of_the_machine(error):
                raise
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        self._record = None
        self._refused.add(reason)
        _put(tensors, after)


def recorder(device: torch.device) -> Recorder | None:
    """How work is recorded on a device; None where it is not."""
    return functools.partial(record_cuda, device) if device.type == "cuda" else None


def record_cuda(device: torch.device, work: Callable[[], object]) -> Callable[[], None]:
    """Work as a CUDA graph; it is recorded without being done.

    Raises:
        RuntimeError: something in it cannot be recorded, such as waiting for the device.
    """
    graph = torch.cuda.CUDAGraph()
    here = torch.cuda.current_stream(device)
    # The default stream cannot be recorded; a worker process has another (`device.settle`).
    stream = _side_stream(device) if here == torch.cuda.default_stream(device) else here
    stream.wait_stream(here)
    # Not `torch.cuda.graph`, which empties the cache of the allocator every time: a run makes hundreds of recordings.
    with torch.cuda.stream(stream), _no_collection():
        graph.capture_begin()
        try:
            work()
        except BaseException:
            with contextlib.suppress(Exception):  # which says only that there was another error before
                graph.capture_end()
            raise
        graph.capture_end()
    here.wait_stream(stream)
    return graph.replay


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: a library keeps its work space for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # of torch


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
def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _same_bits(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether all are equal, NaN included; the device is asked once."""
    same = [(a == b) | ((a != a) & (b != b)) for a, b in zip(tensors, others, strict=True)]
    return bool(torch.stack([each.all() for each in same]).all())
