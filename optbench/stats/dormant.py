"""Networks with many dormant units. Such units lower a rank regardless of what the active units represent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optbench.counting import count, number_ranges
from optbench.metrics import METRICS
from optbench.metrics.metric import base_name

DORMANT = "dormant_0.025"
"""The metric that is checked: the fraction of dormant units among the final features, pooled over tasks, with τ = .025
(Sokar et al. 2023)."""
MANY = 0.05
"""The fraction of dormant units above which a network is listed."""


@dataclass(frozen=True)
class ManyDormant:
    """The trials of one arm with many dormant units, i.e. with a dormant fraction above `MANY`.

    trials: the number of trials that are `ok`.
    seeds, shares: the seed and the dormant fraction of each trial with many dormant units, in seed order.
    """

    trials: int
    seeds: tuple[int, ...]
    shares: tuple[float, ...]

    @staticmethod
    def of(shares: Sequence[tuple[int, float]]) -> ManyDormant | None:
        """Return the trials with many dormant units; None if there are none.

        shares: the seed and the dormant fraction (NaN if not measured) of each trial that is `ok`.
        """
        many = [(seed, share) for seed, share in shares if share > MANY]
        seeds, found = tuple(seed for seed, _ in many), tuple(share for _, share in many)
        return ManyDormant(len(shares), seeds, found) if many else None

    def __str__(self) -> str:
        shares = " to ".join(dict.fromkeys(f"{100 * share:.0f}%" for share in (min(self.shares), max(self.shares))))
        seeds = f", {'seed' if len(self.seeds) == 1 else 'seeds'} {number_ranges(self.seeds)}"
        which = seeds if len(self.seeds) < self.trials else ""
        return f"{len(self.seeds)} of {count(self.trials, 'trial')}{which}: {shares}"


def is_rank(metric: str) -> bool:
    """Return whether a metric, with or without settings, is a rank of the representation."""
    known = METRICS.get(base_name(metric))
    return known is not None and known.subject == "rank" and known.kind == "features" and not known.is_size
