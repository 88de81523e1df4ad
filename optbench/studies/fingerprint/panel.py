"""The panel of known optimizers' results, which ships with the package, and checks that a run is comparable with it.

The panel is a Parquet file with one row per optimizer, strip and seed, written by `benchmarks/panel.py`. The schema's
metadata contain everything else about the panel, as JSON under the key `optbench`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optbench.errors import ComparisonError, StoreError, UsageError
from optbench.execution.directory import latest_provenance
from optbench.stats.results import Results
from optbench.store.files import write_atomically
from optbench.studies.fingerprint.entry import Entry, Trials, experiments_of, read_entry
from optbench.studies.fingerprint.strips import EXPERIMENTS, STRIPS
from optbench.studies.fingerprint.width import Width
from optbench.suite.dump import differences

FORMAT = 1
FILE = "panel.parquet"
KEY = b"optbench"
REFERENCES = ("adamw", "sgd")
"""The optimizers of the panel against which every fingerprint is judged."""
STATE, START, LEARNT = "state", "start", "learnt"


@dataclass(frozen=True)
class Panel:
    """The entries of known optimizers, all on the same seeds, and their provenance.

    experiments: the settings that determine the meaning of the values, as returned by `experiments_of`.
    made: the software versions used to make the panel, and the machine on which it was made.
    """

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    experiments: Mapping[str, Any]
    metrics_version: int
    made: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def on(self, seeds: Sequence[int]) -> Panel:
        """Return the panel restricted to these seeds."""
        return replace(self, entries=tuple(entry.on(seeds) for entry in self.entries), seeds=tuple(seeds))


@cache
def shipped() -> Panel:
    """Return the panel that comes with the package."""
    with resources.as_file(resources.files("optbench.studies.fingerprint") / FILE) as path:
        return read(path)


def read(path: Path) -> Panel:
    """Read a panel.

    Raises:
        StoreError: the file does not exist, cannot be read, or has another format.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot read the panel: {error}") from None
    about = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    if about.get("format") != FORMAT:
        raise StoreError(f"{path}: expected a panel of format {FORMAT}, got {about.get('format')}")
    seeds = tuple(about["seeds"])
    columns = table.to_pydict()
    places = {name: i for i, name in enumerate(strip.name for strip in STRIPS)}
    values = {name: np.full((len(STRIPS), len(seeds)), np.nan) for name in about["optimizers"]}
    for name, strip, seed, value in zip(*(columns[c] for c in ("optimizer", "strip", "seed", "value")), strict=True):
        if value is not None:
            values[name][places[strip], seeds.index(seed)] = value
    entries = []
    for name, one in about["optimizers"].items():
        trials = {
            experiment: Trials(
                tuple(kept[STATE]),
                tuple(kept[START]),
                np.array([np.nan if value is None else value for value in kept[LEARNT]], np.float64),
            )
            for experiment, kept in one["trials"].items()
        }
        found = None if one["width"] is None else Width(**one["width"])
        entries.append(Entry(name, one["target"], seeds, values[name], trials, one["settings"], found))
    return Panel(tuple(entries), seeds, about["experiments"], about["metrics_version"], about["made"])


def write(panel: Panel, path: Path) -> None:
    """Write a panel to a file; equal panels result in identical files.

    Raises:
        StoreError: the file cannot be written.
    """
    rows = [
        (entry.name, strip.name, seed, None if np.isnan(value := entry.values[s, i]) else float(value))
        for entry in panel.entries
        for s, strip in enumerate(STRIPS)
        for i, seed in enumerate(panel.seeds)
    ]
    types = {"optimizer": pa.string(), "strip": pa.string(), "seed": pa.int64(), "value": pa.float64()}
    about = {
        "format": FORMAT,
        "seeds": list(panel.seeds),
        "experiments": panel.experiments,
        "metrics_version": panel.metrics_version,
        "made": panel.made,
        "optimizers": {entry.name: _about(entry) for entry in panel.entries},
    }
    schema = pa.schema(list(types.items()), metadata={KEY: json.dumps(about, allow_nan=False)})
    table = pa.table(dict(zip(types, map(list, zip(*rows, strict=True)), strict=True)), schema=schema)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _about(entry: Entry) -> dict[str, Any]:
    trials = {
        name: {
            STATE: one.states,
            START: one.starts,
            LEARNT: [None if np.isnan(value) else float(value) for value in one.learnt],
        }
        for name, one in entry.trials.items()
    }
    wide = None if entry.width is None else asdict(entry.width)
    return {"target": entry.target, "settings": entry.settings, "width": wide, "trials": trials}


def of_runs(found: Sequence[tuple[Results, Results | None]], made: Mapping[str, Any]) -> Panel:
    """Build a panel from runs.

    found: a pair for each optimizer: its run, and the run that chose its learning rates (None if there is none).
    made: the software versions and the machine with which the panel is made.

    Raises:
        UsageError: a run does not have exactly one optimizer.
        ComparisonError: two runs cannot be compared.
    """
    entries = tuple(read_entry(results, None, tuning) for results, tuning in found)
    first = found[0][0]
    panel = Panel(entries, entries[0].seeds, experiments_of(first.suite), _metrics_version(first), dict(made))
    for results, _ in found:
        check(panel, results)
    for entry in entries:
        if entry.seeds != panel.seeds:
            raise ComparisonError(f"{entry.name}: expected seeds {list(panel.seeds)}, got {list(entry.seeds)}")
    return panel


def check(panel: Panel, results: Results) -> None:
    """Raise ComparisonError if the run's values do not have the same meaning as the panel's."""
    run = results.run.id
    if missing := [name for name in EXPERIMENTS if name not in results.suite.experiments]:
        raise ComparisonError(
            f"{run}: expected a run of the suite 'fingerprint', got one without the experiment {missing[0]}"
        )
    if differing := list(differences(experiments_of(results.suite), dict(panel.experiments))):
        raise ComparisonError(
            f"{run} and the panel cannot be compared: they differ in {', '.join(differing[:3])}; "
            "the panel was made with the suite 'fingerprint' as shipped"
        )
    if (version := _metrics_version(results)) != panel.metrics_version:
        raise ComparisonError(
            f"{run} and the panel cannot be compared: their metrics have versions {version} and "
            f"{panel.metrics_version}; train the optimizer again with this version of optbench"
        )


def check_seeds(panel: Panel, seeds: Sequence[int], place: str) -> None:
    """Raise UsageError unless the panel has all of these seeds, since comparisons are made seed by seed.

    place: the beginning of the error message.
    """
    if strange := [seed for seed in seeds if seed not in panel.seeds]:
        raise UsageError(
            f"{place}: expected seeds of the panel, {panel.seeds[0]} to {panel.seeds[-1]}, got {strange[0]}"
        )


def remarks(panel: Panel, results: Results) -> list[str]:
    """Return a sentence for each caveat: a torch version or device different from the panel's, or an incomplete run."""
    mine = latest_provenance(results.run.record)
    found = [
        f"The run used {what} {mine.get(key)}, the panel {panel.made.get(key)}."
        for key, what in (("torch", "torch"), ("device", "device"))
        if mine.get(key) != panel.made.get(key)
    ]
    if results.run.record.get("status") != "complete":
        found.append(f"The run is not complete: {results.run.record.get('status')}.")
    return found


def _metrics_version(results: Results) -> int:
    return int(results.run.record.get("metrics_version", 1))
