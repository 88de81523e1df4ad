"""The documented recipe for pandas, executed literally on a run with controls."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from optbench.cli import main
from optbench.plan import Trial
from optbench.store.tables import Row
from tests.written_runs import rows_of, write_run

PAGE = Path(__file__).parents[2] / "docs" / "run-directory.md"
SUITE = """
name: nulls
seeds: 3
optimizers: {sgd: {target: sgd, lr: 0.1}, adam: {target: adam}}
experiments:
  permuted:
    tasks: {kind: permuted, count: 3}
    models: {small: {kind: mlp, hidden: [10]}, wide: {kind: mlp, hidden: [20]}}
    pairs: {against: [sgd], metrics: [linear_cka]}
"""


def rows(trial: Trial) -> Sequence[Row]:
    """Return rows in which controls end far below their trials."""
    end = 0.1 if trial.is_control else 0.9 + 0.01 * trial.seed
    matrix = [[0.1] * 3, [0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [end, end, end]]
    return rows_of("ok", matrix, {}, init_hash=str(trial.seed))


def result_of(code: str) -> Any:
    """Execute code and return the value of its last expression."""
    *before, last = ast.parse(code).body
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(ast.Module(before, []), PAGE.name, "exec"), names)
    return eval(compile(ast.Expression(last.value), PAGE.name, "eval"), names)


def test_the_recipe_gives_the_means_of_the_report_without_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, SUITE, rows)
    monkeypatch.chdir(tmp_path)
    stages = pd.read_parquet("runs/made/trials.parquet").stage
    assert set(stages) == {"eval", "control"}
    (recipe,) = re.findall(r"```python\n(import pandas.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = result_of(recipe.replace("<id>", "made"))
    assert main(["report", "made", "--format", "csv", "-o", "report.csv"]) == 0
    report = pd.read_csv("report.csv")
    wanted = report[report.metric == "average_accuracy"].set_index(["model", "optimizer"])["mean"]
    assert found.to_dict() == pytest.approx(wanted.to_dict())
    assert found.to_dict() == pytest.approx(dict.fromkeys(wanted.index, 0.91))
