"""Each trial's fresh-network counterpart, which trains a new network on each task."""

from __future__ import annotations

import json
from collections.abc import Iterable

from optbench.plan.trials import Trial

FRESH = "fresh-network"
_Key = tuple[str, ...]


def fresh_networks(trials: Iterable[Trial]) -> dict[str, str]:
    """Map the id of each trial to the id of its fresh-network counterpart; leave out trials that have none.

    A counterpart has the same experiment, model, seed and data order as the trial, and the trial's optimizer, with the
    same settings, as the base of `fresh-network`. A trial whose optimizer is a wrapper that takes no steps (`l2-init`,
    `shrink-and-perturb`, `rank-penalty`) may have no such counterpart. In this case, the base can also be the innermost
    optimizer, which takes the steps. A fresh-network trial is its own counterpart. If several counterparts match, the
    first is used.
    """
    listed = list(trials)
    bases: dict[_Key, str] = {}
    for trial in listed:
        if FRESH in trial.around:
            bases.setdefault(_key(trial, wrapped=True), trial.id)
    found = {}
    for trial in listed if bases else ():
        own = trial.id if FRESH in trial.around else bases.get(_key(trial, wrapped=True))
        if own or (own := bases.get(_key(trial, wrapped=False))):
            found[trial.id] = own
    return found


def _key(trial: Trial, *, wrapped: bool) -> _Key:
    """Return a key that is equal for trials that differ only in `fresh-network` and in names.

    wrapped: True to include the wrappers around the optimizer that takes the steps, in any order.
    """
    around = {
        name: {key: value for key, value in settings.items() if key != "base"}
        for name, settings in trial.around.items()
        if wrapped and name != FRESH
    }
    place = (trial.experiment, trial.model, str(trial.seed), str(trial.order))
    # Compared as text, because 1, 1.0 and True are equal in Python but may have different effects in an optimizer.
    return (*place, json.dumps([trial.stepping[0], dict(trial.settings), around], sort_keys=True))
