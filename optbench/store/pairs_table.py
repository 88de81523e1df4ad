"""The table `pairs`, which compares solutions. It has its own key columns, because each row involves two trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from optbench.plan import PairedSolutions, TrialPair
from optbench.store.columns import codes, numbers
from optbench.store.tables import arrow_fields, versioned_schema

NAME = "pairs"
NOT_COMPARED = "the comparison failed"
"""Start of the notes of pairs that have no result and that a resumed run compares again."""


@dataclass(frozen=True)
class PairRow:
    """One metric that compares two solutions with the same initial weights; an undefined value is null, with a note."""

    trial_a: str
    """Id of the first trial."""
    trial_b: str
    """Id of the second trial; for the kind `null`, the control."""
    experiment: str
    """Experiment of both trials."""
    model: str
    """Model of both trials."""
    optimizer_a: str
    """Optimizer of `trial_a`, as in `trials`."""
    variant_a: str
    """Variant of `trial_a`."""
    optimizer_b: str
    """Optimizer of `trial_b`."""
    variant_b: str
    """Variant of `trial_b`."""
    seed: int
    """Seed of both trials."""
    kind: str
    """`pair`: two optimizers or variants; `null`: a trial and its control, which differ only in data order."""
    metric: str
    """A metric of the kind `pair`."""
    value: float | None
    """Value of the metric; null if undefined."""
    note: str | None
    """Why the value is undefined."""

    @staticmethod
    def of(pair: TrialPair, metric: str, value: float | None, note: str | None) -> PairRow:
        a, b = pair.a, pair.b
        sides = (a.optimizer, a.variant, b.optimizer, b.variant)
        return PairRow(a.id, b.id, a.experiment, a.model, *sides, a.seed, pair.kind, metric, value, note)


SCHEMA: pa.Schema = versioned_schema(arrow_fields(PairRow))


def pairs_table(rows: Sequence[PairRow]) -> pa.Table:
    """Return the rows as a table, in the given order."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(PairRow)}
    return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True)
class PairValue:
    """The value of a metric that compares two solutions, NaN if undefined. note: why it is undefined, or None."""

    value: float
    note: str | None


def pair_values(table: pa.Table) -> dict[str, dict[frozenset[str], PairValue]]:
    """Return the values in a table of pairs: metric -> ids of the two trials -> value."""
    if not len(table):  # Arrow would import pandas to join zero chunks
        return {}
    (a, ids_a), (b, ids_b), (metric, metrics) = (codes(table[name]) for name in ("trial_a", "trial_b", "metric"))
    found: dict[str, dict[frozenset[str], PairValue]] = {name: {} for name in metrics}
    values, notes = numbers(table["value"]).tolist(), table["note"].to_pylist()
    for i, j, k, value, note in zip(a.tolist(), b.tolist(), metric.tolist(), values, notes, strict=True):
        found[metrics[k]][frozenset((ids_a[i], ids_b[j]))] = PairValue(value, note)
    return found


def settled_pairs(table: pa.Table) -> set[tuple[str, str]]:
    """Return the pairs of trial ids that need no further comparison."""
    rows = zip(*(table[name].to_pylist() for name in ("trial_a", "trial_b", "note")), strict=True)
    found: dict[tuple[str, str], bool] = {}
    for a, b, note in rows:
        found[a, b] = found.get((a, b), True) and not (note or "").startswith(NOT_COMPARED)
    return {pair for pair, good in found.items() if good}


def is_settled(comparison: PairedSolutions, settled: set[tuple[str, str]]) -> bool:
    """Return whether `settled`, as returned by `settled_pairs`, contains all pairs of a comparison."""
    return all((pair.a.id, pair.b.id) in settled for pair in comparison.pairs)
