"""The metrics that an experiment measures: its listed metrics, and those read by claims about the experiment."""

from __future__ import annotations

from collections.abc import Iterator

from optbench.metrics.catalog import DEFAULT, METRICS
from optbench.metrics.naming import derived_with
from optbench.metrics.own import MetricSettings
from optbench.suite.schema import Suite


def with_readings(suite: Suite) -> Suite:
    """Return the suite with the metrics read by its claims appended to the metrics of its experiments."""
    added = {name: extra for name in suite.experiments if (extra := list(unlisted(suite, name)))}
    if not added:
        return suite
    experiments = dict(suite.experiments)
    for name, extra in added.items():
        listed = experiments[name].metrics
        listed = [MetricSettings(kind=DEFAULT)] if listed is None else listed
        experiments[name] = experiments[name].model_copy(update={"metrics": [*listed, *extra]})
    return suite.model_copy(update={"experiments": experiments})


def unlisted(suite: Suite, experiment: str) -> Iterator[MetricSettings]:
    """Yield each metric that an experiment does not list but measures for the readings of claims."""
    listed = suite.experiments[experiment].metrics
    everything = listed is None or any(entry.kind == DEFAULT for entry in listed)
    known = {entry.name for entry in listed or ()}
    derived = derived_with(known)
    known |= {m.name for m in METRICS.values() if m.kind in derived or (everything and m.default)}
    for claim in suite.claims.values():
        if claim.readings is None or claim.experiment != experiment:
            continue
        for entry in claim.readings.measured or ():
            if entry.name not in known:
                known.add(entry.name)
                yield entry
