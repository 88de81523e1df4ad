"""Trials that may not be reproducible bit for bit have a note, and the report counts them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from optbench.cli import main
from optbench.engine.determinism import alerts, ask_for_determinism
from optbench.store import read_run
from tests.conftest import run_file

pytestmark = pytest.mark.usefixtures("_train_here")

# According to PyTorch, `put_` without `accumulate` has no deterministic implementation on any device.
PLUGIN = """
import torch

class Puts(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                flat = torch.arange(p.numel())
                p.data.put_(flat, (p.data - group["lr"] * p.grad).flatten())
"""
SUITE = """
name: puts
seeds: 2
optimizers:
  puts: {target: ./puts.py:Puts, lr: 0.1}
  sgd: {target: sgd, lr: 0.1}
experiments:
  small:
    tasks: {kind: permuted, count: 1}
    models: {net: {kind: mlp, hidden: [5]}}
    protocol: {batch_size: 32, max_steps: 3, train_examples: 100, validation_examples: 100, test_examples: 100}
    metrics: []
"""
NOTE = "put_ is not deterministic on cpu"


@pytest.fixture
def _as_in_a_worker() -> Iterator[None]:
    benchmark = torch.backends.cudnn.benchmark
    ask_for_determinism()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("_as_in_a_worker")
def test_a_nondeterministic_operation_is_noted_without_failing_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "puts.py").write_text(PLUGIN)
    path = run_file(tmp_path, SUITE)
    found = read_run(path).table("trials").select(["optimizer", "status", "note"]).to_pylist()
    assert {row["status"] for row in found} == {"ok"}
    for row in found:
        assert (NOTE in (row["note"] or "")) == (row["optimizer"] == "puts")
    capsys.readouterr()
    assert main(["report", str(path)]) == 0
    assert re.search(rf"puts: 2 of its trials: .*{NOTE}", " ".join(capsys.readouterr().out.split()))


@pytest.mark.usefixtures("_as_in_a_worker")
def test_alerts_are_caught_every_time_and_other_warnings_pass() -> None:
    zeros, places, values = torch.zeros(4), torch.tensor([0, 1]), torch.ones(2)
    for _ in range(2):
        with alerts() as operations:
            zeros.put_(places, values)
            zeros.put_(places, values)
        assert operations == {"put_"}
    with alerts() as operations:
        zeros.index_put_((places,), values)
    assert operations == set()
    with alerts(), pytest.warns(RuntimeWarning, match="of another kind"):
        warnings.warn("of another kind", RuntimeWarning, stacklevel=1)
