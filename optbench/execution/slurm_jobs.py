"""Workers in SLURM jobs, which are submitted with submitit. Each job serves one worker, which trains many cohorts.

Jobs and the main process exchange messages in a shared folder, below the runs directory unless `--set-on folder=DIR`
names another. submitit is imported when jobs are submitted.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.errors import WorkerError
from optbench.execution.agent import Hello
from optbench.execution.backend import Lost, Message, Ready, Refused, Worker
from optbench.execution.elsewhere import refusal
from optbench.execution.mailbox import BEAT, Mailbox, Pulse
from optbench.execution.messages import Arrived, Job, Said, Unit
from optbench.execution.parcels import (
    DamagedError,
    Parcel,
    datasets,
    job_for_elsewhere,
    pack,
    packed_dataset,
    pickled,
)
from optbench.execution.slurm_job import IN, OUT, POLL, PULSE, SILENT, Ending, run_job
from optbench.execution.slurm_queue import LocalQueue, Queue, SlurmQueue, State, last_line
from optbench.execution.slurm_settings import MAX_JOBS, executor, whole

PREFIX = ".slurm-"
"""Start of the name of the folder that is shared with jobs; random letters follow."""
GONE = "-gone"
"""End of the name of a shared folder while it is being removed."""
ASKED = 20.0
"""Seconds between SLURM queries about jobs that show no sign of life."""
ASKED_AT_START = 5.0
"""Seconds between queries about a job that was submitted less than `STALLED` seconds ago. These queries are frequent,
because a job that cannot start a worker fails soon."""
ASKED_AT_END = 1.0
"""Seconds between queries about a job that has reported that it is ending, until SLURM gives the reason."""
STALLED = 60.0
"""Seconds without any ready worker after which the user is told why jobs are waiting."""
PATIENCE = 10.0
"""Seconds that jobs have to end by themselves before they are cancelled."""
AGAIN = 30.0
"""Seconds between attempts to submit a job that replaces a lost one."""
TRIES = 10
"""Number of rejected submissions of a job after which the run ends if it has no other job."""
LEFT = 600.0
"""Seconds without a pulse after which another run's main process is considered killed and its folder is removed."""


