"""A small run directory with rows in every table, as received from someone else, and ways to alter its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from optbench.store.pairs_table import PairRow, pairs_table
from optbench.store.parts import write_table
from tests.made_runs import made_run

SUITE = """
name: sent
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam}
  switched: {target: switch, at: [0, 4]}
experiments:
  early:
    tasks: {kind: permuted, count: 2}
    models: {narrow: {kind: mlp, hidden: [10]}}
    twins: [[sgd, adam]]
    pairs: {against: [sgd], controls: [], metrics: [linear_cka, loss_barrier]}
claims:
  first:
    text: Adam is better.
    experiment: early
    metric: average_accuracy
    left: adam
    right: sgd
    expect: higher
    where: {average_accuracy: {above: 0.8}}
    beside: [forgetting]
"""
TABLES = ("trials", "accuracy", "metrics", "spectra", "similarity", "pruning", "sketches", "online", "pairs")
TUNED = (
    SUITE.replace("seeds: 2", "seeds: 2\nstage: tune\ntune: {optimizers: {sgd: {lr: [0.1, 0.2]}}}")
    .replace("lr: 0.1", "lr: [0.1, 0.2]")
    .replace("    pairs:", "    # pairs:")
    .replace("    twins:", "    # twins:")
)


def sent_run(folder: Path, name: str = "sent", suite: str = SUITE) -> Path:
    """Write the run directory `folder/runs/<name>`."""
    results = made_run(folder, suite, name=name)
    if results.suite.experiments["early"].pairs is not None:
        sides = [[t for t in results.trials if t.optimizer == optimizer] for optimizer in ("adam", "sgd")]
        rows = [
            PairRow(
                a.id,
                b.id,
                a.experiment,
                a.model,
                "adam",
                "default",
                "sgd",
                "default",
                a.seed,
                "pair",
                metric,
                0.5,
                None,
            )
            for a, b in zip(*sides, strict=True)
            for metric in ("linear_cka", "loss_barrier")
        ]
        write_table(pairs_table(rows), results.run.path / "pairs.parquet")
    return results.run.path


def copied(run: Path, to: Path) -> Path:
    """Copy the run to `to/runs`."""
    place = to / "runs" / run.name
    shutil.copytree(run, place)
    return place


def change_record(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = run / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    change(record)
    file.write_text(json.dumps(record), encoding="utf-8")


def change_rows(run: Path, table: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Rewrite a table with rows modified in place by `change`, keeping its schema."""
    file = run / f"{table}.parquet"
    found = pq.read_table(file)
    rows = found.to_pylist()
    change(rows)
    write_table(pa.Table.from_pylist(rows, schema=nullable(found.schema)), file)


def change_schema(run: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    file = run / f"{table}.parquet"
    write_table(change(pq.read_table(file)), file)


def nullable(schema: pa.Schema) -> pa.Schema:
    """Return the schema with nulls allowed everywhere, as another program may write it."""
    return pa.schema([field.with_nullable(True) for field in schema], metadata=schema.metadata)


def swap(file: Path, old: str, new: str) -> None:
    """Replace one occurrence of a text in a file."""
    text = file.read_text(encoding="utf-8")
    assert old in text, text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def commands(run: Path) -> dict[str, list[str]]:
    """Return the commands that read a run, by name."""
    other = ["--runs-dir", str(run.parent)]
    return {
        "report": ["report", str(run), "--format", "json"],
        "export": ["export", str(run), "--to", "tensorboard", str(run.parent / "exported")],
        "compare": ["compare", f"{run}:sgd", f"{run}:adam", "--format", "json"],
        "resume": ["run", "--resume", run.name, *other],
        "dry run": ["run", "--resume", run.name, "--dry-run", *other],
        "tune": ["tune", "--resume", run.name, "--dry-run", *other],
    }
