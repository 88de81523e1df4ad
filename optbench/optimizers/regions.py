"""Named parts of a step, timed by `optbench cost`; without a watch they do nothing."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Receives the beginning and end of regions, which may be nested."""

    def enter(self, name: str) -> None: ...

    def leave(self) -> None: ...


class Region:
    """A part of an optimizer's step: `with ROOTS: ...`. Without a watch it costs a fraction of a microsecond."""

    watch: Watch | None = None
    """The watch of the whole process."""

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
"""Roots, inverses or bases of the statistics, and checks whether they are due."""