class SlurmJobs:
    """A `Backend` of SLURM jobs, which share a folder with this process."""

    def __init__(
        self, settings: Mapping[str, str], runs_dir: Path, device: str, jobs: int | None, *, force: bool = False
    ) -> None:
        """settings: the settings of submitit's `AutoExecutor` and those in `slurm_settings.OWN`, by name, as text.

        Raises:
            UsageError: a setting or partition does not exist, a setting has an invalid value, or a job would have more
                than one task.
            WorkerError: SLURM is not installed or does not answer, or the shared folder cannot be written.
        """
        self.device = "cuda" if device == "cuda" else "cpu"
        self.jobs = whole("max_jobs", settings.get("max_jobs", MAX_JOBS)) if jobs is None else jobs
        self._force = force
        self._workers: list[_SlurmWorker] = []
        self._submitted: list[_SlurmWorker] = []  # submitted, but not requested by the pool yet
        self._job: tuple[Job, Parcel] | None = None
        self._data: dict[str, Parcel] = {}
        self._none_since: float | None = None
        self._reasons: set[str] = set()  # reasons that have been reported
        self._asked_at = time.monotonic()
        self._names = itertools.count()
        self._queue: Queue = LocalQueue() if settings.get("cluster") == "local" else SlurmQueue()
        base = Path(settings["folder"]) if "folder" in settings else runs_dir
        try:
            base.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base)).resolve()
            self._pulse = Pulse(self.folder / PULSE)
            self._pulse.beat()
            _sweep(base, self.folder)
        except OSError as error:
            raise WorkerError(f"--on slurm: cannot write {base}: {error.strerror}") from error
        try:
            self._executor = executor(self.folder / "logs", settings, gpu=self.device == "cuda")
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def _beat(self) -> None:
        """Touch this process's pulse until the backend is closed, even while the main thread waits for SLURM."""
        while not self._closed.wait(BEAT):
            with contextlib.suppress(OSError):
                self._pulse.beat()

    def begin(self, job: Job, units: Sequence[Unit]) -> None:
        """Write the files that jobs need. If there are no jobs yet, submit an array with at most one job per unit.

        Raises:
            WorkerError: SLURM rejects the jobs.
        """
        parcel = Parcel.of(pickled(job_for_elsewhere(job, units, force=self._force)))
        self._job = job, self._stored(f"job-{parcel.sum[:16]}", parcel)
        for experiment in dict.fromkeys(unit.experiment for unit in units):
            for key, settings in datasets(job.suite.experiments[experiment]).items():
                if key not in self._data:
                    packed = Parcel.of(packed_dataset(settings, job.data_dir))
                    self._data[key] = self._stored(f"data-{packed.sum[:16]}", packed)
        if not self._workers and (count := min(self.jobs, len(units))):
            workers = [_SlurmWorker(self, self._made_folder()) for _ in range(count)]
            for worker, submitted in zip(workers, self.submit([worker.folder for worker in workers]), strict=True):
                worker.job, worker.tried_at = submitted, time.monotonic()
            self._submitted += workers

    def _stored(self, name: str, parcel: Parcel) -> Parcel:
        """Write a parcel's content to a file that many jobs can read; return a parcel with the path of the file."""
        place = self.folder / name
        with self._writing():
            place.write_bytes(parcel.content)
        return Parcel(parcel.sum, str(place))

    def _made_folder(self) -> Path:
        folder = self.folder / f"worker-{next(self._names)}"
        with self._writing():
            for name in (IN, OUT):
                (folder / name).mkdir(parents=True)
            (folder / PULSE).touch()
        return folder

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Convert an OSError in the block, which writes to the shared folder, into a WorkerError."""
        try:
            yield
        except OSError as error:
            raise WorkerError(f"--on slurm: cannot write {self.folder}: {error.strerror}") from error

    def submit(self, folders: Sequence[Path]) -> list[Any]:
        """Submit an array with one job per folder, and return the jobs. Raises WorkerError if SLURM rejects them."""
        process = "cuda:0" if self.device == "cuda" else "cpu"
        names = [str(folder) for folder in folders]
        try:
            # submitit prints all output of sbatch, whose last line is the reason.
            with contextlib.redirect_stderr(io.StringIO()), _outside_of_jobs():
                jobs: list[Any] = self._executor.map_array(run_job, names, [process] * len(names))
        except Exception as error:
            reason = last_line(str(error)) or type(error).__name__
            raise WorkerError(f"--on slurm: cannot submit jobs: {reason}") from error
        return jobs

    def start(self, place: int) -> Worker:
        if self._submitted:
            worker = self._submitted.pop(0)
        else:  # replaces a lost job
            worker = _SlurmWorker(self, self._made_folder())
            worker.try_to_submit()
        self._workers.append(worker)
        return worker

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """See `Backend.wait`. Raises WorkerError if no job is left and SLURM keeps rejecting new ones."""
        ours = [worker for worker in workers if isinstance(worker, _SlurmWorker)]
        for worker in ours:
            worker.look()
        self._submit_again()
        self._ask(ours)
        found = [worker for worker in ours if worker.inbox]
        if not found:
            time.sleep(POLL)
        return found

    def _submit_again(self) -> None:
        """Resubmit jobs that SLURM has rejected, every `AGAIN` seconds.

        Raises:
            WorkerError: SLURM has rejected a job `TRIES` times, and there is no other job.
        """
        for worker in self._workers:
            if worker.job is None and time.monotonic() - worker.tried_at > AGAIN:
                worker.try_to_submit()
                if worker.tries >= TRIES and all(other.job is None for other in self._workers):
                    assert worker.refusal is not None, "it has no job"
                    raise worker.refusal

    def _ask(self, workers: Sequence[_SlurmWorker]) -> None:
        """Query SLURM about jobs that have not started, are about to end or show no sign of life.

        Other jobs are left out, to spare the cluster unnecessary queries. If no worker has been ready for a long
        time, report why a job is waiting.
        """
        quiet = [worker for worker in workers if worker.job is not None and not worker.inbox and worker.is_quiet]
        if not quiet or time.monotonic() - self._asked_at < min(worker.asked_every for worker in quiet):
            self._none_since = None if any(worker.is_ready for worker in self._workers) else self._none_since
            return
        states = self._queue.states([worker.job for worker in quiet])
        self._asked_at = time.monotonic()
        for worker in quiet:
            worker.hear(states.get(worker.job.job_id))
        self._notice_stall(workers, states)

    def _notice_stall(self, workers: Sequence[_SlurmWorker], states: Mapping[str, State]) -> None:
        """Report why a job is waiting if there has been no ready worker for `STALLED` seconds."""
        if any(worker.is_ready for worker in self._workers):
            self._none_since = None
        elif self._none_since is None:
            self._none_since = time.monotonic()
        elif time.monotonic() - self._none_since > STALLED:
            waiting = [worker for worker in workers if worker.job is not None and not worker.inbox]
            if waiting and not states:
                self.say_once(waiting[0], "waiting for SLURM", "squeue does not answer")
                return
            for worker in waiting:
                state = states.get(worker.job.job_id)
                if state is not None and state.waits:
                    self.say_once(worker, f"waiting for SLURM to start job {worker.job.job_id}", state.describe_wait())
                    return

    def say_once(self, worker: _SlurmWorker, what: str, reason: str) -> None:
        """Report what happened to a worker and why, unless this reason has already been reported for some job."""
        if reason not in self._reasons:
            self._reasons.add(reason)
            worker.inbox.append(Said(f"{what}: {reason}"))

    def parcel(self, job: Job) -> Parcel:
        assert self._job is not None, "begin comes first"
        assert self._job[0] is job, "begin comes first"
        return self._job[1]

    def data(self, job: Job, experiment: str) -> dict[str, Parcel]:
        """Return the parcels with an experiment's datasets, by key."""
        return {key: self._data[key] for key in datasets(job.suite.experiments[experiment])}

    def verdict(self, hello: Hello) -> Ready | Refused:
        """Return `Ready` if the job may train for this run, else `Refused`."""
        reason = refusal(hello.versions, hello.host)
        return Ready() if reason is None or self._force else Refused(reason)

    def discard(self, worker: Worker) -> None:
        assert isinstance(worker, _SlurmWorker)
        self._cancel([worker])
        self._workers.remove(worker)

    def close(self) -> None:
        everyone = [*self._workers, *self._submitted]
        started = [worker for worker in everyone if worker.is_ready]
        self._cancel([worker for worker in everyone if not worker.is_ready])
        for worker in started:
            worker.tell("close")
        until = time.monotonic() + PATIENCE
        while any(not worker.has_ended for worker in started) and time.monotonic() < until:
            time.sleep(POLL)
            for worker in started:
                worker.look()
        self._cancel([worker for worker in started if not worker.has_ended])
        self._workers.clear()
        self._submitted.clear()
        self._closed.set()
        _remove(self.folder)

    def kill(self) -> None:
        self._cancel([*self._workers, *self._submitted])

    def _cancel(self, workers: Sequence[_SlurmWorker]) -> None:
        self._queue.cancel([worker.job for worker in workers if worker.job is not None])


