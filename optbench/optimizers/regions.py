"""Names for the parts of a step, so that `optbench cost` can time them; without a watch they do nothing."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Is told when a region begins and ends; regions may be nested."""

    def enter(self, name: str) -> None: ...

    def leave(self) -> None: ...


class Region:
    """A part of an optimizer's step: `with ROOTS: ...`. Without a profiler it costs a fraction of a microsecond."""

    watch: Watch | None = None
    """Of the whole process."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        if Region.watch is not None:
            Region.watch.enter(self.name)

    def __exit__(self, *_: object) -> None:
        if Region.watch is not None:
            Region.watch.leave()


STATISTICS = Region("statistics")
"""Sums of products of gradients or of signals."""
ROOTS = Region("roots")
"""Roots, inverses or bases of the statistics, and whether they are due."""
