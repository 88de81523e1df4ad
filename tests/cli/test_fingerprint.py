"""`optbench fingerprint` as users run it, on a reduced copy of its suite with a panel made for the test."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import optbench
from optbench.cli import main
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.studies.fingerprint import panel, training
from optbench.studies.fingerprint.entry import experiments_of, read_entry
from optbench.studies.fingerprint.panel import Panel
from optbench.suite import load_suite, resolve_suite_path

pytestmark = pytest.mark.usefixtures("_train_here")

SMALL = """
extends: {base}
optimizers: {{adamw: {{target: adamw, lr: 0.01}}, {others}}}
experiments:
  permuted:
    dataset: {{kind: mnist, resize: null}}
    protocol: {{train_examples: 320, test_examples: 100, validation_examples: 100, max_epochs: 3, batch_size: 32}}
    models: {{mlp-100: {{kind: mlp, hidden: [12]}}}}
  pairs:
    dataset: {{kind: mnist, resize: null}}
    protocol: {{train_examples: 320, test_examples: 100, validation_examples: 100, batch_size: 16}}
    models: {{mlp-100-100: {{kind: mlp, hidden: [12]}}}}
  matched:
    dataset: {{kind: mnist, resize: null}}
    protocol: {{train_examples: 320, test_examples: 100, validation_examples: 100, batch_size: 32,
                early_stopping: {{on: train_loss, target: 2.0}}}}
    models: {{mlp-100: {{kind: mlp, hidden: [12]}}}}
  plasticity:
    dataset: {{kind: mnist, resize: null}}
    tasks: {{kind: permuted, count: 2, examples_per_task: 160}}
    protocol: {{train_examples: 320, test_examples: 100, validation_examples: 100}}
    models: {{mlp-100-100: {{kind: mlp, hidden: [12]}}}}
"""
MINE = """
import torch

class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)

class Stuck(Mine):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=1e-9 * lr)