class _SlurmWorker:
    """A job and the messages received from it.

    Attributes:
        job: submitit's job; None if it has not been submitted.
        tries: the number of calls of `try_to_submit`.
        tried_at: the time of the last attempt to submit the job, on the monotonic clock.
        refusal: the error of the last attempt that SLURM rejected; None if there was none.
        has_ended: True once the job has reported that it is ending at the main process's request.
    """

    def __init__(self, cluster: SlurmJobs, folder: Path) -> None:
        self.folder = folder
        self.job: Any = None
        self.tries = 0
        self.tried_at = -float("inf")
        self.refusal: WorkerError | None = None
        self._cluster = cluster
        self._outbox, self._answers = Mailbox(folder / IN), Mailbox(folder / OUT)
        self._pulse = Pulse(folder / PULSE)
        self._silence = 0.0
        self._ending_since: float | None = None
        self._suspended_at = -float("inf")  # when SLURM last said so; the pulse returns some time after that
        self.is_ready = self.has_ended = False
        self.inbox: deque[Message | Arrived | Said] = deque()

    def try_to_submit(self) -> None:
        """Try to submit the job; report the first rejection."""
        self.tried_at = time.monotonic()
        self.tries += 1
        try:
            [self.job] = self._cluster.submit([self.folder])
        except WorkerError as error:
            if self.refusal is None:
                self.inbox.append(Said(f"{error}; retrying every {AGAIN:.0f} seconds"))
            self.refusal = error

    def tell(self, name: str, *arguments: object) -> None:
        """Make the job's agent call its method `name`. If the call cannot be sent, report the worker as lost."""
        try:
            self._outbox.put((name, arguments))
        except OSError as error:
            self.inbox.append(Lost(f"{self._name}: cannot write to its folder: {error.strerror or error}"))

    def look(self) -> None:
        """Read the messages and the pulse of the job."""
        try:
            found = self._answers.take()
            self._silence = self._pulse.silence()
        except (OSError, DamagedError) as error:
            self.inbox.append(Lost(f"{self._name}: its messages cannot be read: {error}"))
            return
        for message in found:
            if isinstance(message, Ending):
                self.has_ended = message.told
                self._ending_since = time.monotonic()
            elif isinstance(message, Hello):
                again = Lost(f"{self._name} was started a second time")
                self.inbox.append(again if self.is_ready else self._cluster.verdict(message))
            else:
                self.inbox.append(message)

    @property
    def _name(self) -> str:
        return "a job" if self.job is None else f"job {self.job.job_id}"

    @property
    def is_ending(self) -> bool:
        """True if the job has reported that it is ending, but not at the main process's request."""
        return self._ending_since is not None and not self.has_ended

    @property
    def is_quiet(self) -> bool:
        """True if the job has not started, is about to end, or has shown no sign of life for `ASKED` seconds."""
        return not self.is_ready or self.is_ending or self._silence > ASKED

    @property
    def asked_every(self) -> float:
        """Seconds between SLURM queries about the job while it is quiet."""
        if self.is_ending:
            return ASKED_AT_END
        return ASKED if self.is_ready or time.monotonic() - self.tried_at > STALLED else ASKED_AT_START

    def hear(self, state: State | None) -> None:
        """Process the state that SLURM reports for the job. state: None if SLURM did not answer."""
        if state is not None and state.has_ended:
            if not self.is_ready:  # otherwise the pool reports which trials are trained again
                self._cluster.say_once(self, f"{self._name} did not start a worker", state.describe(self.job))
            self.inbox.append(Lost(f"{self._name} {state.describe(self.job)}"))
        elif self._ending_since is not None and time.monotonic() - self._ending_since > PATIENCE:
            self.inbox.append(Lost(f"{self._name} was ended by SLURM"))
        elif state is not None and state.is_suspended:
            self._suspended_at = time.monotonic()
            self._cluster.say_once(self, self._name, "suspended by SLURM")
        elif self.is_ready and min(self._silence, time.monotonic() - self._suspended_at) > SILENT:
            self.inbox.append(Lost(f"{self._name} shows no sign of life"))

    def give(self, unit: Unit, job: Job) -> None:
        sent, data = Parcel.of(pack(unit, job.interim)), self._cluster.data(job, unit.experiment)
        self.tell("give", sent, self._cluster.parcel(job), data)

    def receive(self) -> Message | Arrived | Said:
        message = self.inbox.popleft() if self.inbox else None
        if isinstance(message, Ready):
            self.is_ready = True
        return message

    def renew(self) -> None:
        self.tell("renew")


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the environment variables of the SLURM job in which this process runs, if any, until the end of the block.

    Jobs submitted in the block would otherwise inherit the variables. `SLURM_CONF`, the path of SLURM's configuration,
    is kept.
    """
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SLURMD_")) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _sweep(base: Path, own: Path) -> None:
    """Remove the folders of runs whose main process was killed; jobs that still use these folders then end.

    The age of a pulse is computed from two times of the file system, whose clock may differ from this machine's.
    """
    now = (own / PULSE).stat().st_mtime
    for folder in base.glob(f"{PREFIX}*"):
        if folder.name.endswith(GONE):  # its removal was incomplete
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            if now - (folder / PULSE).stat().st_mtime > LEFT:
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder that jobs may still write into. It is renamed first, so that it disappears in one step."""
    with contextlib.suppress(OSError):
        gone = folder.with_name(f"{folder.name}{GONE}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
