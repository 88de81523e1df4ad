"""Full, read-only and removed disks, and unwritable outputs: one line reports the error, and no result is lost.

The faults are real: a small separate disk (tmpfs) and closed file descriptors.
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
OPTBENCH = [sys.executable, "-m", "optbench"]
SUITE = small_suite(
    {"sgd": {"target": "sgd", "lr": 0.1}, "adam": {"target": "adam"}, "rmsprop": {"target": "rmsprop"}},
    seeds=2,
    max_epochs=1,
    train_examples=200,
)
EACH = 2
"""Number of trials in a cohort: the seeds of one optimizer."""


class Disk:
    """A small file system in memory, visible at `place`; it lives in a separate mount namespace and ends with it.

    Users other than root also need a user namespace, which not every system allows.
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
        with contextlib.suppress(BrokenPipeError):  # if no namespace can be created, the shell has ended
            self._holder.stdin.write(f"{command}\n")
            self._holder.stdin.flush()
        if self._holder.stdout.readline() != "done\n":
            raise OSError(self._holder.communicate()[1])

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with (self.place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 12))

    def make_room(self) -> None:
        (self.place / "filler").unlink()

    def only_read(self) -> None:
        """Make the disk's path read-only, even while files are open."""
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
def undisturbed(_train_here: None, suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(words(suite, folder, "whole")) == 0
    return folder / "whole"


def words(suite: str, runs: Path, name: str = "a") -> list[str]:
    return ["run", suite, "--name", name, "--runs-dir", str(runs), "--device", "cpu", "--jobs", "1", "--quiet"]


def resumed(runs: Path, name: str = "a") -> list[str]:
    return ["run", "--resume", name, "--runs-dir", str(runs), "--device", "cpu", "--jobs", "1", "--quiet"]


def after_one_cohort(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], object]) -> None:
    """Make later runs call `fault` once their first cohort has been written."""

    class Disturbed(PoolHere):
        def train(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            for i, event in enumerate(super().train(*arguments, **more)):
                if i == 1:
                    fault()
                yield event

    monkeypatch.setattr("optbench.execution.session.Pool", Disturbed)


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines on standard error since the last call; assert that standard output is empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return without_seed_warning(captured.err)


def without_seed_warning(errors: str) -> list[str]:
    """Return the lines without the warning that two seeds are too few."""
    return [line for line in errors.splitlines() if "too few to show a difference" not in line]


def assert_resumed_equals(runs: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that finished trials can be reported and that the resumed run has the tables of the undisturbed one."""
    capsys.readouterr()
    assert main(["report", str(runs / "a")]) == 0
    assert f"{EACH} of {len(trials(SUITE))} trials: {EACH} ok" in capsys.readouterr().out
    assert main(resumed(runs)) == 0
    assert_same_tables(undisturbed, runs / "a")
    assert read_run(runs / "a").record["status"] == "complete"


# Full disks


def test_a_disk_that_is_full_at_the_start_is_reported_in_one_line(
    disk: Disk, suite: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk.place / "runs"
    runs.mkdir()
    disk.fill()
    assert main(words(suite, runs)) == 2
    (line,) = error_lines(capsys)
    assert line == f"optbench: {runs / 'a'}: cannot write: {FULL}"
    assert list(runs.iterdir()) == []
    disk.make_room()
    assert main(words(suite, runs)) == 0
    assert_same_tables(undisturbed, runs / "a")


def test_a_run_on_a_disk_that_fills_up_keeps_finished_trials_and_can_be_resumed(
    disk: Disk, suite: str, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk.place / "runs"
    with monkeypatch.context() as patch:
        after_one_cohort(patch, disk.fill)
        assert main(words(suite, runs)) == 2
    first, second = error_lines(capsys)
    assert first.startswith(f"optbench: {runs / 'a'}/")
    assert first.endswith(f": cannot write: {FULL}")
    assert second == f"optbench: {EACH} finished trials are kept in {runs / 'a'}"
    # Every command that writes to the full disk reports it in one line.
    assert main(resumed(runs)) == 2
    (line,) = error_lines(capsys)
    assert line.startswith(f"optbench: {runs / 'a'}/")
    assert line.endswith(f": cannot write: {FULL}")
    assert main(["report", str(runs / "a"), "-o", str(disk.place / "report.md")]) == 2
    assert error_lines(capsys) == [f"optbench: {disk.place / 'report.md'}: cannot write: {FULL}"]
    disk.make_room()
    assert_resumed_equals(runs, undisturbed, capsys)


@pytest.mark.parametrize("form", ["markdown", "html", "csv", "json"])
def test_a_report_on_a_full_disk_leaves_no_partial_file(
    disk: Disk, undisturbed: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    file = disk.place / "report"
    file.write_text("an earlier report")
    disk.fill()
    assert main(["report", str(undisturbed), "--format", form, "-o", str(file)]) == 2
    assert error_lines(capsys) == [f"optbench: {file}: cannot write: {FULL}"]
    assert file.read_text() == "an earlier report"
    assert {path.name for path in disk.place.iterdir()} == {"report", "filler"}


def test_figures_on_a_full_disk_are_refused_in_one_line(
    disk: Disk, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.fill()
    assert main(["report", str(undisturbed), "--figures", str(disk.place / "figures")]) == 2
    (line,) = error_lines(capsys)
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


def test_a_tuned_suite_that_does_not_fit_on_the_disk_is_kept_in_its_run(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tune.yaml").write_text(TUNE)
    here = ["--runs-dir", str(tmp_path / "runs"), "--device", "cpu", "--jobs", "1", "--quiet"]
    output = disk.place / "tuned.yaml"
    disk.fill()
    assert main(["tune", str(tmp_path / "tune.yaml"), "--name", "a", "-o", str(output), *here]) == 2
    kept = tmp_path / "runs/a/tuned.yaml"
    assert error_lines(capsys) == [
        f"optbench: {output}: cannot write: {FULL}",
        f"optbench: the tuned suite is in {kept}",
    ]
    disk.make_room()
    assert main(["tune", "--resume", "a", "-o", str(output), *here]) == 0
    assert load_suite(output) == load_suite(kept)
    assert "lr: " in output.read_text()


def test_an_output_in_a_missing_directory_is_refused_before_tuning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tune.yaml").write_text(TUNE)
    output = tmp_path / "nowhere" / "tuned.yaml"
    assert main(["tune", str(tmp_path / "tune.yaml"), "-o", str(output), "--runs-dir", str(tmp_path / "runs")]) == 2
    assert error_lines(capsys) == [f"optbench: --output {output}: there is no directory {output.parent}"]
    assert not (tmp_path / "runs").exists()


# Read-only disks


def test_a_read_only_disk_is_reported_and_finished_trials_are_kept(
    disk: Disk, suite: str, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk.place / "runs"
    disk.only_read()
    assert main(words(suite, runs)) == 2
    assert error_lines(capsys) == [f"optbench: {runs / 'a'}: cannot write: {READ_ONLY}"]
    disk.write_again()
    with monkeypatch.context() as patch:
        after_one_cohort(patch, disk.only_read)  # as Linux does when a disk has errors
        assert main(words(suite, runs)) == 2
    first, second = error_lines(capsys)
    assert first.startswith(f"optbench: {runs / 'a'}/")
    assert first.endswith(f": cannot write: {READ_ONLY}")
    assert second == f"optbench: {EACH} finished trials are kept in {runs / 'a'}"
    assert main(resumed(runs)) == 2
    assert error_lines(capsys) == [f"optbench: {runs / 'a' / '.lock'}: cannot write: {READ_ONLY}"]
    assert main(["report", str(runs / "a")]) == 0, "reading writes nothing"
    disk.write_again()
    assert_resumed_equals(runs, undisturbed, capsys)


def test_a_directory_without_write_permission_is_reported_in_one_line(suite: str, tmp_path: Path) -> None:
    # Root can write anywhere unless this capability is removed.
    without = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    if without and shutil.which(without[0]) is None:
        pytest.skip("removing a capability from root requires setpriv, which is not installed")
    if without and subprocess.run([*without, "true"], capture_output=True, check=False).returncode:
        pytest.skip("setpriv is not allowed to remove a capability from root here")
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o500)
    done = subprocess.run([*without, *OPTBENCH, *words(suite, runs)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"optbench: {runs / 'a'}: cannot write: {os.strerror(errno.EACCES)}\n"


# Removed directories


@pytest.mark.parametrize("what", ["runs/a", "runs"])
def test_a_run_directory_removed_during_the_run_is_not_created_again(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    after_one_cohort(monkeypatch, lambda: shutil.rmtree(tmp_path / what))
    assert main(words(suite, tmp_path / "runs")) == 2
    (line,) = error_lines(capsys)
    assert line.startswith(f"optbench: {tmp_path / 'runs/a'}/")
    assert line.endswith(f": cannot write: {os.strerror(errno.ENOENT)}")
    assert not (tmp_path / what).exists()


def test_parts_removed_during_the_run_are_reported(
    suite: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        after_one_cohort(patch, lambda: shutil.rmtree(tmp_path / "runs/a/parts"))
        assert main(words(suite, tmp_path / "runs")) == 2
    first, second = error_lines(capsys)
    assert first.startswith(f"optbench: {tmp_path / 'runs/a/parts'}/")
    assert second == f"optbench: {EACH} finished trials are kept in {tmp_path / 'runs/a'}"
    assert main(resumed(tmp_path / "runs")) == 0
    assert_same_tables(undisturbed, tmp_path / "runs/a")


# Processes of a run


def test_a_run_that_ends_on_a_full_disk_leaves_no_process_behind(
    disk: Disk, suite: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]
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
    first, *second = without_seed_warning(err)
    assert first.startswith(f"optbench: {runs / 'a'}/")
    assert first.endswith(f": cannot write: {FULL}")
    # The disk may have been full before the main process registered its first part.
    assert second in ([], [f"optbench: {EACH} finished trials are kept in {runs / 'a'}"])
    assert not of_session(process.pid)
    disk.make_room()
    assert main(resumed(runs)) == 0
    assert_same_tables(undisturbed, runs / "a")


def of_session(leader: int) -> list[psutil.Process]:
    """Return the processes of a session that are still alive after five seconds."""

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


# Standard output and standard error


@pytest.fixture
def full_file(disk: Disk) -> Iterator[Path]:
    """A file that cannot grow because its disk is full."""
    file = disk.place / "output"
    file.touch()
    disk.fill()
    yield file
    assert not file.stat().st_size


@pytest.mark.parametrize(
    "command", [["report", "RUN"], ["report", "RUN", "--format", "json"], ["--help"], ["--version"], ["list", "suites"]]
)
def test_a_full_standard_output_is_reported_in_one_line(
    full_file: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    given = [str(undisturbed) if word == "RUN" else word for word in command]
    with full_file.open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(given) == 2
    assert error_lines(capsys) == [f"optbench: standard output: cannot write: {FULL}"]


def test_a_run_that_cannot_print_its_results_keeps_them(
    full_file: Path,
    suite: str,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with full_file.open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(words(suite, tmp_path / "runs")) == 2
    assert error_lines(capsys) == [
        f"optbench: standard output: cannot write: {FULL}",
        f"optbench: {len(trials(SUITE))} finished trials are kept in {tmp_path / 'runs/a'}",
    ]
    assert_same_tables(undisturbed, tmp_path / "runs/a")


def test_an_unwritable_standard_error_does_not_end_a_run(
    full_file: Path,
    suite: str,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    aloud = [word for word in words(suite, tmp_path / "runs") if word != "--quiet"]
    with full_file.open("w") as stream, monkeypatch.context() as patch:
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
        assert_same_tables(undisturbed, tmp_path / "runs" / name)


def ended(command: list[str], redirected: str) -> tuple[int, str]:
    """Run a command with a shell redirection; return its exit code and standard error, including messages at exit."""
    line = ["sh", "-c", f'"$@" {redirected}', "sh", *OPTBENCH, *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_python_prints_no_further_error_at_exit(full_file: Path, undisturbed: Path) -> None:
    report = ["report", str(undisturbed)]
    assert ended(report, f"> '{full_file}'") == (2, f"optbench: standard output: cannot write: {FULL}\n")
    assert ended(report, ">&-") == (2, f"optbench: standard output: cannot write: {os.strerror(errno.EBADF)}\n")
    assert ended(["report", "nowhere"], f"2> '{full_file}'") == (2, "")
    assert ended(["report", "nowhere"], ">&- 2>&-") == (2, "")


@pytest.mark.parametrize(
    "command", [["report", "RUN"], ["report", "RUN", "--format", "json"], ["--help"], ["list", "metrics"]]
)
def test_a_closed_pipe_on_standard_output_is_not_an_error(undisturbed: Path, command: list[str]) -> None:
    given = [str(undisturbed) if word == "RUN" else word for word in command]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*OPTBENCH, *given], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
