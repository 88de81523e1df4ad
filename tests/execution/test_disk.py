"""Disks that are full, read-only or gone, and outputs that take nothing: one line says so, and nothing is lost.

The faults are real: a small disk of its own (tmpfs), closed descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from optbench.cli import main
from optbench.plan import trials
from optbench.store import read_run
from optbench.suite import dump_suite, load_suite
from tests.conftest import PoolHere, assert_same_tables, small_suite

pytestmark = pytest.mark.usefixtures("_train_here")

FULL, READ_ONLY = os.strerror(errno.ENOSPC), os.strerror(errno.EROFS)
OPTBENCH = [sys.executable, "-m", "optbench.cli"]
SUITE = small_suite(
    {"sgd": {"target": "sgd", "lr": 0.1}, "adam": {"target": "adam"}, "rmsprop": {"target": "rmsprop"}},
    seeds=2,
    max_epochs=1,
    train_examples=200,
)
EACH = 2
"""Trials of a cohort: the seeds of one optimizer."""


class Disk:
    """A small file system in memory, seen at `place`. A mount namespace of its own holds it, and takes it along.

    Root needs nothing else for that, and other users a user namespace, where their system has them.
    """

    SIZE = 4 << 20

    def __init__(self, folder: Path) -> None:
        self._mounted = folder / "mounted"
        self._mounted.mkdir()
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._holder = subprocess.Popen(
            [
                "unshare",
                *user,
                "--mount",
                "sh",
                "-c",
                'while read -r line; do eval "$line" && echo done || echo no; done',
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.place = folder / "disk"
        self.place.symlink_to(f"/proc/{self._holder.pid}/root{self._mounted}")
        self._do(f"mount -t tmpfs -o size={self.SIZE} none '{self._mounted}'")

    def _do(self, command: str) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # no namespace, hence no shell
            self._holder.stdin.write(f"{command}\n")
            self._holder.stdin.flush()
        if self._holder.stdout.readline() != "done\n":
            raise OSError(self._holder.communicate()[1])

    def fill(self) -> None:
        """Leave no byte."""
        with (self.place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 12))

    def make_room(self) -> None:
        (self.place / "filler").unlink()

    def only_read(self) -> None:
        """Allow no writing by the disk's path, whatever is open."""
        self._do(f"mount --bind '{self._mounted}' '{self._mounted}'")
        self._do(f"mount -o remount,bind,ro '{self._mounted}'")

    def write_again(self) -> None:
        self._do(f"umount '{self._mounted}'")

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        made = Disk(tmp_path)
    except OSError as error:
        pytest.skip(f"this system does not let {os.environ.get('USER', 'this user')} mount a disk: {error}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("suite") / "suite.yaml"
    file.write_text(dump_suite(SUITE))
    return str(file)


@pytest.fixture(scope="module")
def whole(_train_here: None, suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(words(suite, folder, "whole")) == 0
    return folder / "whole"


def words(suite: str, runs: Path, name: str = "a") -> list[str]:
    return ["run", suite, "--name", name, "--runs-dir", str(runs), "--device", "cpu", "--jobs", "1", "--quiet"]


def resumed(runs: Path, name: str = "a") -> list[str]:
    return ["run", "--resume", name, "--runs-dir", str(runs), "--device", "cpu", "--jobs", "1", "--quiet"]


def after_one_cohort(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], object]) -> None:
    """Let something happen in the middle of the runs to come: when their first cohort has been written."""

    class Disturbed(PoolHere):
        def train(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            for i, event in enumerate(super().train(*arguments, **more)):
                if i == 1:
                    fault()
                yield event

    monkeypatch.setattr("optbench.execution.session.Pool", Disturbed)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard error since the last time; nothing was said elsewhere."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return without_shortage(captured.err)


def without_shortage(errors: str) -> list[str]:
    """The lines, but for the warning that two seeds show no difference."""
    return [line for line in errors.splitlines() if "too few to show a difference" not in line]


def assert_whole_after(runs: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was finished can be reported, and a resumed run comes to the tables of an undisturbed one."""
    capsys.readouterr()
    assert main(["report", str(runs / "a")]) == 0
    assert f"{EACH} of {len(trials(SUITE))} trials: {EACH} ok" in capsys.readouterr().out
    assert main(resumed(runs)) == 0
    assert_same_tables(whole, runs / "a")
    assert read_run(runs / "a").record["status"] == "complete"


# Full.


def test_a_disk_that_is_full_at_the_start(
    disk: Disk, suite: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk.place / "runs"
    runs.mkdir()
    disk.fill()
    assert main(words(suite, runs)) == 2
    (line,) = told(capsys)
    assert line == f"optbench: {runs / 'a'}: cannot write: {FULL}"
    assert list(runs.iterdir()) == []
    disk.make_room()
    assert main(words(suite, runs)) == 0
    assert_same_tables(whole, runs / "a")


def test_a_disk_that_fills_up_in_the_middle(
    disk: Disk, suite: str, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk.place / "runs"
    with monkeypatch.context() as patch:
        after_one_cohort(patch, disk.fill)
        assert main(words(suite, runs)) == 2
    first, second = told(capsys)
    assert first.startswith(f"optbench: {runs / 'a'}/")
    assert first.endswith(f": cannot write: {FULL}")
    assert second == f"optbench: {EACH} finished trials are kept in {runs / 'a'}"
    # As long as it is full, one line for whoever tries.
    assert main(resumed(runs)) == 2
    (line,) = told(capsys)
    assert line.startswith(f"optbench: {runs / 'a'}/")
    assert line.endswith(f": cannot write: {FULL}")
    assert main(["report", str(runs / "a"), "-o", str(disk.place / "report.md")]) == 2
    assert told(capsys) == [f"optbench: {disk.place / 'report.md'}: cannot write: {FULL}"]
    disk.make_room()
    assert_whole_after(runs, whole, capsys)


@pytest.mark.parametrize("form", ["markdown", "html", "csv", "json"])
def test_a_report_on_a_full_disk_leaves_no_half_of_a_file(
    disk: Disk, whole: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    file = disk.place / "report"
    file.write_text("an earlier report")
    disk.fill()
    assert main(["report", str(whole), "--format", form, "-o", str(file)]) == 2
    assert told(capsys) == [f"optbench: {file}: cannot write: {FULL}"]
    assert file.read_text() == "an earlier report"
    assert {path.name for path in disk.place.iterdir()} == {"report", "filler"}


def test_figures_on_a_full_disk(disk: Disk, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk.fill()
    assert main(["report", str(whole), "--figures", str(disk.place / "figures")]) == 2
    (line,) = told(capsys)
    assert line.startswith(f"optbench: {disk.place / 'figures'}")
    assert line.endswith(f": cannot write: {FULL}")


TUNE = """
name: tuned
seeds: 1
optimizers:
  sgd: {target: sgd, lr: 0.1}
experiments:
  small:
    tasks: {kind: permuted, count: 1}
    models: {net: {kind: mlp, hidden: [5]}}
    protocol: {batch_size: 32, max_steps: 2, train_examples: 100, validation_examples: 100, test_examples: 100}
    metrics: []
tune:
  optimizers: {sgd: {lr: [0.1, 0.2]}}
"""


def test_a_tuned_suite_that_finds_no_room_is_kept_in_its_run(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tune.yaml").write_text(TUNE)
    here = ["--runs-dir", str(tmp_path / "runs"), "--device", "cpu", "--jobs", "1", "--quiet"]
    output = disk.place / "tuned.yaml"
    disk.fill()
    assert main(["tune", str(tmp_path / "tune.yaml"), "--name", "a", "-o", str(output), *here]) == 2
    kept = tmp_path / "runs/a/tuned.yaml"
    assert told(capsys) == [
        f"optbench: {output}: cannot write: {FULL}",
        f"optbench: the tuned suite is in {kept}",
    ]
    disk.make_room()
    assert main(["tune", "--resume", "a", "-o", str(output), *here]) == 0
    assert load_suite(output) == load_suite(kept)
    assert "lr: " in output.read_text()


def test_a_place_for_a_tuned_suite_that_is_not_there_is_refused_before_the_tuning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tune.yaml").write_text(TUNE)
    output = tmp_path / "nowhere" / "tuned.yaml"
    assert main(["tune", str(tmp_path / "tune.yaml"), "-o", str(output), "--runs-dir", str(tmp_path / "runs")]) == 2
    assert told(capsys) == [f"optbench: --output {output}: there is no directory {output.parent}"]
    assert not (tmp_path / "runs").exists()


# Read-only.


def test_a_disk_that_is_only_read(
    disk: Disk, suite: str, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk.place / "runs"
    disk.only_read()
    assert main(words(suite, runs)) == 2
    assert told(capsys) == [f"optbench: {runs / 'a'}: cannot write: {READ_ONLY}"]
    disk.write_again()
    with monkeypatch.context() as patch:
        after_one_cohort(patch, disk.only_read)  # as Linux does with a disk that has errors
        assert main(words(suite, runs)) == 2
    first, second = told(capsys)
    assert first.startswith(f"optbench: {runs / 'a'}/")
    assert first.endswith(f": cannot write: {READ_ONLY}")
    assert second == f"optbench: {EACH} finished trials are kept in {runs / 'a'}"
    assert main(resumed(runs)) == 2
    assert told(capsys) == [f"optbench: {runs / 'a' / '.lock'}: cannot write: {READ_ONLY}"]
    assert main(["report", str(runs / "a")]) == 0, "reading writes nothing"
    disk.write_again()
    assert_whole_after(runs, whole, capsys)


def test_a_directory_without_the_right_to_write(suite: str, tmp_path: Path) -> None:
    # Root may write everywhere, but for this one right.
    without = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    if without and shutil.which(without[0]) is None:
        pytest.skip("only setpriv takes a right from root, and it is not installed")
    if without and subprocess.run([*without, "true"], capture_output=True, check=False).returncode:
        pytest.skip("setpriv may not take a right from root here")
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o500)
    done = subprocess.run([*without, *OPTBENCH, *words(suite, runs)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"optbench: {runs / 'a'}: cannot write: {os.strerror(errno.EACCES)}\n"


# Gone.


@pytest.mark.parametrize("what", ["runs/a", "runs"])
def test_a_directory_that_is_removed_in_the_middle_is_not_made_up_again(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    after_one_cohort(monkeypatch, lambda: shutil.rmtree(tmp_path / what))
    assert main(words(suite, tmp_path / "runs")) == 2
    (line,) = told(capsys)
    assert line.startswith(f"optbench: {tmp_path / 'runs/a'}/")
    assert line.endswith(f": cannot write: {os.strerror(errno.ENOENT)}")
    assert not (tmp_path / what).exists()


def test_parts_that_are_removed_in_the_middle_are_not_missed_in_silence(
    suite: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        after_one_cohort(patch, lambda: shutil.rmtree(tmp_path / "runs/a/parts"))
        assert main(words(suite, tmp_path / "runs")) == 2
    first, second = told(capsys)
    assert first.startswith(f"optbench: {tmp_path / 'runs/a/parts'}/")
    assert second == f"optbench: {EACH} finished trials are kept in {tmp_path / 'runs/a'}"
    assert main(resumed(tmp_path / "runs")) == 0
    assert_same_tables(whole, tmp_path / "runs/a")


# The processes of a run.


def test_a_full_disk_leaves_no_process_behind(
    disk: Disk, suite: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk.place / "runs"
    process = subprocess.Popen(
        [*OPTBENCH, *words(suite, runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((runs / "a/parts").glob("[!.]*")):
        assert process.poll() is None
        time.sleep(0.005)
    disk.fill()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    first, *second = without_shortage(err)
    assert first.startswith(f"optbench: {runs / 'a'}/")
    assert first.endswith(f": cannot write: {FULL}")
    # It may have been full before the run itself had taken note of its first part.
    assert second in ([], [f"optbench: {EACH} finished trials are kept in {runs / 'a'}"])
    assert not of_session(process.pid)
    disk.make_room()
    assert main(resumed(runs)) == 0
    assert_same_tables(whole, runs / "a")


def of_session(leader: int) -> list[psutil.Process]:
    """The processes of a session that are still there after a moment."""

    def found() -> list[psutil.Process]:
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
        return processes

    end = time.monotonic() + 5
    while found() and time.monotonic() < end:
        time.sleep(0.05)
    return found()


# Standard output and standard error.


@pytest.fixture
def full(disk: Disk) -> Iterator[Path]:
    """A file that takes nothing."""
    file = disk.place / "output"
    file.touch()
    disk.fill()
    yield file
    assert not file.stat().st_size


@pytest.mark.parametrize(
    "command", [["report", "RUN"], ["report", "RUN", "--format", "json"], ["--help"], ["--version"], ["list", "suites"]]
)
def test_a_standard_output_that_is_full_is_one_line(
    full: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    given = [str(whole) if word == "RUN" else word for word in command]
    with full.open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(given) == 2
    assert told(capsys) == [f"optbench: standard output: cannot write: {FULL}"]


def test_a_run_whose_results_find_no_room_on_standard_output_keeps_them(
    full: Path,
    suite: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with full.open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(words(suite, tmp_path / "runs")) == 2
    assert told(capsys) == [
        f"optbench: standard output: cannot write: {FULL}",
        f"optbench: {len(trials(SUITE))} finished trials are kept in {tmp_path / 'runs/a'}",
    ]
    assert_same_tables(whole, tmp_path / "runs/a")


def test_messages_that_nobody_takes_end_no_run(
    full: Path,
    suite: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    aloud = [word for word in words(suite, tmp_path / "runs") if word != "--quiet"]
    with full.open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert main(aloud) == 0
    assert "Results: " in capsys.readouterr().out
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as unread, monkeypatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stderr", unread)
        assert main([*aloud, "--name", "b"]) == 0
    assert "Results: " in capsys.readouterr().out
    for name in "ab":
        assert_same_tables(whole, tmp_path / "runs" / name)


def ended(command: list[str], redirected: str) -> tuple[int, str]:
    """The exit code and standard error of a command under a shell's redirection, to the very end of Python."""
    line = ["sh", "-c", f'"$@" {redirected}', "sh", *OPTBENCH, *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_nothing_more_is_said_while_python_shuts_down(full: Path, whole: Path) -> None:
    report = ["report", str(whole)]
    assert ended(report, f"> '{full}'") == (2, f"optbench: standard output: cannot write: {FULL}\n")
    assert ended(report, ">&-") == (2, f"optbench: standard output: cannot write: {os.strerror(errno.EBADF)}\n")
    assert ended(["report", "nowhere"], f"2> '{full}'") == (2, "")
    assert ended(["report", "nowhere"], ">&- 2>&-") == (2, "")


@pytest.mark.parametrize(
    "command", [["report", "RUN"], ["report", "RUN", "--format", "json"], ["--help"], ["list", "metrics"]]
)
def test_a_reader_that_has_gone_is_no_reason_to_complain(whole: Path, command: list[str]) -> None:
    given = [str(whole) if word == "RUN" else word for word in command]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*OPTBENCH, *given], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
