"""`optbench export`: messages, refused exports, and cleaning up after a failed export."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optbench.cli import main
from optbench.export.trackers import TRACKERS
from optbench.plan import Trial
from optbench.store.tables import Row
from tests.refusals import refusal
from tests.written_runs import rows_of, write_run

SUITE = """
name: small
seeds: 3
optimizers: {sgd: {target: sgd, lr: 0.1}, adam: {target: adam}}
experiments:
  e: {tasks: {kind: permuted, count: 3}, models: {m: {kind: mlp, hidden: [10]}}}
"""


def rows(trial: Trial) -> Sequence[Row]:
    """Return rows for every trial except the last seed of Adam, which was interrupted."""
    return [] if (trial.optimizer, trial.seed) == ("adam", 2) else rows_of()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("exported"), SUITE, rows, name="half", status="interrupted")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_finished_trials_of_an_interrupted_run_are_exported(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    words = ["export", "latest", "--to", "tensorboard", "new/my logs", "--runs-dir", str(run.parent)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "optbench: warning: 1 of 6 trials is not finished and was not exported",
        "optbench: new/my logs: 5 trials and report.html; tensorboard --logdir 'new/my logs'",
    ]
    found = {str(file.parent.relative_to(folder / "new/my logs")) for file in folder.rglob("*tfevents*")}
    assert found == {
        ".",
        *(f"e/m/sgd/default/seed={i}" for i in range(3)),
        *(f"e/m/adam/default/seed={i}" for i in (0, 1)),
    }


def test_a_run_without_finished_trials_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    path = write_run(folder, SUITE, lambda trial: [], name="begun", status="interrupted")
    said = refusal(capsys, folder, "export", path, "--to", "tensorboard", "logs", code=4)
    assert said == "nothing to export: no trial of begun has finished"


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("state", ["missing", "empty package", "broken"])
def test_a_missing_tracker_is_reported_with_the_install_command(
    tracker: str,
    state: str,
    run: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = TRACKERS[tracker].needs[0]
    found = {"missing": None, "empty package": types.ModuleType(module)}
    if state in found:
        monkeypatch.setitem(sys.modules, module, found[state])  # type: ignore[arg-type]
    else:
        for name in [name for name in sys.modules if name.partition(".")[0] == tracker]:
            monkeypatch.delitem(sys.modules, name)
        (folder / tracker).mkdir()
        (folder / tracker / "__init__.py").write_text("import one_that_is_not_there")
        monkeypatch.syspath_prepend(str(folder))
    said = refusal(capsys, run.parent, "export", run, "--to", tracker, "logs")
    needed = f"--to {tracker} needs {TRACKERS[tracker].title}: pip install 'optbench[{tracker}]'"
    why = " (it cannot be imported: No module named 'one_that_is_not_there')" if state == "broken" else ""
    assert said == needed + why
    assert not (folder / "logs").exists()


WRONG = {
    "unknown tracker": (["--to", "mlflow", "logs"], r"--to: unknown tracker 'mlflow' \(valid: tensorboard, wandb\)"),
    "misspelt tracker": (
        ["--to", "tensorbord", "logs"],
        "--to: unknown tracker 'tensorbord'; did you mean 'tensorboard'.*",
    ),
    "folder that is not empty": (
        ["--to", "tensorboard", "full"],
        "full: expected a new or empty folder, got one that contains mine.txt",
    ),
    "file instead of a folder": (
        ["--to", "tensorboard", "full/mine.txt"],
        "full/mine.txt: expected a new or empty folder, got a file",
    ),
    "inside a file": (["--to", "tensorboard", "full/mine.txt/logs"], "full/mine.txt/logs: expected .* folder.*"),
    "empty folder name": (["--to", "tensorboard", ""], "DIR: expected a path, got nothing"),
    "no --to": (["logs"], "export: expected --to TRACKER, got none .*"),
    "no DIR": (["--to", "tensorboard"], "export: expected DIR, got none .*"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_command_is_refused_in_one_line_and_nothing_is_written(
    wrong: str, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (folder / "full").mkdir()
    (folder / "full/mine.txt").write_text("mine")
    words, message = WRONG[wrong]
    assert re.fullmatch(message, refusal(capsys, folder, "export", run, *words))


def test_an_unknown_run_is_refused(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    words = ("export", "hlf", "--runs-dir", run.parent, "--to", "tensorboard", "logs")
    assert refusal(capsys, folder, *words) == f"no run 'hlf' in {run.parent}; did you mean 'half'?"


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_export_leaves_the_folder_unchanged(
    there: bool, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    path = write_run(folder, SUITE, rows, name="damaged")
    table = pq.read_table(path / "trials.parquet")
    place = table.schema.get_field_index("hyperparameters")
    texts = ["{}", "{}", "[1", "{}", "{}"]
    altered = table.set_column(place, table.schema.field(place), pa.array(texts, pa.string()))
    pq.write_table(altered, path / "trials.parquet", write_page_checksum=True)
    if there:
        (folder / "a/logs").mkdir(parents=True)
    said = refusal(capsys, folder, "export", path, "--to", "tensorboard", "a/logs")
    expected = "'hyperparameters': expected a mapping in JSON, got other text"
    assert said == f"{path / 'trials.parquet'}: e/m/sgd/default/seed=2: {expected}"
    assert (folder / "a").exists() == there


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no directory is unwritable for root on this system")
def test_an_unwritable_folder_is_reported(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    said = refusal(capsys, folder, "export", run, "--to", "tensorboard", "/proc/logs")
    assert said == "/proc/logs: cannot write: No such file or directory"
