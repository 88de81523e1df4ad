"""Named parts of a step, timed by `optbench cost`; without a watch they do nothing."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Receives the beginning and end of regions, which may be nested."""

    def enter(self, name: str) -> None: ...

    def leave(self) -> None: ...


class Region:
    """A named part of an optimizer's step, used as `with ROOTS: ...`; takes less than a microsecond without a watch."""

    watch: Watch | None = None
    """The watch that all regions of the process notify; None for no watch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        if Region.watch is not None:
            Region.watch.enter(self.name)

    def __exit__(self, *_: object) -> None:
        if Region.watch is not None:
            Region.watch.leave()


STATISTICS = Region("statistics")
"""Accumulating products of gradients or of signals."""
ROOTS = Region("roots")
"""Computing roots, inverses or bases of the statistics, and checking whether they are due."""
