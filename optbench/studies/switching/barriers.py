"""Loss barriers between the solutions of two arms that a run has compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optbench.stats.arms import Arm
from optbench.store import RunDirectory
from optbench.store.columns import codes, numbers

KIND, METRIC = "pair", "loss_barrier"


def loss_barriers(run: RunDirectory) -> dict[frozenset[str], float]:
    """Return the loss barrier between the solutions of every two compared trials; NaN where undefined.

    Empty for a run without comparisons.

    Raises:
        StoreError: the table of pairs is unreadable.
    """
    table = run.pairs
    if not len(table):  # Arrow would import pandas to join zero chunks
        return {}
    names = ("trial_a", "trial_b", "kind", "metric")
    (a, ids_a), (b, ids_b), (kind, kinds), (metric, metrics) = (codes(table[name]) for name in names)
    if KIND not in kinds or METRIC not in metrics:
        return {}
    wanted = np.flatnonzero((kind == kinds.index(KIND)) & (metric == metrics.index(METRIC)))
    found = zip(a[wanted].tolist(), b[wanted].tolist(), numbers(table["value"])[wanted].tolist(), strict=True)
    return {frozenset((ids_a[i], ids_b[j])): value for i, j, value in found}


def barriers_between(known: Mapping[frozenset[str], float], a: Arm, b: Arm | None) -> tuple[float, ...]:
    """Return the barrier between two arms on every seed on which both are `ok` and it was measured, in seed order.

    Empty between an arm and itself.
    """
    if b is None or a is b:
        return ()
    both = [seed for seed in a.trials if a.status(seed) == b.status(seed) == "ok"]
    pairs = [frozenset((a.trials[seed].id, b.trials[seed].id)) for seed in both]
    return tuple(known[pair] for pair in pairs if pair in known)
