"""Pairs of trials whose solutions are compared, grouped into units of work."""

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
    """Two trials with the same seed and initial weights. In a `null` pair, `b` is a control of the same arm as `a`."""

    a: Trial
    b: Trial
    kind: PairKind


@dataclass(frozen=True)
class PairedSolutions:
    """All trial pairs of one experiment, model and seed, compared together because they share intermediate results."""

    experiment: str
    model: str
    seed: int
    pairs: tuple[TrialPair, ...]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The distinct trials in these pairs."""
        return tuple({trial.id: trial for pair in self.pairs for trial in (pair.a, pair.b)}.values())

    @property
    def id(self) -> str:
        """Stable id of these pairs, valid as a file name: a readable label and a digest."""
        text = "\n".join(f"{pair.a.id} {pair.b.id}" for pair in self.pairs)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{label(('pairs', self.experiment, self.model), '.')}.{digest}"


def comparisons(suite: Suite, all_trials: Sequence[Trial]) -> list[PairedSolutions]:
    """Return the comparisons requested by `pairs` in the suite's experiments, in trial order.

    Each comparison has the unordered pairs of arms, followed by the null pairs. An arm is an optimizer with one of its
    variants. If `against` is set, a pair of arms is included only if at least one of their optimizers is in `against`.
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
