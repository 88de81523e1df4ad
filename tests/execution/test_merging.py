"""`optbench merge` combines runs on different seeds into a run on all seeds, or refuses with the reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from optbench.cli import main
from tests.conftest import assert_same_tables

pytestmark = pytest.mark.usefixtures("_train_here")

MINE = """
import torch

class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
"""
SUITE = """
name: four
seeds: 4
optimizers: {mine: {target: ./mine.py:Mine}, adam: {target: adam}}
experiments:
  small:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [10]}}
    protocol: {max_epochs: 1, batch_size: 32, train_examples: 400, validation_examples: 200, test_examples: 200}
    pairs: {controls: [adam]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs on seeds 0 and 2, on seeds 1 and 3, and on all four seeds."""
    folder = tmp_path_factory.mktemp("merged")
    (folder / "mine.py").write_text(MINE)
    (folder / "four.yaml").write_text(SUITE)
    for name, seeds in (("even", "0,2"), ("odd", "1,3"), ("all", "0,1,2,3")):
        words = ["run", str(folder / "four.yaml"), "--seeds", seeds, "--name", name, "--runs-dir", str(folder)]
        assert main([*words, "--device", "cpu", "--quiet"]) == 0
    return folder


def test_the_merged_run_equals_the_run_on_all_seeds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "odd", "even", "--runs-dir", str(folder), "--name", "made"]) == 0
    assert "made: 8 trials and 4 controls, 4 seeds from 2 runs; optbench report" in capsys.readouterr().err
    made, whole = folder / "made", folder / "all"
    assert_same_tables(made, whole)
    pd.testing.assert_frame_equal(*(pd.read_parquet(run / "pairs.parquet") for run in (made, whole)), check_exact=True)
    assert (made / "suite.yaml").read_text() == (whole / "suite.yaml").read_text()
    records = [json.loads((run / "run.json").read_text()) for run in (made, whole)]
    for key in ("suite_hash", "seeds", "experiments", "status", "metrics_version"):
        assert records[0][key] == records[1][key], key
    assert [part["run"] for part in records[0]["merged"]] == ["odd", "even"]
    weights = [{file.name: file.read_bytes() for file in (run / "checkpoints").iterdir()} for run in (made, whole)]
    assert weights[0] == weights[1]
    # The merged run is an ordinary run: it can be reported, resumed (which trains nothing) and merged again.
    assert main(["report", str(made), "--format", "markdown"]) == 0
    assert "- merged from odd (2 seeds), even (2 seeds)" in capsys.readouterr().out
    assert main(["run", "--resume", str(made), "--quiet"]) == 0
    assert_same_tables(made, whole)


ALTERED = {
    "other": ("suite.yaml", "batch_size: 32", "batch_size: 16"),
    "cut": ("run.json", '"complete"', '"interrupted"'),
    "edited": ("run.json", r'"source_hash": "\w+"', '"source_hash": "0"'),
    "newer": ("run.json", r'"torch": "[^"]+",\n    "cpu"', '"torch": "9.9",\n    "cpu"'),
}
"""Changes to copies of the run `odd`, by name: file, pattern and replacement."""


def altered(folder: Path, name: str) -> None:
    if not (folder / name).exists():
        shutil.copytree(folder / "odd", folder / name)
        file, old, new = ALTERED[name]
        before = (folder / name / file).read_text()
        after = re.sub(old, new, before, count=1)
        assert after != before
        (folder / name / file).write_text(after)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["even"], r"merge: expected at least two runs, got 1 run"),
        (["even", "even"], r"even: expected each seed in one run, got seed 0 also in \S*even$"),
        (["even", "other"], r"other: expected the suite of \S*even with other seeds, got another .*batch_size"),
        (["even", "cut"], r"cut: expected a complete run, got one that is interrupted; --resume it first"),
        (["even", "edited"], r"edited: expected the same ./mine.py as for \S*even, got another version"),
        (["even", "newer"], r"newer: expected torch \d\S*, as for \S*even, got torch 9.9; .*--force"),
        (["even", "nothing"], r"no run 'nothing'"),
    ],
)
def test_runs_that_cannot_be_merged_are_refused_and_no_run_is_created(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    for name in ALTERED.keys() & set(words):
        altered(folder, name)
    runs = sorted(path.name for path in folder.iterdir())
    assert main(["merge", *words, "--runs-dir", str(folder), "--name", "never"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == runs


def test_force_merges_runs_of_different_versions(folder: Path) -> None:
    altered(folder, "newer")
    assert main(["merge", "even", "newer", "--runs-dir", str(folder), "--name", "forced", "--force"]) == 0
    parts = json.loads((folder / "forced/run.json").read_text())["merged"]
    assert parts[1]["provenance"]["torch"] == "9.9"
