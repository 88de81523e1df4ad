"""Named parts of an optimizer's step, timed by `optbench cost`. Without a watch, entering a region has no effect."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """An observer that is notified when a region begins and ends; regions can be nested."""

    def enter(self, name: str) -> None: ...

    def leave(self) -> None: ...


class Region:
    """A named part of an optimizer's step, used as `with ROOTS: ...`. Without a watch, it costs under a microsecond."""

    watch: Watch | None = None
    """The watch that all regions in the process notify; None if there is none."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        if Region.watch is not None:
            Region.watch.enter(self.name)

    def __exit__(self, *_: object) -> None:
        if Region.watch is not None:
            Region.watch.leave()


STATISTICS = Region("statistics")
"""The accumulation of products of gradients or, in K-FAC, of layer signals."""
ROOTS = Region("roots")
"""The computation of roots, inverses or bases of the statistics, and the check of whether it is due."""
