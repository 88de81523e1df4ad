"""Users' text files from the command line to the run directory: trained on, copied, hashed, and used again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from optbench.cli import main
from tests import own_models
from tests.conftest import assert_same_tables
from tests.execution.test_changed_code import interrupted
from tests.refusals import refusal

pytestmark = pytest.mark.usefixtures("_train_here")
SUITE = """
name: own-text
seeds: 2
optimizers:
  sgd: {target: sgd, lr: [0.1, 0.5]}
  adamw: {target: adamw, lr: 0.01}
experiments:
  texts:
    dataset: {kind: text-files, files: {songs: songs.txt, laws: ./laws.py}, context: 16}
    tasks: {kind: domains, order: shuffled, tokens_per_task: 1600}
    models: {net: {kind: "./own_models.py:NextToken"}}
    metrics: []
    protocol: {batch_size: 10, max_epochs: 1}
"""
QUICK = ("--device", "cpu", "--quiet")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "s.yaml").write_text(SUITE, encoding="utf-8")
    (folder / "songs.txt").write_text("row, row, row your boat, gently down the stream; " * 60, encoding="utf-8")
    # Text that looks like code is neither executed nor searched for imports.
    (folder / "laws.py").write_text("import nothing_of_the_kind\n" * 150, encoding="utf-8")
    shutil.copy(own_models.__file__, folder / "own_models.py")
    monkeypatch.chdir(tmp_path)


def trials(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "trials.parquet")


def test_a_run_keeps_a_copy_of_its_texts_and_can_be_repeated_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run", "suites/s.yaml", "--name", "one", *QUICK]) == 0
    run = tmp_path / "runs" / "one"
    assert trials(run)["status"].tolist() == ["ok"] * 6
    assert trials(run)["init_hash"].groupby(trials(run)["seed"]).nunique().tolist() == [1, 1]
    accuracy = pd.read_parquet(run / "accuracy.parquet")
    # The last twentieth of 2,940 and 4,050 bytes is 147 and 202 bytes, or 9 and 12 windows of 16.
    assert set(accuracy["examples"]) == {9 * 16, 12 * 16}
    for name in ("songs.txt", "laws.py"):
        assert (run / "plugins" / name).read_bytes() == (tmp_path / "suites" / name).read_bytes()
    assert {entry["target"] for entry in json.loads((run / "run.json").read_text())["plugins"]} == {
        "./own_models.py",
        "text-file:songs.txt",
        "text-file:./laws.py",
    }
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(tmp_path / "suites")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["run", str(run / "suite.yaml"), "--name", "again", *QUICK]) == 0
    assert_same_tables(run, tmp_path / "elsewhere" / "runs" / "again")


def test_a_run_whose_text_has_changed_resumes_only_with_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = interrupted(monkeypatch, "cut", after=2)
    done = set(trials(run)["trial"])
    assert 0 < len(done) < 6
    songs = tmp_path / "suites" / "songs.txt"
    songs.write_text(songs.read_text().replace("boat", "bath"), encoding="utf-8")
    said = refusal(capsys, tmp_path, "run", "suites/s.yaml", "--resume", "cut", *QUICK)
    assert "songs.txt has changed since the run was made, so the remaining trials would be trained with another" in said
    assert main(["run", "suites/s.yaml", "--resume", "cut", "--force", *QUICK]) == 0
    found = trials(run)
    new = ~found["trial"].isin(done)
    assert [found["source_hash"][which].nunique() for which in (new, ~new)] == [1, 1]
    assert found["source_hash"].nunique() == 2
    assert found["note"][new].str.contains(r"trained after songs\.txt was changed").all()
    assert sorted(file.name for file in (run / "plugins").rglob("songs.txt")) == ["songs.txt"] * 2


def test_a_suite_that_extends_another_finds_the_texts_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: suites/s.yaml\nseeds: 1\nname: mine\n", encoding="utf-8")
    assert main(["run", "mine.yaml", "--name", "two", "--optimizer", "adamw", *QUICK]) == 0
    assert trials(tmp_path / "runs" / "two")["status"].tolist() == ["ok"]


def test_a_trial_on_text_alone_equals_the_trial_among_others(tmp_path: Path) -> None:
    assert main(["run", "suites/s.yaml", "--name", "all", *QUICK]) == 0
    assert main(["run", "suites/s.yaml", "--name", "alone", "--seeds", "1,", "--optimizer", "adamw", *QUICK]) == 0
    whole, alone = (pd.read_parquet(tmp_path / "runs" / name / "curves.parquet") for name in ("all", "alone"))
    same = whole[whole["trial"] == alone["trial"].iloc[0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone)
