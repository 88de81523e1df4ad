"""Examples in docstrings give the output they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

from optbench.plan import Trial
from optbench.store.tables import Row
from tests.written_runs import rows_of, write_run

PACKAGE = Path(__file__).parents[1] / "optbench"
MODULES = [
    ".".join(("optbench", *file.relative_to(PACKAGE).with_suffix("").parts))
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]
SUITE = """
name: seen
seeds: 7
optimizers: {sgd: {target: sgd, lr: 0.1}, adam: {target: adam}}
experiments:
  digits: {tasks: {kind: permuted, count: 2}, models: {mlp: {kind: mlp}}}
"""


@pytest.fixture
def latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a run, found as `latest`, in which Adam forgets twice as much as SGD."""

    def rows(trial: Trial) -> list[Row]:
        kept = 0.8 if trial.optimizer == "sgd" else 0.7
        return rows_of("ok", [[0.1, 0.1], [0.9, 0.1], [kept, 0.9]], {}, init_hash=str(trial.seed))

    write_run(tmp_path, SUITE, rows)
    monkeypatch.chdir(tmp_path)


def test_main_modules_have_examples() -> None:
    for part in ("interface.run", "interface.results", "metrics.own", "metrics.rank", "optimizers.shampoo"):
        assert f"optbench.{part}" in MODULES


@pytest.mark.usefixtures("latest")
@pytest.mark.parametrize("name", MODULES)
def test_examples_give_the_output_they_show(name: str) -> None:
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
