"""`benchmarks/on_device.py` keeps its measurements despite failing steps, crashes and signals."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.test_benchmarks import BENCHMARKS

SCRIPT = BENCHMARKS / "on_device.py"
REHEARSAL = ("--device", "cpu", "--rehearse")


@pytest.fixture(scope="module")
def script() -> Any:
    """Import the script as a module, for tests that need no process."""
    return imported("on_device")


@pytest.fixture(scope="module")
def speed() -> Any:
    return imported("throughput")


def imported(name: str) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def started(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, SCRIPT, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def hanging(out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start the script and wait until a step hangs; return the process and the ids of its two children."""
    process = started(*REHEARSAL, "--only", "fails", "--only", "hangs", "--out", out)
    pids = until(lambda: (out / "hangs.json").exists() and read(out / "hangs.json").get("values", {}).get("processes"))
    assert all(map(is_alive, pids))
    return process, pids


def test_a_hanging_step_is_killed_with_its_child_and_the_next_one_runs(tmp_path: Path) -> None:
    """Files can be read completely at any time."""
    looks = 0
    process = started(*REHEARSAL, "--only", "hangs", "--only", "fails", "--out", tmp_path)
    while process.poll() is None:
        for file in tmp_path.glob("*.json"):
            assert read(file)
            looks += 1
        time.sleep(0.005)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert looks > 100
    summary = read(tmp_path / "summary.json")
    assert (summary["finished"], summary["exit code"]) == (True, 0)
    hung, failed = (summary["steps"][name] for name in ("hangs", "fails"))
    assert (hung["status"], hung["limit"]) == ("killed", 4)
    assert 4 <= hung["seconds"] < 9
    assert not any(map(is_alive, hung["values"]["processes"]))
    assert failed["status"] == "failed"
    assert failed["reason"].endswith("RuntimeError: this step fails on purpose")
    assert failed["values"] == {"before": "kept"}, "results from before the error"
    assert hung == read(tmp_path / "hangs.json")
    table = (tmp_path / "table.md").read_text()
    assert "| hangs | killed |" in table
    assert table in out
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")], "no partial file is left"


def test_results_are_kept_and_children_end_when_the_script_is_killed(tmp_path: Path) -> None:
    process, pids = hanging(tmp_path)
    process.kill()
    process.communicate()
    until(lambda: not any(map(is_alive, pids)))
    summary = read(tmp_path / "summary.json")
    assert (summary["finished"], summary["exit code"]) == (False, None)
    assert summary["steps"]["fails"] == read(tmp_path / "fails.json")
    assert summary["steps"]["fails"]["values"] == {"before": "kept"}
    assert read(tmp_path / "hangs.json")["status"] == "running"
    assert "| fails | failed |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_script_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process, pids = hanging(tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + number, "")
    assert not any(map(is_alive, pids))
    summary = read(tmp_path / "summary.json")
    assert (summary["finished"], summary["exit code"]) == (True, 128 + number)
    statuses = {name: step["status"] for name, step in summary["steps"].items()}
    assert statuses == {"fails": "failed", "hangs": "interrupted"}


def test_closing_the_terminal_does_not_end_the_script(tmp_path: Path) -> None:
    with started(*REHEARSAL, "--only", "fails", "--out", tmp_path) as process:
        assert process.stdout
        process.stdout.close()
        assert process.wait(timeout=20) == 0
    assert read(tmp_path / "summary.json")["finished"]


def test_a_step_is_not_started_when_the_budget_is_spent(tmp_path: Path) -> None:
    process = started("--device", "cpu", "--only", "roots", "--budget", "4", "--out", tmp_path)
    process.communicate()
    assert process.returncode == 1
    found = read(tmp_path / "summary.json")["steps"]["roots"]
    assert (found["status"], found["reason"]) == ("not run", "the budget of 4 s is spent")


def test_measuring_a_step_again_keeps_the_others_in_the_summary(tmp_path: Path) -> None:
    started(*REHEARSAL, "--only", "fails", "--out", tmp_path).communicate()
    started(*REHEARSAL, "--only", "roots", "--budget", "4", "--out", tmp_path).communicate()
    steps = read(tmp_path / "summary.json")["steps"]
    assert {name: step["status"] for name, step in steps.items()} == {"fails": "failed", "roots": "not run"}


def test_a_step_that_lacks_a_package_names_it(tmp_path: Path, script: Any) -> None:
    step = script.Step("roots", 40, 60, needs=("json", "no_such_package"))
    session = script.Session(tmp_path, "cpu", False, 100, [step], time.monotonic())
    assert session.run() == 1
    found = read(tmp_path / "roots.json")
    assert (found["status"], found["reason"]) == ("not run", "missing: no_such_package")


def test_without_optbench_the_checkout_is_used(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PYTHONPATH", "before")
    root = str(BENCHMARKS.parent)
    assert script.find_optbench() == f"optbench is not installed: {root} was added to the path"
    assert sys.path == [root]
    assert os.environ["PYTHONPATH"] == os.pathsep.join([root, "before"])


@pytest.mark.parametrize(
    ("values", "on_cuda", "verdicts"),
    [
        ({}, True, ("not measured", "not measured")),
        ({"speed": 300.0, "seconds": 89.9}, True, ("met", "met")),
        ({"speed": 299.9, "seconds": 90.0}, True, ("missed", "missed")),
        ({"speed": 300.0, "seconds": 1.0}, False, ("not measured", "not measured")),
        ({"seconds, more than": 90.0}, True, ("not measured", "missed")),
        ({"seconds, more than": 80.0}, True, ("not measured", "not measured")),
    ],
)
def test_aims_are_judged(script: Any, values: dict[str, float], on_cuda: bool, verdicts: tuple[str, str]) -> None:
    aims = script.Aim("throughput", "speed", 300), script.Aim("continual", "seconds", 90, at_least=False)
    assert tuple(aim.judged(values, on_cuda)[0] for aim in aims) == verdicts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "gpu"], "--device gpu: expected cuda, cuda:N or cpu"),
        (["--device", "cuda:"], "--device cuda:: expected cuda, cuda:N or cpu"),
        (["--budget", "0"], "--budget 0: expected a number of seconds above 0"),
        (["--budget", "inf"], "--budget inf: expected a number of seconds above 0"),
        (["--only", "nothing"], "--only nothing: expected one of machine"),
        (["--only", "hangs"], "--only hangs: expected one of machine"),
    ],
)
def test_wrong_options_are_refused(words: list[str], message: str) -> None:
    process = started(*words)
    _, err = process.communicate()
    assert process.returncode == 2
    assert message in err
    assert "Traceback" not in err


