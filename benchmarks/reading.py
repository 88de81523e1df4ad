"""Time `report` and `compare` from a cold start, on a real run and on a generated one.

    python benchmarks/reading.py [RUN] [--rounds 5] [--only TEXT] [--against PYTHON]

The generated run has 2,000 trials and 1,000,000 accuracy rows. The aims are 1.5 s for a finished run of ordinary size,
3 s for its page with figures, and 5 s for the large run. Every command is a separate process, and the commands are
interleaved over the rounds. The script prints median [min, max] of wall-clock and processor seconds; processor
seconds are less affected by other processes.

RUN is a run of any suite, such as runs/continual-...; without it, only the large run is read. --only selects commands
whose names contain this text. --against is the Python interpreter of an environment with another version of optbench;
its commands alternate with those of this version.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optbench.metrics import METRICS_VERSION
from optbench.plan import Trial, complete, trials
from optbench.store.tables import SCHEMA_VERSION, TABLES, TrialRow, arrow_schema, arrow_table
from optbench.suite import dump_suite, load_suite, suite_hash

SUITE = """
name: large
seeds: 20
optimizers:
  sgd: {target: sgd, lr: {log: [1.0e-3, 1.0], points: 25}}
  adam: {target: adam, lr: {log: [1.0e-5, 1.0e-2], points: 25}}
experiments:
  permuted:
    tasks: {kind: permuted, count: 22}
    models: {small: {kind: mlp, hidden: [50]}, wide: {kind: mlp, hidden: [100]}}
"""
TASKS = 22
METRICS = ("effective_rank", "class_cosine_mean", "hoyer", "near_zero_share", "dormant_0.025", "participation_ratio")
SPECTRUM = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = make_large(Path(folder) / "runs" / "large")
        twin = large.with_name("twin")
        shutil.copytree(large, twin)
        commands = {
            "large: report": ["report", large],
            "large: report, json": ["report", large, "--format", "json"],
            "large: compare with a copy": ["compare", large, twin],
        }
        if options.run is not None:
            optimizers = list(dict.fromkeys(_column(options.run, "trials", "optimizer")))
            pair = [f"{options.run}:{name}" for name in (optimizers[0], optimizers[-1])]
            commands |= {
                "RUN: report": ["report", options.run],
                "RUN: report, markdown": ["report", options.run, "--format", "markdown"],
                "RUN: report, html": ["report", options.run, "--format", "html"],
                f"RUN: compare {optimizers[0]} {optimizers[-1]}": ["compare", *pair],
            }
        pythons = {"": sys.executable} | ({" (against)": options.against} if options.against else {})
        chosen = {
            # -P: import the optbench installed for the interpreter, not the one in the current folder.
            f"{name}{which}": [str(python), "-P", "-m", "optbench", *map(str, words)]
            for name, words in commands.items()
            if options.only in name
            for which, python in pythons.items()
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for _ in range(options.rounds):
            for name, command in chosen.items():
                times[name].append(timed(command))
        for name, found in times.items():
            print(f"{name:38s} {spread([one[0] for one in found])} s, processor {spread([one[1] for one in found])} s")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} [{min(values):.2f}, {max(values):.2f}]"


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command in a separate process; return its wall-clock and processor seconds."""
    started, used = time.perf_counter(), _processor()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode or not done.stdout:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
    return seconds, _processor() - used


def _processor() -> float:
    used = os.times()
    return used.children_user + used.children_system


def make_large(path: Path) -> Path:
    """Write a run with 2,000 trials of 22 tasks and 1,012,000 accuracy rows, and with spectra and metrics."""
    path.mkdir(parents=True)
    source = path.parent.parent / "large.yaml"
    source.write_text(SUITE, encoding="utf-8")
    suite = complete(load_suite(source))
    planned = trials(suite)
    (path / "suite.yaml").write_text(dump_suite(suite), encoding="utf-8")
    record = {
        "schema_version": SCHEMA_VERSION,
        "run": "large",
        "suite": "large",
        "suite_hash": suite_hash(suite),
        "metrics_version": METRICS_VERSION,
        "status": "complete",
        "seeds": suite.seeds,
        "command": [],
        "provenance": {"device": "cpu"},
    }
    (path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    rng = np.random.default_rng(0)
    for name, table in make_tables(planned, rng).items():
        pq.write_table(table, path / f"{name}.parquet", compression="zstd")
    rows = pq.read_metadata(path / "accuracy.parquet").num_rows
    print(f"made: {len(planned)} trials, {rows} accuracy rows")
    return path


def make_tables(planned: list[Trial], rng: np.random.Generator) -> dict[str, pa.Table]:
    after, task = (grid.ravel() for grid in np.meshgrid(np.arange(TASKS + 1), np.arange(1, TASKS + 1), indexing="ij"))
    cells = len(after)
    row = TrialRow("ok", None, None, 100, 100, 1000, "cpu", "{}", "", 1.0, 0.5, 8000, None, 0, None)
    made = {name: arrow_schema(row_type).empty_table() for name, row_type in TABLES.items()}
    starts = [TrialRow(**{**vars(row), "init_hash": f"{trial.model}-{trial.seed}"}) for trial in planned]
    made["trials"] = arrow_table(TrialRow, list(zip(planned, starts, strict=True)))
    made["accuracy"] = long_table(
        "accuracy",
        planned,
        cells,
        {
            "after_task": np.tile(after, len(planned)),
            "task": np.tile(task, len(planned)),
            "accuracy": rng.random(cells * len(planned)),
            "examples": np.full(cells * len(planned), 1000),
        },
    )
    times = TASKS + 1
    lines = len(METRICS) * times
    made["metrics"] = long_table(
        "metrics",
        planned,
        lines,
        {
            "after_task": np.tile(np.repeat(np.arange(times), len(METRICS)), len(planned)),
            "metric": np.tile(np.array(METRICS, dtype=object), times * len(planned)),
            "value": rng.random(lines * len(planned)),
        },
    )
    made["spectra"] = long_table(
        "spectra",
        planned,
        SPECTRUM,
        {
            "after_task": np.full(SPECTRUM * len(planned), TASKS),
            "layer": np.full(SPECTRUM * len(planned), "features", dtype=object),
            "index": np.tile(np.arange(SPECTRUM), len(planned)),
            "eigenvalue": np.tile(np.sort(rng.random(SPECTRUM))[::-1], len(planned)),
        },
    )
    return made


def long_table(name: str, planned: list[Trial], lines: int, columns: dict[str, np.ndarray]) -> pa.Table:
    """Return a table with `lines` rows per trial; columns that are not given are null."""
    schema = arrow_schema(TABLES[name])
    keys = {
        "trial": [t.id for t in planned],
        "experiment": [t.experiment for t in planned],
        "model": [t.model for t in planned],
        "optimizer": [t.optimizer for t in planned],
        "variant": [t.variant for t in planned],
        "seed": [t.seed for t in planned],
        "stage": [t.stage for t in planned],
    }
    index = pa.array(np.repeat(np.arange(len(planned)), lines))
    count = lines * len(planned)
    arrays = []
    for field in schema:
        if field.name in keys:
            arrays.append(pa.array(keys[field.name], field.type).take(index))
        elif field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        else:
            arrays.append(pa.nulls(count, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(run: Path, table: str, column: str) -> list[str]:
    values: list[str] = pq.read_table(run / f"{table}.parquet", columns=[column])[column].to_pylist()
    return values


if __name__ == "__main__":
    main()
