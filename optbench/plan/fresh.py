"""Which trial shows what another would learn without any past: fresh networks on the same tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable

from optbench.plan.trials import Trial

FRESH = "fresh-network"
_Key = tuple[str, ...]


def fresh_networks(trials: Iterable[Trial]) -> dict[str, str]:
    """Return the id of the trial with fresh networks for each trial that has one, by its id.

    It is on the same experiment, model, seed and data order, and its base is the trial's own optimizer with the same
    settings. Where there is none and the trial's optimizer is a wrapper that takes no steps (`l2-init`,
    `shrink-and-perturb`, `rank-penalty`), its base is the innermost optimizer: the one that takes the steps. Trials of
    fresh networks have themselves. Of several alike the first counts.
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
    """What two trials have in common whose optimizers are the same but for fresh networks.

    wrapped: with the wrappers around what takes the steps, in whatever order they stand.
    """
    around = {
        name: {key: value for key, value in settings.items() if key != "base"}
        for name, settings in trial.around.items()
        if wrapped and name != FRESH
    }
    place = (trial.experiment, trial.model, str(trial.seed), str(trial.order))
    # As text: 1, 1.0 and true are equal to Python, and may not be to an optimizer.
    return (*place, json.dumps([trial.stepping[0], dict(trial.settings), around], sort_keys=True))
