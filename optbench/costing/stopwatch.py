"""A timer for the parts of a step.

Parts are marked as regions. The time of a region excludes that of the regions nested in it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import torch

from optbench.optimizers.regions import Region

Clock = Literal["processor", "wall", "device"]
NAMES = ("gradient", "statistics", "roots", "update")


class RegionTimer:
    """Timer of the regions marked with `optbench.optimizers.regions` or `torch.profiler.record_function`.

    clock: `processor` (CPU time of all threads of this process), `wall` or `device` (events on a CUDA device, which is
        synchronised once per step).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inside: list[str] = []
        self._marks: list[tuple[str, Any]] = []

    @contextlib.contextmanager
    def step(self) -> Iterator[dict[str, float]]:
        """Time a `with` block; once it ends, the yielded mapping holds the seconds spent in each part, by name."""
        found = dict.fromkeys(NAMES, 0.0)
        self._inside, self._marks = ["update"], []
        with self._watching():
            self._mark("")
            yield found
            self._mark("update")
        if self._clock == "device":
            torch.cuda.synchronize()
        spent: Counter[str] = Counter()
        for (_, start), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            spent[name] += start.elapsed_time(end) / 1000 if self._clock == "device" else end - start
        found.update(spent)

    def enter(self, name: str) -> None:
        """Enter the region `name`."""
        self._mark(self._inside[-1])
        self._inside.append(name)

    def leave(self) -> None:
        """Leave the current region."""
        self._mark(self._inside.pop())

    @contextlib.contextmanager
    def gradient(self) -> Iterator[None]:
        """Count the time of the block as time spent on the gradient."""
        self.enter("gradient")
        try:
            yield
        finally:
            self.leave()

    def _mark(self, name: str) -> None:
        if self._clock == "device":
            mark: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            mark.record()
        else:
            mark = time.process_time() if self._clock == "processor" else time.perf_counter()
        self._marks.append((name, mark))

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        profiled = torch.autograd.profiler.record_function
        begin, end = profiled.__enter__, profiled.__exit__
        watch = self

        def enter(self: Any) -> Any:
            if self.name in NAMES:
                watch.enter(self.name)
            return begin(self)  # type: ignore[no-untyped-call]

        def leave(self: Any, *error: Any) -> Any:
            found = end(self, *error)
            if self.name in NAMES:
                watch.leave()
            return found

        profiled.__enter__, profiled.__exit__ = enter, leave  # type: ignore[method-assign]
        Region.watch = self
        try:
            yield
        finally:
            Region.watch = None
            profiled.__enter__, profiled.__exit__ = begin, end  # type: ignore[method-assign]
