"""Which solutions are compared with each other: pairs of trials, and the units in which they are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from optbench.file_names import label
from optbench.plan.trials import Trial
from optbench.suite import Suite

PairKind = Literal["pair", "null"]


@dataclass(frozen=True)
class TrialPair:
    """Two trials with the same seed, hence the same start. Of a `null` the second is the first's control."""

    a: Trial
    b: Trial
    kind: PairKind


@dataclass(frozen=True)
class PairedSolutions:
    """All pairs of one seed on one experiment and model: compared together, since they share what is measured once."""

    experiment: str
    model: str
    seed: int
    pairs: tuple[TrialPair, ...]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that takes part, once."""
        return tuple({trial.id: trial for pair in self.pairs for trial in (pair.a, pair.b)}.values())

    @property
    def id(self) -> str:
        """Stable name of exactly these pairs, fit for a file name: readable words and a digest."""
        text = "\n".join(f"{pair.a.id} {pair.b.id}" for pair in self.pairs)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{label(('pairs', self.experiment, self.model), '.')}.{digest}"


def comparisons(suite: Suite, all_trials: Sequence[Trial]) -> list[PairedSolutions]:
    """What the suite's `pairs` ask for, in the order of its trials: each unordered pair of arms once, then the nulls.

    An arm is an optimizer with one of its variants. A pair has at least one optimizer of `against` in it.
    """
    groups: dict[tuple[str, str, int], list[Trial]] = {}
    for trial in all_trials:
        if suite.experiments[trial.experiment].pairs is not None:
            groups.setdefault((trial.experiment, trial.model, trial.seed), []).append(trial)
    found = []
    for (experiment, model, seed), group in groups.items():
        settings = suite.experiments[experiment].pairs
        assert settings is not None
        against = {trial.optimizer for trial in group} if settings.against is None else set(settings.against)
        arms = [trial for trial in group if not trial.is_control]
        pairs = [TrialPair(a, b, "pair") for a, b in combinations(arms, 2) if {a.optimizer, b.optimizer} & against]
        first = {(trial.optimizer, trial.variant): trial for trial in arms}
        pairs += [TrialPair(first[t.optimizer, t.variant], t, "null") for t in group if t.is_control]
        if pairs:
            found.append(PairedSolutions(experiment, model, seed, tuple(pairs)))
    return found
