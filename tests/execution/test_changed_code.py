"""User code edited between a run and its resumption is refused, or noted in every format; a run keeps a copy of the
code, so that it can be repeated from anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optbench.cli import main
from optbench.store import read_run
from tests.conftest import PoolHere, assert_same_tables
from tests.execution.test_run_directories import QUICK
from tests.refusals import refusal

HELPER = "RATE = 0.1\n"
MINE = """import torch
from helper import RATE
class Mine(torch.optim.SGD):
    def __init__(self, params, lr=RATE):
        super().__init__(params, lr=lr)
"""
SUITE = """
name: code
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.1}
  mine: {target: ./mine.py:Mine}
  noisy: {target: gradient-noise, eta: 0.01, base: {target: ./mine.py:Mine}}
  turned: {target: switch, at: 1, first: {target: sgd, lr: 0.1}, then: {target: ./mine.py:Mine}}
experiments:
  one:
    tasks: {kind: permuted, count: 1}
    models: {net: {kind: mlp, hidden: [4]}}
    protocol: {max_steps: 3, train_examples: 64, validation_examples: 32, test_examples: 32, batch_size: 32}
    metrics: []
"""
OF_USERS = ("mine", "noisy", "turned")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "s.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "suites" / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "suites" / "helper.py").write_text(HELPER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


here = pytest.mark.usefixtures("_train_here")


def interrupted(monkeypatch: pytest.MonkeyPatch, name: str, after: int, suite: str = "suites/s.yaml") -> Path:
    """Interrupt a run after `after` units of work; the two seeds of an optimizer are two units."""

    class Stopping(PoolHere):
        def train(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            for count, event in enumerate(super().train(*arguments, **more), start=1):
                yield event
                if count == after:
                    raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("optbench.execution.session.Pool", Stopping)
        words = [*QUICK]
        words[words.index("--jobs") + 1] = "2"
        assert main(["run", suite, "--name", name, *words]) == 130
    return Path("runs", name)


def trials(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "trials.parquet").set_index("trial")


def noted(found: pd.DataFrame) -> Any:
    """Mark the trials whose note says that they were trained with changed code; ignore other notes."""
    return found.note.fillna("").str.contains(r"trained after (?:mine|helper)\.py was changed")


@here
def test_trials_record_the_hash_of_the_code_they_were_trained_with() -> None:
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 0
    found = trials(Path("runs/a"))
    ours, users = found[found.optimizer == "sgd"], found[found.optimizer.isin(OF_USERS)]
    assert ours.source_hash.isna().all()
    assert (users.status == "ok").all()
    (source,) = set(users.source_hash)
    (entry,) = json.loads(Path("runs/a/run.json").read_text())["plugins"]
    assert (entry["source_hash"], entry["target"]) == (source, "./mine.py")
    assert Path("runs/a/plugins/mine.py").read_text() == MINE
    assert Path("runs/a/plugins/helper.py").read_text() == HELPER


@here
@pytest.mark.parametrize("changed", ["mine.py", "helper.py"])
def test_a_run_whose_code_has_changed_resumes_only_with_force(
    changed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(monkeypatch, "a", after=1)
    done = trials(run)
    file = tmp_path / "suites" / changed
    file.write_text(file.read_text().replace("0.1", "0.3") + "# edited\n")
    for words in (["run", "--resume", "a"], ["run", "suites/s.yaml", "--resume", "a"]):
        assert f"{file} has changed since the run was made" in refusal(capsys, tmp_path, *words, *QUICK)
    assert main(["run", "--resume", "a", "--force", *QUICK]) == 0
    found = trials(run)
    new = found.loc[~found.index.isin(done.index)]
    old_hash, new_hash = (set(part[part.optimizer.isin(OF_USERS)].source_hash) for part in (done, new))
    assert len(old_hash) == len(new_hash) == 1
    assert old_hash != new_hash
    assert (noted(found) == (~found.index.isin(done.index) & found.optimizer.isin(OF_USERS))).all()
    assert (run / "plugins" / changed).read_text() != file.read_text()
    assert (run / "plugins" / f"mine-{new_hash.pop()}" / changed).read_text() == file.read_text()
    if changed == "helper.py":  # once is enough, since reports take seconds
        assert_noted_everywhere(capsys, done)


def assert_noted_everywhere(capsys: pytest.CaptureFixture[str], done: pd.DataFrame) -> None:
    """Check that every report format with remarks, standard error, and a comparison mention the changed code."""
    counts = done[done.optimizer.isin(OF_USERS)].optimizer.value_counts()
    mixed = [name for name in OF_USERS if counts.get(name) == 1]
    words = "trained with 2 versions of the code"
    for form in ("terminal", "markdown", "html", "latex", "json", "csv"):
        capsys.readouterr()
        assert main(["report", "a", "--format", form]) == 0
        out, err = capsys.readouterr()
        assert err.count(words) == len(mixed) > 0
        assert form == "csv" or " ".join(out.split()).count(words) == len(mixed), out
    remarks = json.loads(captured(capsys, "report", "a", "--format", "json"))["remarks"]
    assert [remark["optimizer"] for remark in remarks] == mixed
    said = json.loads(captured(capsys, "compare", f"a:{mixed[0]}", "a:sgd", "--format", "json"))["remarks"]
    assert sum(words in remark for remark in said) == 1


def captured(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


@here
def test_a_second_resumption_needs_no_force_and_still_notes_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(monkeypatch, "a", after=3)
    Path("suites/helper.py").write_text("RATE = 0.2\n")

    class Stopping(PoolHere):
        def train(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            yield next(iter(super().train(*arguments, **more)))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("optbench.execution.session.Pool", Stopping)
        assert main(["run", "--resume", "a", "--force", *QUICK]) == 130
    assert main(["run", "--resume", "a", *QUICK]) == 0
    found = trials(run)
    users = found[found.optimizer.isin(OF_USERS)]
    assert users.source_hash.nunique() == 2
    first = json.loads((run / "run.json").read_text())["plugins"][0]["source_hash"]
    assert (noted(users) == (users.source_hash != first)).all()


@here
def test_code_may_change_after_the_run_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 0
    before = trials(Path("runs/a"))
    Path("suites/mine.py").write_text("raise SystemExit\n")
    assert main(["run", "--resume", "a", *QUICK]) == 0
    pd.testing.assert_frame_equal(trials(Path("runs/a")), before)


@here
def test_a_run_can_be_repeated_from_anywhere_with_its_copied_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source file was edited, the run was moved, and the working directory has another file of the same name."""
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 0
    Path("suites/helper.py").write_text("RATE = 0.7\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(MINE.replace("from helper import RATE", "RATE = 0.9"))
    shutil.move("runs/a", "elsewhere/moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["run", "moved/suite.yaml", "--name", "b", *QUICK]) == 0
    assert_same_tables(Path("moved"), Path("runs/b"))
    assert main(["run", "runs/b/suite.yaml", "--name", "c", *QUICK]) == 0
    assert_same_tables(Path("moved"), Path("runs/c"))


@here
def test_a_run_resumes_without_the_files_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(monkeypatch, "a", after=3)
    shutil.rmtree("suites")
    assert main(["run", "--resume", "a", *QUICK]) == 0
    assert trials(run)[lambda t: t.optimizer.isin(OF_USERS)].source_hash.nunique() == 1


@here
@pytest.mark.parametrize("fault", ["edited", "removed", "a link"])
def test_an_altered_copy_of_the_code_is_not_executed(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 0
    copy = tmp_path / "runs" / "a" / "plugins" / "helper.py"
    copy.unlink()
    if fault == "edited":
        copy.write_text("raise SystemExit('must not run')\n")
    elif fault == "a link":
        copy.symlink_to(tmp_path / "suites" / "helper.py")
    said = refusal(capsys, tmp_path, "run", "runs/a/suite.yaml", *QUICK)
    assert "helper.py" in said
    assert "must not run" not in said


@here
def test_targets_on_the_command_line_are_relative_to_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's target still names the file next to it, although both files have the same name."""
    Path("mine.py").write_text(MINE.replace("from helper import RATE", "RATE = 0.5"))
    words = ["--optimizer", "other=./mine.py:Mine"]
    assert main(["run", "suites/s.yaml", "--name", "a", *words, *QUICK]) == 0
    found = trials(Path("runs/a")).groupby("optimizer").source_hash.unique()
    assert found["other"] != found["mine"]
    assert len(json.loads(Path("runs/a/run.json").read_text())["plugins"]) == 2
    assert main(["run", "runs/a/suite.yaml", "--name", "b", *QUICK]) == 0
    assert_same_tables(Path("runs/a"), Path("runs/b"))
    words = ["--optimizer", "third=./mine.py:Mine", "--optimizer", "mine"]
    assert main(["run", "runs/a/suite.yaml", "--name", "c", *words, *QUICK]) == 0
    again = trials(Path("runs/c")).groupby("optimizer").source_hash.unique()
    assert (again["third"], again["mine"]) == (found["other"], found["mine"])


def test_editing_the_code_during_a_run_does_not_affect_it() -> None:
    """The file edits itself whenever it is executed, and worker processes execute it later than the main process."""
    Path("suites/mine.py").write_text(
        MINE
        + "import pathlib\nme = pathlib.Path(__file__)\nme.write_text(me.read_text().replace('=RATE', '=RATE + 1'))\n"
    )
    assert main(["run", "suites/s.yaml", "--name", "a", "--optimizer", "mine", *QUICK]) == 0
    found = trials(Path("runs/a"))
    assert found.source_hash.nunique() == 1
    assert Path("runs/a/plugins/mine.py").read_text().startswith(MINE)
    assert "RATE + 1" in Path("suites/mine.py").read_text()


@here
def test_runs_without_source_hashes_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 0
    file = Path("runs/a/trials.parquet")
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["source_hash"]), file, write_page_checksum=True)
    record = json.loads(Path("runs/a/run.json").read_text())
    del record["plugins"]
    Path("runs/a/run.json").write_text(json.dumps(record))
    shutil.rmtree("runs/a/plugins")
    assert read_run(Path("runs/a")).table("trials")["source_hash"].null_count == table.num_rows
    assert read_run(Path("runs/a")).table("trials", "trial", "source_hash").schema.types[1] == pa.string()
    assert main(["report", "a"]) == 0
    assert main(["compare", "a:mine", "a:sgd"]) == 0
    assert "versions of the code" not in capsys.readouterr().err
    assert main(["run", "--resume", "a", *QUICK]) == 2, "the file is neither recorded nor in the working directory"
    assert main(["run", "suites/s.yaml", "--resume", "a", *QUICK]) == 0


@here
def test_a_tuned_suite_uses_the_code_that_was_tuned(tmp_path: Path) -> None:
    space = "tune={seeds: [1000], optimizers: {mine: {lr: [0.1, 0.2]}}}"
    words = ["suites/s.yaml", "--optimizer", "mine", "--set", space, "--name", "t"]
    assert main(["tune", *words, *QUICK]) == 0
    Path("suites/helper.py").write_text("RATE = 0.7\n")
    assert main(["run", "runs/t/tuned.yaml", "--optimizer", "mine", "--name", "a", *QUICK]) == 0
    assert set(trials(Path("runs/a")).source_hash) == set(trials(Path("runs/t")).source_hash)