class Still(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Iterator[Path]:
    """Return the working directory, with the shipped suite and panel replaced by reduced ones."""
    folder = tmp_path_factory.mktemp("fingerprint")
    suite = folder / "small.yaml"
    base = resolve_suite_path("fingerprint")
    others = ", ".join(f"{name}: null" for name in load_suite(base).optimizers if name not in ("sgd", "adamw"))
    suite.write_text(SMALL.format(base=base, others=others), encoding="utf-8")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    here = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SUITE", str(suite))
        assert main(["run", str(suite), "--name", "panel", "--quiet"]) == 0
        results = read_results(read_run(folder / "runs" / "panel"))
        entries = tuple(read_entry(results, name) for name in ("sgd", "adamw"))
        version = results.run.record["metrics_version"]
        made = {**results.run.record["provenance"]}
        small = Panel(entries, entries[0].seeds, experiments_of(results.suite), version, made)
        patch.setattr(panel, "shipped", lambda: small)
        yield folder
    os.chdir(here)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["fingerprint", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_copy_of_sgd_at_its_learning_rate_is_identical_to_sgd(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, "./mine.py:Mine", "--set", "lr=0.1", "--name", "copy", "-o", "copy.html", "-o", "copy.json", "--quiet"
    )
    assert code == 0
    assert "Fingerprint of Mine" in out
    assert "It is identical to sgd in all 16 strips." in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    record = json.loads((folder / "copy.json").read_text(encoding="utf-8"))
    assert record["neighbours"][0]["optimizer"] == "sgd"
    assert record["neighbours"][0]["distance"] == 0
    assert {row["sgd_verdict"] for row in record["strips"]} == {"equivalent"}
    assert record["learning_rate_optimum"] is None
    assert (folder / "copy.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    # The fingerprint is shown again from the run, selected by the name of the run or of its optimizer.
    for target in ("copy", "copy:Mine", "latest"):
        again, drawn, _ = run(capsys, target)
        assert (again, drawn) == (0, out)


def test_learning_rates_are_tuned_and_an_interrupted_run_continues(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train(
                training.Wanted("./mine.py:Mine", quick=True), training.Options(name="tuned"), training.View()
            )
    code, out, _ = run(capsys, "--resume", "runs/tuned-tune")
    assert code == 0
    assert "No verdicts: 3 seeds cannot show a difference over 16 strips; 10 can." in " ".join(out.split())
    assert "On permuted, learning accuracy is within 1% of its best over" in " ".join(out.split())
    trials = read_run(folder / "runs" / "tuned-tune").table("trials")
    assert trials.num_rows == 4 * 7
    assert set(trials["seed"].to_pylist()) == {1000}
    assert set(read_run(folder / "runs" / "tuned").table("trials")["seed"].to_pylist()) == {0, 1, 2}


def test_python_gives_the_same_fingerprint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "panel:sgd")
    found = optbench.fingerprint("sgd", run="panel")
    assert found.table["strip"].tolist()[:2] == ["learning_accuracy", "forgetting"]
    assert found.table.shape[0] == 16
    assert found.neighbours["optimizer"][0] == "sgd"
    assert "It is identical to sgd in all 16 strips." in found.words
    assert "<article" in found._repr_html_()
    assert "<script" not in found._repr_html_()
    assert str(found).splitlines()[0] == out.splitlines()[0]
    found.save(folder / "sgd.png")
    assert (folder / "sgd.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(optbench.OptbenchError, match="expected 'optimizer', 'run' or both"):
        optbench.fingerprint()
    with pytest.raises(optbench.OptbenchError, match="seeds: expected seeds of the panel, 0 to 9, got 10"):
        optbench.fingerprint("adam", seeds=11)
    with pytest.raises(optbench.OptbenchError, match=r"run: a finished run .* cannot be combined with seeds"):
        optbench.fingerprint("sgd", run="panel", seeds=3)


def test_python_trains_a_class_that_is_not_in_a_module(folder: Path) -> None:
    class Cell(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 0.5) -> None:
            super().__init__(params, lr=lr)

    found = optbench.fingerprint(Cell, set={"lr": 0.1}, seeds=2, name="cell")
    assert (found.run.id, found.run.status) == ("cell", "complete")
    assert (found.neighbours["optimizer"][0], found.neighbours["distance"][0]) == ("sgd", 0)
    assert found.table["n"].tolist() == [2] * 16
    assert "sgd_verdict" not in found.table
    with pytest.raises(optbench.OptbenchError, match="expected seeds of the panel, 0 to 9, got 10"):
        optbench.fingerprint(Cell, seeds=11)


def test_an_optimizer_without_a_learning_rate_is_trained_untuned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "./mine.py:Still", "--seeds", "1", "--name", "still")
    assert code == 0
    assert "not tuned: Still: it has no learning rate" in err
    assert "too few" not in err, "the page itself says how many seeds its verdicts need"
    assert "It has no learning rate." in out
    said = " ".join(out.split())
    assert "On permuted (three permutations of MNIST), it has not learnt on 1 of 1 seed: its test accuracy" in said


def test_the_page_of_an_optimizer_that_has_not_learnt_names_its_tuning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "./mine.py:Stuck", "--quick", "--seeds", "1", "--name", "stuck")
    assert code == 0
    report = "optbench report runs/stuck-tune"
    said = " ".join(out.split())
    assert f"Its learning rates were tuned on 1 seed; {report} shows what was tried." in said
    assert "Learning rates, tuned on 1 seed: " in said
    assert main(report.split()[1:]) == 0
    assert "lr=0.01" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "fingerprint: expected a TARGET"),
        (["adamm"], "optbench: unknown optimizer 'adamm'; did you mean 'adam'?"),
        (["adam", "-o", "page.htm"], "--output page.htm: unknown suffix 'htm'; did you mean 'html'?"),
        (["adam", "-o", "no/page.html"], "--output no/page.html: there is no directory no"),
        (["adam", "--seeds", "11"], "--seeds: expected seeds of the panel, 0 to 9, got 10"),
        (["adam", "--set", "lr"], "--set lr: expected NAME=VALUE for a hyper-parameter, as in lr=0.001"),
        (["adam", "--set", "rl=0.1"], "--set rl=0.1: unknown hyper-parameter 'rl' of adam; did you mean 'lr'?"),
        (["adam", "--name", "panel"], "this run already exists"),
        (["panel:sdg"], "panel: unknown optimizer 'sdg'; did you mean 'sgd'?"),
        (["panle:sgd"], "panle:sgd: unknown run or module 'panle'; did you mean 'panel:sgd'?"),
        (["panel"], "expected RUN:OPTIMIZER, because the run has several optimizers: sgd, adamw"),
        (
            ["panel:sgd", "--seeds", "3"],
            "panel:sgd: a finished run is drawn as it is; it cannot be combined with --seeds",
        ),
        (["--resume", "panel"], "expected a run NAME-tune started by optbench fingerprint"),
        (["adam", "--resume", "panel"], "TARGET and --resume"),
    ],
)
def test_invalid_commands_are_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_run_of_another_protocol_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = copy.deepcopy(dict(panel.shipped().experiments))
    experiments["experiments"]["pairs"]["protocol"]["batch_size"] = 20
    other = dataclasses.replace(panel.shipped(), experiments=experiments)
    monkeypatch.setattr(panel, "shipped", lambda: other)
    code, out, err = run(capsys, "panel:sgd")
    assert (code, out) == (4, "")
    assert "they differ in experiments.pairs.protocol.batch_size (16, 20)" in err
