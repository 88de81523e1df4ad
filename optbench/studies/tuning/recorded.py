"""Settings recorded in the suite of a tuning run, which a resumed tuning tries again instead of proposing others.

Proposed settings can depend on the version of optbench or Optuna: a widened value can be rounded differently. If a
resumed tuning trained slightly different settings, the finished trials would not be part of the run's suite any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optbench.studies.tuning.samplers import Values
from optbench.studies.tuning.space import Key, Search, Searches, overrides
from optbench.suite import Suite
from optbench.suite.variants import LISTED, listed_settings

Recorded = Mapping[Key, Sequence[Values]]
"""Values of the searched hyper-parameters by experiment and optimizer, in the order tried."""


def recorded_settings(suite: Suite, searches: Searches) -> Recorded:
    """Return the settings that the suite of a tuning run lists for each search."""
    return {search.key: _of(suite, search) for search in searches.searches if search.experiment in suite.experiments}


def _of(suite: Suite, search: Search) -> list[Values]:
    stated = overrides(suite, search.experiment, search.optimizer)
    settings = listed_settings(stated[LISTED]) if LISTED in stated else []
    return [{path: values[path] for path in search.paths} for values in settings if values.keys() >= set(search.paths)]
