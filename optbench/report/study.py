"""What a study adds to the report on runs. `optbench.studies` lists them; reports know none of them by name."""

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
    """A kind of figure. make: those that the data of some runs allow; none is no error."""

    name: str
    make: Callable[[Sequence[Results]], list[Figure]]


@dataclass(frozen=True)
class Study(Generic[Found]):
    """A question that some suites ask beyond their metrics.

    name: the key of its records in JSON.
    find: what a run has of it; nothing where its suite does not ask.
    blocks: its part of a report, from what all runs have; whether there are several runs; how a spread is written.
    leads: whether that part stands before the results.
    records: in JSON, of one run. lines: the same for csv, with `columns`.
    beside: values of `columns` that belong next to a result.
    provenance: sentences on how the settings of a run were chosen.
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
