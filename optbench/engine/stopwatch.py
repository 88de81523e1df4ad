"""A stopwatch for repeated work on a device."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Sums the seconds between `start` and `stop`.

    CUDA devices work asynchronously, so times are recorded as events on the device and read after a synchronisation.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._seconds = 0.0
        self._started = 0.0
        self._marks: list[torch.cuda.Event] = []
        self._spare: list[torch.cuda.Event] = []

    def start(self) -> None:
        if self._on_device:
            self._mark()
        else:
            self._started = time.perf_counter()

    def stop(self) -> None:
        if self._on_device:
            self._mark()
        else:
            self._seconds += time.perf_counter() - self._started

    def read(self) -> float:
        """Return the seconds summed since the last call; the device must have finished its work."""
        seconds, self._seconds = self._seconds, 0.0
        for start, stop in zip(self._marks[::2], self._marks[1::2], strict=True):
            seconds += start.elapsed_time(stop) / 1000
        self._spare += self._marks
        self._marks = []
        return seconds

    def _mark(self) -> None:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)
