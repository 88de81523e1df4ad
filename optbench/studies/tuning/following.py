"""Chosen values, and the values of hyper-parameters that follow them, as in `{of: adam.lr, times: 4}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optbench.studies.tuning.space import Key, Searches, Tie
from optbench.studies.tuning.statistics import TunedOptimizer
from optbench.suite.variants import KeyPath

Chosen = dict[Key, dict[KeyPath, Any]]


def chosen_dimensions(searches: Searches, found: Sequence[TunedOptimizer]) -> Chosen:
    """Return the chosen value of every searched hyper-parameter."""
    searched = {search.key: search for search in searches.searches}
    chosen: Chosen = {}
    for tuned in found:
        if tuned.chosen is not None:
            key = tuned.experiment, tuned.optimizer
            chosen[key] = {d.path: tuned.chosen.hyperparameters[d.name] for d in searched[key].dimensions}
    return chosen


def followed_values(ties: Sequence[Tie], chosen: Mapping[Key, Mapping[KeyPath, Any]]) -> dict[KeyPath, Any]:
    """Return the values of the hyper-parameters that follow a chosen value, by path."""
    values: dict[KeyPath, Any] = {}
    for tie in ties:
        if (tie.experiment, tie.of) in chosen:
            value = chosen[tie.experiment, tie.of][tie.of_path]
            values[tie.path] = value if tie.times == 1.0 else float(f"{value * tie.times:.12g}")
    return values
