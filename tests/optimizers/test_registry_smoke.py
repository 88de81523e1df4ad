"""Every registered optimizer trains on the shipped suite `smoke` with its defaults and gives a result row."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from optbench.cli import main
from optbench.optimizers.registry import OPTIMIZERS


def train_them_all(tmp_path: Path, *words: str) -> list[dict[str, object]]:
    """Run `smoke` with every registered optimizer, named with a trailing +; return the rows of the trials."""
    added = [word for name in OPTIMIZERS for word in ("--optimizer", f"all+{name}={name}")]
    assert main(["run", "smoke", "--runs-dir", str(tmp_path), "--name", "all", "--seeds", "1", *added, *words]) == 0
    rows: list[dict[str, object]] = pq.ParquetFile(tmp_path / "all" / "trials.parquet").read().to_pylist()  # type: ignore[no-untyped-call]
    return [row for row in rows if str(row["optimizer"]).startswith("all+")]


def test_every_entry_trains_one_experiment_of_the_smoke_suite_for_a_few_steps(tmp_path: Path) -> None:
    """The slow test below runs the whole suite."""
    place = "experiments.permuted-mnist"
    # 7 x 7 pixels, since some optimizers decompose a matrix with one row per pixel.
    few = {"protocol.max_steps": 3, "tasks.count": 2, "dataset": "{kind: mnist, resize: 7}"}
    words = [word for key, value in few.items() for word in ("--set", f"{place}.{key}={value}")]
    rows = train_them_all(tmp_path, "--experiment", "permuted-mnist", *words)
    assert len(rows) == len(OPTIMIZERS)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["steps"] for row in rows} == {2 * 3}


@pytest.mark.slow
def test_every_entry_trains_the_smoke_suite(tmp_path: Path) -> None:
    rows = train_them_all(tmp_path)
    assert len(rows) == 2 * len(OPTIMIZERS)
    assert {row["status"] for row in rows} == {"ok"}
