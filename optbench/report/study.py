"""The interface through which studies extend reports on runs; `optbench.studies` lists the studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from optbench.report.document import Block, Record
from optbench.report.spread import SpreadText
from optbench.stats.results import Results

if TYPE_CHECKING:
    from optbench.report.figures import Figure

Found = TypeVar("Found")
ResultKey: TypeAlias = tuple[str, str, str, str, str, str]
"""Run, experiment, model, optimizer, variant and metric of a result."""


@dataclass(frozen=True)
class FigureKind:
    """A named kind of figure, and the function that makes such figures.

    make: function that returns the figures, possibly none, that can be drawn from the given runs.
    """

    name: str
    make: Callable[[Sequence[Results]], list[Figure]]


@dataclass(frozen=True)
class Study(Generic[Found]):
    """An analysis that some suites request in addition to metrics.

    name: the key of the study's records in JSON.
    find: function that returns the study's results for a run; empty if the suite does not request the study.
    blocks: function that returns the study's part of a report, given the results of all runs, whether there are several
        runs, and the function that formats a spread.
    records: function that returns the study's records in JSON.
    lines: function that returns the study's records in csv; None if there are none.
    columns: the columns that the study adds to csv.
    beside: function that returns the values of `columns` to add to the record of each result, by result; None if there
        are none.
    leads: whether the study's part of a report precedes the results.
    provenance: function that returns sentences on how the settings of a run were chosen; None if there are none.
    """

    name: str
    find: Callable[[Results], Sequence[Found]]
    blocks: Callable[[Sequence[Found], bool, SpreadText], Iterable[Block]]
    records: Callable[[Sequence[Found]], Iterable[Record]]
    lines: Callable[[Sequence[Found]], Iterable[Record]] | None = None
    columns: tuple[str, ...] = ()
    beside: Callable[[Sequence[Found]], Mapping[ResultKey, Record]] | None = None
    figures: tuple[FigureKind, ...] = ()
    leads: bool = False
    provenance: Callable[[Results], Iterable[str]] | None = None
