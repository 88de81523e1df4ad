"""`optbench init` writes a plug-in and a suite that run unchanged."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from optbench.cli import main
from tests.refusals import refusal


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lab"


@pytest.mark.usefixtures("_train_here")
def test_the_files_of_init_run_unchanged(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "lab"]) == 0
    said = capsys.readouterr().out
    commands = [line.split()[1:] for line in said.splitlines() if line.startswith("  optbench")]
    assert commands == [["check", "./lab/mine.py:Mine"], ["run", "lab/suite.yaml"]]
    # Fewer examples than in the template, to save time.
    small = ["--set", "experiments.permuted-mnist.protocol={train_examples: 300, test_examples: 200, max_epochs: 1}"]
    assert main([*commands[1], "--name", "r", "--seeds", "1", "--quiet", *small]) == 0
    trials = pd.read_parquet("runs/r/trials.parquet")
    assert set(trials["optimizer"]) == {"sgd", "adamw", "shampoo", "mine"}
    assert set(trials["model"]) == {"small"}
    assert set(trials["status"]) == {"ok"}
    quiet = pd.read_parquet("runs/r/metrics.parquet").query("metric == 'quiet_units'")["value"]
    assert len(quiet) >= 4
    assert quiet.between(0, 1).all()


def test_init_overwrites_nothing(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab.mkdir()
    (lab / "suite.yaml").write_text("mine")
    assert refusal(capsys, lab.parent, "init", lab).startswith(f"{lab}/suite.yaml: this file exists; expected a folder")
    (lab.parent / "file").write_text("")
    assert "file: expected a folder, or a path where one can be created" in refusal(capsys, lab.parent, "init", "file")
    assert "expected a folder" in refusal(capsys, lab.parent, "init", "file/below")


def test_a_file_without_a_name_is_rejected_with_the_names_that_it_defines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path)]) == 0
    file = tmp_path / "mine.py"
    for words in (["check", file], ["run", "smoke", "--optimizer", f"mine={file}", "--dry-run"]):
        said = refusal(capsys, tmp_path, *words)
        assert f"{file}: expected {file}:NAME, a class or function in that file (Mine, Small, quiet_units)" in said
