"""Every optimizer known by name trains the shipped smoke suite, with its own defaults, to a result row."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from optbench.cli import main
from optbench.optimizers.registry import OPTIMIZERS


def train_them_all(tmp_path: Path, *words: str) -> list[dict[str, object]]:
    """The rows of the trials of one run of `smoke` with every registered optimizer under its name with a +."""
    added = [word for name in OPTIMIZERS for word in ("--optimizer", f"all+{name}={name}")]
    assert main(["run", "smoke", "--runs-dir", str(tmp_path), "--name", "all", "--seeds", "1", *added, *words]) == 0
    rows: list[dict[str, object]] = pq.ParquetFile(tmp_path / "all" / "trials.parquet").read().to_pylist()  # type: ignore[no-untyped-call]
    return [row for row in rows if str(row["optimizer"]).startswith("all+")]


def test_every_entry_trains_the_smoke_suite_at_a_few_steps(tmp_path: Path) -> None:
    """Of each task of one experiment: the whole suite is the slow test below."""
    few = ["--experiment", "permuted-mnist", "--set", "experiments.permuted-mnist.protocol.max_steps=3"]
    rows = train_them_all(tmp_path, *few)
    assert len(rows) == len(OPTIMIZERS)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["steps"] for row in rows} == {3 * 3}


@pytest.mark.slow
def test_every_entry_trains_the_smoke_suite(tmp_path: Path) -> None:
    rows = train_them_all(tmp_path)
    assert len(rows) == 2 * len(OPTIMIZERS)
    assert {row["status"] for row in rows} == {"ok"}
