"""Scheduling of comparisons between solutions with the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from optbench.counting import count
from optbench.execution.messages import Compare
from optbench.execution.schedule import Plan
from optbench.metrics import PAIR_METRICS
from optbench.plan import Cohort, PairedSolutions
from optbench.store import RunWriter
from optbench.store.pairs_table import PairRow
from optbench.suite import Suite


class Comparisons:
    """The remaining comparisons, each of which becomes ready when all of its trials have ended."""

    def __init__(self, plan: Plan, writer: RunWriter) -> None:
        self._left = list(plan.comparisons)
        self._ended = set(plan.done)
        self._writer = writer

    def ended(self, cohort: Cohort) -> None:
        """Record that a cohort has ended. Call this after the cohort's results have been written."""
        self._ended |= {trial.id for trial in cohort.trials}

    def ready(self) -> list[Compare]:
        """Return the comparisons that have become ready since the last call."""
        ready = [c for c in self._left if all(trial.id in self._ended for trial in c.trials)]
        if not ready:
            return []
        self._left = [c for c in self._left if c not in ready]
        endings = self._writer.endings()
        return [self._work(comparison, endings) for comparison in ready]

    def _work(self, comparison: PairedSolutions, endings: Mapping[str, tuple[str, str | None]]) -> Compare:
        places, missing = {}, {}
        for trial in comparison.trials:
            status, checkpoint = endings[trial.id]
            place = self._writer.path / checkpoint if checkpoint else None
            if place is not None and place.is_file():
                places[trial.id] = place
            else:
                missing[trial.id] = f"{trial.id}: {status if status != 'ok' else 'its final weights are gone'}"
        return Compare(comparison, places, missing)


def comparison_name(comparison: PairedSolutions) -> str:
    """Describe a comparison, e.g. `small net seed 0: 3 pairs and 1 null`."""
    counts = Counter(pair.kind for pair in comparison.pairs)
    what = f"{count(counts['pair'], 'pair')} and {count(counts['null'], 'null')}"
    return f"{comparison.experiment} {comparison.model} seed {comparison.seed}: {what}"


def unknown_pairs(comparison: PairedSolutions, suite: Suite, note: str) -> list[PairRow]:
    """Return rows without values for solutions that could not be compared. note: the reason."""
    settings = suite.experiments[comparison.experiment].pairs
    names = (settings.metrics if settings else None) or PAIR_METRICS
    return [PairRow.of(pair, name, None, note) for pair in comparison.pairs for name in names]