def test_results_of_different_devices_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"device": "cuda", "rehearsal": False}))
    process = started(*REHEARSAL, "--only", "fails", "--out", tmp_path)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err == f"on_device.py: --out {tmp_path}: expected a new folder, got one with results of --device cuda\n"


def test_a_file_is_either_old_or_new_when_its_writer_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    loop = (
        f"import sys, itertools; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from pathlib import Path\nfrom processes import replace\n"
        f"for i in itertools.count(): replace(Path({str(file)!r}), str(i % 10) * 3_000_000)"
    )
    for wait in (0.02, 0.05, 0.1):
        process = subprocess.Popen([sys.executable, "-c", loop])
        until(file.exists)
        time.sleep(wait)
        process.kill()
        process.wait()
        text = file.read_text()
        assert (len(text), len(set(text))) == (3_000_000, 1)
        file.unlink()


class Scripted:
    """A replacement for the crew of throughput.py on a CUDA device, with fixed times in seconds per step."""

    device, processes = "cuda", 1
    seconds: ClassVar = {"engine": 0.001, "loop": 0.004, "floor, batched": 0.0002, "copy": 0.01}
    names = tuple(seconds)

    def __init__(self, script: Any, broken: str = "") -> None:
        self.script, self.broken = script, broken
        self.built: dict[str, list[int]] = {}

    def __getitem__(self, name: str) -> Any:
        def build(optimizer: str, shares: list[int], warm_up: int) -> None:
            self.built[name] = shares

        def answers(deadline: float) -> list[float]:
            if name == self.broken:
                raise self.script.TeamError("RuntimeError: it raised")
            return [7.0]

        return SimpleNamespace(build=build, answers=answers, time=lambda steps, deadline: steps * self.seconds[name])


def test_speeds_on_a_device_agree_with_those_of_its_parts(speed: Any) -> None:
    crew = Scripted(speed)
    found = speed.measured(crew, "adamw", 100, rounds=3, seconds=0.1)
    assert crew.built == {"engine": [100], "loop": [4], "floor, batched": [100], "copy": [100]}
    assert found.missing == {}
    assert found.peak == 7
    weights = 784 * 100 + 100 + 100 * 10 + 10
    moved = 4 * weights * (3 + 2 * 2) * 100  # weights and two moments are read and written, gradients are read
    bandwidth = 2 * 4 * speed.COPIED / 0.01
    assert found.speeds["engine"] == pytest.approx([100 / 0.001] * 3)
    assert found.speeds["loop"] == pytest.approx([4 / 0.004] * 3)
    assert found.speeds["floor"] == pytest.approx([100 / (0.0002 + moved / bandwidth)] * 3)
    assert found.ratios("loop") == pytest.approx([100.0] * 3)


def test_a_way_that_raises_is_reported_and_the_others_are_measured(speed: Any) -> None:
    found = speed.measured(Scripted(speed, "loop"), "sgd", 10, rounds=2, seconds=0.1)
    assert found.missing == {"loop": "RuntimeError: it raised"}
    assert found.ratios("loop") == []
    assert len(found.speeds["engine"]) == len(found.speeds["floor"]) == 2
    assert "loop not measured: RuntimeError: it raised" in speed.line(found, speed.COLUMNS)
    nothing = speed.measured(Scripted(speed, "engine"), "sgd", 10, rounds=2, seconds=0.1)
    assert nothing.speeds == {}


def test_the_first_steps_are_used_if_no_round_fits(speed: Any) -> None:
    found = speed.measured(Scripted(speed), "sgd", 10, rounds=3, seconds=0.1, deadline=time.perf_counter())
    assert found.speeds["engine"] == pytest.approx([10 / 0.001])


@pytest.mark.slow
def test_a_rehearsal_runs_every_step(tmp_path: Path) -> None:
    process = started(*REHEARSAL, "--out", tmp_path)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out
    summary = read(tmp_path / "summary.json")
    assert summary["planned"] == list(summary["steps"])
    for name, step in summary["steps"].items():
        assert step["as it should"], name
        assert all(check["held"] for check in step["checks"])
    assert {aim["verdict"] for aim in summary["aims"]} == {"not measured"}
    assert summary["steps"]["tests"]["values"]["passed"] > 5
    assert len(summary["steps"]["throughput"]["values"]["cohorts"]) == 4
    assert summary["steps"]["continual"]["values"]["trials"] == 19


@pytest.mark.slow
def test_a_suite_that_is_cut_off_reports_its_progress(tmp_path: Path) -> None:
    process = started(*REHEARSAL, "--only", "continual", "--budget", "16", "--out", tmp_path)
    process.communicate()
    assert process.returncode == 1
    found = read(tmp_path / "continual.json")
    assert found["status"] == "cut off"
    assert " trials in " in found["reason"]
    assert found["values"]["seconds, more than"] < 16
