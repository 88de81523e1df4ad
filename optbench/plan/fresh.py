"""Match each trial with its fresh-network counterpart, which starts each task with a new network."""

from __future__ import annotations

import json
from collections.abc import Iterable

from optbench.plan.trials import Trial

FRESH = "fresh-network"
_Key = tuple[str, ...]


def fresh_networks(trials: Iterable[Trial]) -> dict[str, str]:
    """Map the id of each trial to the id of its counterpart with fresh networks, if there is one.

    The counterpart has the same experiment, model, seed and data order, and its base is the trial's optimizer with the
    same settings. If there is none and the trial's optimizer is a wrapper that takes no steps (`l2-init`,
    `shrink-and-perturb`, `rank-penalty`), its base is the innermost optimizer, the one that takes the steps. A trial
    with fresh networks is its own counterpart. If several match, the first is used.
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
    """Return a key that is equal for two trials of a seed if their optimizers differ only in fresh networks.

    wrapped: include the wrappers around the optimizer that takes the steps, in any order.
    """
    around = {
        name: {key: value for key, value in settings.items() if key != "base"}
        for name, settings in trial.around.items()
        if wrapped and name != FRESH
    }
    place = (trial.experiment, trial.model, str(trial.seed), str(trial.order))
    # Compared as text: 1, 1.0 and true are equal in Python but may differ for an optimizer.
    return (*place, json.dumps([trial.stepping[0], dict(trial.settings), around], sort_keys=True))
