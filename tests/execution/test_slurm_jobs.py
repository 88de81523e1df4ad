"""The SLURM backend with replaced SLURM commands: messages, queries and cancelled jobs."""

from __future__ import annotations

import errno
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optbench.cli import main
from optbench.errors import UsageError, WorkerError
from optbench.execution import mailbox, slurm_jobs
from optbench.execution.agent import Hello
from optbench.execution.backend import Lost, Ready
from optbench.execution.elsewhere import versions
from optbench.execution.mailbox import Mailbox
from optbench.execution.messages import Said
from optbench.execution.parcels import Parcel
from optbench.execution.slurm_job import OUT, Ending
from optbench.execution.slurm_jobs import SlurmJobs
from optbench.execution.slurm_queue import SlurmQueue, State, ask, last_line, last_line_of_log, parsed
from optbench.execution.slurm_settings import executor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")

COMMANDS = {
    "sbatch": """
        [ -e "$HERE/refusal" ] && { cat "$HERE/refusal" >&2; exit 1; }
        env > "$HERE/environment"; cp "$1" "$HERE/script"
        echo x >> "$HERE/submitted"; echo "Submitted batch job $(wc -l < "$HERE/submitted")" """,
    "squeue": """
        [ -e "$HERE/unknown" ] && { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
        [ -e "$HERE/states" ] || { echo "squeue: error: Unable to contact slurm controller" >&2; exit 1; }
        cat "$HERE/states" """,
    "scancel": 'echo "$@" >> "$HERE/cancelled"',
    "sinfo": "printf 'cpu\\ngpu\\n'",
    "srun": "",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with SLURM commands whose answers are set, and whose arguments are recorded, by files in it."""
    (place := tmp_path / "slurm").mkdir()
    for name, script in COMMANDS.items():
        (place / name).write_text(f"#!/bin/sh\nHERE={place}\n{script}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return place


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the backend's clock with a list that contains the time in seconds; sleeping advances this time."""
    now = [1000.0]
    stopped = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(slurm_jobs, "time", stopped)
    monkeypatch.setattr(slurm_jobs, "TRIES", 3)
    return now


@pytest.fixture
def backend(slurm: Path, tmp_path: Path, clock: list[float]) -> Iterator[SlurmJobs]:
    yield (jobs := SlurmJobs({"partition": "cpu"}, tmp_path / "runs", "cpu", 2))
    jobs._closed.set()


def says(worker: Any, message: object, number: int = 0) -> None:
    """Write a message as the job of a worker does."""
    outbox = Mailbox(worker.folder / OUT)
    for _ in range(number):
        next(outbox._numbers)
    outbox.put(message)


def started(backend: SlurmJobs) -> Any:
    worker = backend.start(0)
    says(worker, Hello("node", versions()))
    assert backend.wait([worker]) == [worker]
    assert isinstance(worker.receive(), Ready)
    return worker


def test_a_cancelled_job_is_lost_for_the_reason_slurm_gives(backend: SlurmJobs, slurm: Path) -> None:
    worker = started(backend)
    says(worker, Ending(told=False), 1)
    (slurm / "states").write_text("1|COMPLETING|None\n")
    assert backend.wait([worker]) == []
    (slurm / "states").write_text("1|CANCELLED|None\n")
    heard: list[Any] = []
    while not heard:
        heard = list(backend.wait([worker]))
    assert worker.receive() == Lost("job 1 was cancelled")


def test_slurm_is_not_queried_about_jobs_that_respond(backend: SlurmJobs, slurm: Path, clock: list[float]) -> None:
    worker = started(backend)
    (slurm / "states").write_text("1|NODE_FAIL|None\n")
    clock[0] += slurm_jobs.ASKED + 1
    assert backend.wait([worker]) == []
    worker._pulse.silence = lambda: slurm_jobs.ASKED + 1.0
    assert backend.wait([worker]) == [worker]
    assert worker.receive() == Lost("job 1 lost its node")


def test_a_job_that_slurm_starts_a_second_time_is_lost(backend: SlurmJobs) -> None:
    worker = started(backend)
    says(worker, Hello("other", versions()), 1)
    backend.wait([worker])
    assert worker.receive() == Lost("job 1 was started a second time")


def test_a_silent_job_is_lost_even_if_slurm_does_not_answer(backend: SlurmJobs, clock: list[float]) -> None:
    worker = started(backend)
    worker._pulse.silence = lambda: slurm_jobs.SILENT + 1.0
    clock[0] += slurm_jobs.ASKED + 1
    backend.wait([worker])
    assert worker.receive() == Lost("job 1 shows no sign of life")


def test_a_suspended_job_is_not_lost(backend: SlurmJobs, slurm: Path, clock: list[float]) -> None:
    worker = started(backend)
    worker._pulse.silence = lambda: slurm_jobs.SILENT + 1.0
    (slurm / "states").write_text("1|SUSPENDED|None\n")
    heard: list[Any] = []
    for _ in range(5):
        clock[0] += slurm_jobs.ASKED + 1
        heard += [one.receive() for one in backend.wait([worker])]
    assert heard == [Said("job 1: suspended by SLURM")]
    # The pulse returns only after a while, and a query can fail.
    (slurm / "states").unlink()
    clock[0] += slurm_jobs.ASKED + 1
    assert backend.wait([worker]) == []
    (slurm / "states").write_text("1|RUNNING|None\n")
    clock[0] += slurm_jobs.ASKED + 1
    assert backend.wait([worker]) == []
    clock[0] += slurm_jobs.SILENT + 1
    assert backend.wait([worker]) == [worker]
    assert worker.receive() == Lost("job 1 shows no sign of life")


def test_a_queue_that_does_not_answer_is_reported_once_while_no_worker_is_ready(
    backend: SlurmJobs, clock: list[float]
) -> None:
    worker = backend.start(0)
    said: list[str] = []
    for _ in range(10):
        clock[0] += slurm_jobs.ASKED + 1
        said += [one.receive().text for one in backend.wait([worker])]
    assert said == ["waiting for SLURM: squeue does not answer"]


def test_a_message_that_cannot_be_written_is_reported(backend: SlurmJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = started(backend)

    def full(file: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    worker.renew()
    assert backend.wait([worker]) == [worker]
    assert worker.receive() == Lost("job 1: cannot write to its folder: No space left on device")
    with pytest.raises(WorkerError, match="No space left on device"):
        backend._stored("job", Parcel.of(b""))


def test_each_reason_why_jobs_wait_is_reported_once(backend: SlurmJobs, slurm: Path, clock: list[float]) -> None:
    worker = backend.start(0)
    said: list[str] = []
    for state in ("PENDING|Priority", "PENDING|Priority", "PENDING|Resources", "RUNNING|None"):
        (slurm / "states").write_text(f"1|{state}\n")
        for _ in range(5):
            clock[0] += slurm_jobs.ASKED + 1
            said += [one.receive().text for one in backend.wait([worker])]
    assert said == [f"waiting for SLURM to start job 1: pending ({reason})" for reason in ("Priority", "Resources")]


def test_a_job_that_ends_before_its_worker_is_ready_is_reported_once(
    backend: SlurmJobs, slurm: Path, clock: list[float]
) -> None:
    (slurm / "states").write_text("1|CANCELLED|None\n2|CANCELLED|None\n")
    workers: list[Any] = [backend.start(0), backend.start(1)]
    clock[0] += slurm_jobs.ASKED + 1
    assert backend.wait(workers) == workers
    assert workers[0].receive() == Said("job 1 did not start a worker: was cancelled")
    assert [worker.receive() for worker in workers] == [Lost("job 1 was cancelled"), Lost("job 2 was cancelled")]


def test_a_refused_replacement_is_submitted_again_later(backend: SlurmJobs, slurm: Path, clock: list[float]) -> None:
    worker = started(backend)
    (slurm / "refusal").write_text("sbatch: error: Batch job submission failed: Job violates accounting policy\n")
    other: Any = backend.start(1)
    (slurm / "states").write_text("")
    assert other.receive() == Said(
        "--on slurm: cannot submit jobs: Job violates accounting policy; retrying every 30 seconds"
    )
    for _ in range(slurm_jobs.TRIES + 1):  # while another job is running
        clock[0] += slurm_jobs.AGAIN + 1
        assert backend.wait([other]) == []
    (slurm / "refusal").unlink()
    clock[0] += slurm_jobs.AGAIN + 1
    backend.wait([other])
    assert (worker.job.job_id, other.job.job_id) == ("1", "2")


def test_a_run_without_any_job_ends_after_several_refusals(backend: SlurmJobs, slurm: Path, clock: list[float]) -> None:
    (slurm / "refusal").write_text("sbatch: error: Unable to contact slurm controller\n")
    worker: Any = backend.start(0)
    worker.receive()
    for _ in range(slurm_jobs.TRIES - 2):
        clock[0] += slurm_jobs.AGAIN + 1
        assert backend.wait([worker]) == []
    clock[0] += slurm_jobs.AGAIN + 1
    with pytest.raises(WorkerError, match="--on slurm: cannot submit jobs: Unable to contact slurm controller"):
        backend.wait([worker])


def test_closing_cancels_jobs_that_do_not_end_by_themselves(
    backend: SlurmJobs, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, hangs, _waits = started(backend), started(backend), backend.start(2)
    says(ends, Ending(told=True), 1)
    says(hangs, Ending(told=False), 1)
    cancelled: list[str] = []
    monkeypatch.setattr(SlurmQueue, "cancel", lambda self, jobs: cancelled.extend(job.job_id for job in jobs))
    backend.close()
    assert cancelled == ["3", "2"]  # pending jobs first, so that they do not start now
    assert list((tmp_path / "runs").iterdir()) == []


def test_jobs_are_cancelled_by_one_command(slurm: Path) -> None:
    SlurmQueue().cancel([SimpleNamespace(job_id="1_0"), SimpleNamespace(job_id="2")])
    SlurmQueue().cancel([])
    assert (slurm / "cancelled").read_text() == "1_0 2\n"


def test_jobs_are_not_requeued_and_any_option_of_sbatch_can_be_set(slurm: Path, tmp_path: Path) -> None:
    settings = {"partition": "cpu", "additional_parameters": "reservation=lab,nice=100", "setup": "module load python"}
    executor(tmp_path / "logs", settings, gpu=True).map_array(print, ["a", "b"])
    lines = (slurm / "script").read_text().splitlines()
    expected = ["#SBATCH --no-requeue", "#SBATCH --reservation=lab", "#SBATCH --nice=100", "#SBATCH --array=0-1%2"]
    expected += ["#SBATCH --partition=cpu", "#SBATCH --time=60", "#SBATCH --gpus-per-node=1", "module load python"]
    assert set(expected) <= set(lines)


def test_jobs_do_not_inherit_the_variables_of_the_job_that_submits_them(
    backend: SlurmJobs, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    backend.start(0)
    found = (slurm / "environment").read_text()
    assert "SLURM_CONF=1" in found
    assert "SLURM_CPUS_PER_TASK" not in found
    assert os.environ["SLURM_CPUS_PER_TASK"] == "1"


def test_an_unknown_partition_is_reported_before_a_run_directory_is_made(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--on", "slurm", "--set-on", "partition=cpu,gpuu", "--runs-dir", str(tmp_path / "runs"), "--device", "cpu"]
    assert main(["run", "smoke", *words]) == 2
    expected = "optbench: --set-on partition=gpuu: unknown partition 'gpuu'; did you mean 'gpu'?"
    assert capsys.readouterr().err.startswith(expected)
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_unreachable_slurm_is_reported_in_one_line(slurm: Path, tmp_path: Path) -> None:
    (slurm / "sinfo").write_text(
        "#!/bin/sh\necho 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1"
    )
    with pytest.raises(WorkerError) as error:
        SlurmJobs({}, tmp_path / "runs", "cpu", 1)
    assert str(error.value) == "--on slurm: sinfo failed: Could not establish a configuration source"


@pytest.mark.parametrize("name", ["use_srun", "stderr_to_stdout"])
def test_a_flag_is_true_or_false(name: str, slurm: Path, tmp_path: Path) -> None:
    executor(tmp_path, {name: "False"}, gpu=False)
    with pytest.raises(UsageError, match=f"--set-on {name}=maybe: expected true or false, got maybe"):
        executor(tmp_path, {name: "maybe"}, gpu=False)


def test_the_pulse_for_jobs_continues_while_slurm_is_queried(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitting a job takes minutes if SLURM has no room for the job, and jobs without a pulse end."""
    for module in (slurm_jobs, mailbox):
        monkeypatch.setattr(module, "BEAT", 0.01)
    jobs = SlurmJobs({}, tmp_path, "cpu", 1)
    pulse = jobs.folder / "pulse"
    os.utime(pulse, (1.0, 1.0))
    until = time.monotonic() + 10
    while pulse.stat().st_mtime == 1.0:
        assert time.monotonic() < until
        time.sleep(0.01)
    jobs.close()


def test_folders_of_killed_runs_are_removed_and_those_of_others_kept(slurm: Path, tmp_path: Path) -> None:
    first, second = (SlurmJobs({}, tmp_path, "cpu", 1) for _ in range(2))
    first._closed.set()
    old = (first.folder / "pulse").stat().st_mtime - 2 * slurm_jobs.LEFT
    os.utime(first.folder / "pulse", (old, old))
    (tmp_path / ".slurm-abc-gone" / "logs").mkdir(parents=True)  # a folder whose removal was incomplete
    third = SlurmJobs({}, tmp_path, "cpu", 1)
    assert sorted(tmp_path.glob(".slurm-*")) == sorted([second.folder, third.folder])


def test_squeue_answers_are_read_by_job(slurm: Path) -> None:
    jobs: list[Any] = [SimpleNamespace(job_id=name) for name in ("7_0", "7_1", "8")]
    (slurm / "states").write_text("7_0|RUNNING|None\n7_2|RUNNING|None\n8|PENDING|Nodes required are DOWN|DRAINED\n")
    assert SlurmQueue().states(jobs) == {
        "7_0": State("RUNNING"),
        "7_1": State("COMPLETED"),  # ended too long ago for SLURM to report it
        "8": State("PENDING", "Nodes required are DOWN|DRAINED"),
    }
    (slurm / "unknown").touch()
    assert SlurmQueue().states(jobs[:1]) == {"7_0": State("COMPLETED")}
    for name in ("unknown", "states"):
        (slurm / name).unlink()
    assert SlurmQueue().states(jobs) == {}


def test_variables_of_the_user_do_not_hide_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    assert "PATH=" in (found := ask("env"))
    assert "SQUEUE_PARTITION" not in found


def test_a_failed_job_is_reported_with_the_last_line_of_its_program(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = SimpleNamespace(job_id="3", paths=SimpleNamespace(stderr=log))
    assert State("FAILED").describe(job) == "failed"
    log.write_text("Traceback\nModuleNotFoundError: No module named 'optbench'\nsrun: error: vm: task 0: Exited\n")
    assert State("FAILED").describe(job) == "failed: ModuleNotFoundError: No module named 'optbench'"
    log.write_text("slurmstepd: error: execve(): python: No such file or directory\n")
    assert last_line_of_log(log).endswith("No such file or directory")
    assert State("TIMEOUT").describe(job) == "reached its time limit (timeout_min)"


def test_messages_of_slurm_are_shortened_to_their_reason() -> None:
    said = "sbatch: error: invalid partition\nsbatch: error: Batch job submission failed: Invalid qos specification\n\n"
    assert last_line(said) == "Invalid qos specification"
    assert last_line("slurm_load_jobs error: Invalid job id") == "slurm_load_jobs error: Invalid job id"
    assert last_line("") == ""
    assert parsed("") == {}
