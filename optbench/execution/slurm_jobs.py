"""Workers in jobs of a SLURM cluster, submitted by submitit: a job serves one worker, which takes many cohorts.

A job and the run's own process write messages to one another in a folder that both see: below the runs' folder, unless
`--set-on folder=DIR` names another. submitit is imported when jobs are submitted.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.errors import UsageError, WorkerError, unknown
from optbench.execution.agent import Agent, Hello
from optbench.execution.backend import Lost, Message, Ready, Refused, Worker
from optbench.execution.elsewhere import refusal
from optbench.execution.messages import Arrived, Job, Said, Unit
from optbench.execution.parcels import (
    DamagedError,
    Parcel,
    datasets,
    job_for_elsewhere,
    pack,
    packed_dataset,
    pickled,
    unpickled,
)

MAX_JOBS = 16
"""So many jobs at a time, unless `max_jobs` or `--jobs` say otherwise."""
MINUTES = 60
"""A job's time limit, unless `timeout_min` says otherwise."""
OWN = ("folder", "max_jobs", "cluster")
"""Settings that are not submitit's. cluster: `slurm`, or `local` for processes of this machine."""
IN, OUT, PULSE = "in", "out", "pulse"
POLL = 0.2
"""Seconds between two looks for messages."""
SILENT = 120.0
"""Seconds without a sign of life after which the other side is gone; network file systems show changes within 60."""
ASKED = 10.0
"""Seconds between two questions to SLURM about a job."""
STALLED = 60.0
"""Seconds without any worker after which it is said that jobs wait."""
PATIENCE = 5.0
"""Seconds that jobs have to end by themselves."""


class Mailbox:
    """One direction of the messages between two processes: a folder of numbered files, each written in one rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def put(self, message: object) -> None:
        """Send a message. Raises OSError where it cannot be written."""
        name = f"{next(self._numbers):08d}"
        writing = self.folder / f".{name}"
        writing.write_bytes(pickled(message))
        writing.rename(self.folder / name)

    def take(self) -> list[Any]:
        """Return the messages that have come since the last time, in order; they are removed.

        The folder is listed, since a network file system remembers for a while that a file was not there.
        """
        found = []
        for file in sorted(file for file in self.folder.iterdir() if not file.name.startswith(".")):
            found.append(unpickled(file.read_bytes()))
            file.unlink()
        return found


class Pulse:
    """A file that one process touches and another one watches, each by its own clock."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: float | None = None
        self._changed_at = time.monotonic()

    def beat(self) -> None:
        self._file.touch()

    def silence(self) -> float:
        """Seconds since it was last seen to change. Raises OSError where it is gone."""
        if (now := self._file.stat().st_mtime) != self._last:
            self._last, self._changed_at = now, time.monotonic()
        return time.monotonic() - self._changed_at


class FileAgent(Agent):
    """The agent in a job. Parcels that are sent to many jobs lie in files."""

    def fetch(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else Path(content).read_bytes()


def serve(folder: str, device: str) -> None:
    """Main function of a job: serve one worker until it is told to end, or the run's own process shows no life."""
    place = Path(folder)
    inbox, outbox = Mailbox(place / IN), Mailbox(place / OUT)
    own, parent = Pulse(place / PULSE), Pulse(place.parent / PULSE)
    agent = FileAgent(device)
    try:
        while parent.silence() < SILENT:
            for name, arguments in inbox.take():
                if name == "close":
                    return
                getattr(agent, name)(*arguments)
            for message in agent.receive(POLL):
                outbox.put(message)
            own.beat()
    except FileNotFoundError:  # the run has ended, and its folder is gone
        return
    finally:
        agent.close()


class SlurmJobs:
    """A `Backend`: jobs of a cluster that share a folder with this process."""

    def __init__(
        self, settings: Mapping[str, str], runs_dir: Path, device: str, jobs: int | None, *, force: bool = False
    ) -> None:
        """settings: of submitit's `AutoExecutor`, and those of `OWN`, as texts.

        Raises:
            UsageError: there is no such setting, or it has another kind of value.
            WorkerError: there is no SLURM here.
        """
        self.device = "cuda" if device == "cuda" else "cpu"
        self.jobs = _whole("max_jobs", settings.get("max_jobs", MAX_JOBS)) if jobs is None else jobs
        self._force = force
        self._workers: list[_SlurmWorker] = []
        self._submitted: list[_SlurmWorker] = []  # not started by the pool yet
        self._job: tuple[Job, Parcel] | None = None
        self._data: dict[str, Parcel] = {}
        self._none_since: float | None = None
        self._names = itertools.count()
        base = Path(settings["folder"]) if "folder" in settings else runs_dir
        try:
            base.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=".slurm-", dir=base)).resolve()
            self._pulse = Pulse(self.folder / PULSE)
            self._pulse.beat()
        except OSError as error:
            raise WorkerError(f"--on slurm: cannot write {base}: {error.strerror}") from error
        try:
            self._executor = _executor(self.folder / "logs", settings, gpu=self.device == "cuda")
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def begin(self, job: Job, units: Sequence[Unit]) -> None:
        """Write what jobs need, and submit as many as there is work for: as one array."""
        parcel = Parcel.of(pickled(job_for_elsewhere(job, units, force=self._force)))
        self._job = job, self._stored(f"job-{parcel.sum[:16]}", parcel)
        for experiment in dict.fromkeys(unit.experiment for unit in units):
            for key, settings in datasets(job.suite.experiments[experiment]).items():
                if key not in self._data:
                    packed = Parcel.of(packed_dataset(settings, job.data_dir))
                    self._data[key] = self._stored(f"data-{packed.sum[:16]}", packed)
        if not self._workers:
            self._submit(min(self.jobs, len(units)))

    def _stored(self, name: str, parcel: Parcel) -> Parcel:
        """Write a parcel that many jobs read to a file."""
        place = self.folder / name
        place.write_bytes(parcel.content)
        return Parcel(parcel.sum, str(place))

    def _submit(self, count: int) -> None:
        folders = [self.folder / f"worker-{next(self._names)}" for _ in range(count)]
        for folder in folders:
            for name in (IN, OUT):
                (folder / name).mkdir(parents=True)
            (folder / PULSE).touch()
        process = "cuda:0" if self.device == "cuda" else "cpu"
        try:
            submitted = self._executor.map_array(serve, [str(folder) for folder in folders], [process] * count)
        except Exception as error:  # of sbatch, with all that it said
            raise WorkerError(f"--on slurm: cannot submit: {_last_line(error)}") from error
        self._submitted += [_SlurmWorker(self, folder, job) for folder, job in zip(folders, submitted, strict=True)]

    def start(self, place: int) -> Worker:
        if not self._submitted:
            self._submit(1)
        self._workers.append(worker := self._submitted.pop(0))
        return worker

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        ours = [worker for worker in workers if isinstance(worker, _SlurmWorker)]
        with contextlib.suppress(OSError):
            self._pulse.beat()
        self._notice_stall(ours)
        for worker in ours:
            worker.look()
        found = [worker for worker in ours if worker.inbox]
        if not found:
            time.sleep(POLL)
        return found

    def _notice_stall(self, workers: Sequence[_SlurmWorker]) -> None:
        """Have a worker that has not started say so, where none has for a while."""
        if any(worker.is_ready for worker in self._workers) or not workers:
            self._none_since = None
        elif self._none_since is None:
            self._none_since = time.monotonic()
        elif time.monotonic() - self._none_since > STALLED:
            workers[0].inbox.append(Said("waiting for SLURM: no job has started yet"))
            self._none_since = float("inf")  # it is said once, until there was one

    def parcel(self, job: Job) -> Parcel:
        assert self._job is not None, "begin comes first"
        assert self._job[0] is job, "begin comes first"
        return self._job[1]

    def data(self, job: Job, experiment: str) -> dict[str, Parcel]:
        """The datasets of an experiment."""
        return {key: self._data[key] for key in datasets(job.suite.experiments[experiment])}

    def verdict(self, hello: Hello) -> Ready | Refused:
        """Whether a job's process may train for this run."""
        reason = refusal(hello.versions, hello.host)
        return Ready() if reason is None or self._force else Refused(reason)

    def discard(self, worker: Worker) -> None:
        assert isinstance(worker, _SlurmWorker)
        worker.kill()
        self._workers.remove(worker)

    def close(self) -> None:
        everyone = [*self._workers, *self._submitted]
        for worker in everyone:
            worker.tell("close")
        until = time.monotonic() + PATIENCE
        while any(worker.runs for worker in everyone if worker.is_ready) and time.monotonic() < until:
            time.sleep(POLL)
        self.kill()
        self._workers.clear()
        self._submitted.clear()
        with contextlib.suppress(OSError):  # in one step, so that no job writes into what is being removed
            gone = self.folder.with_name(f"{self.folder.name}-gone")
            self.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def kill(self) -> None:
        for worker in [*self._workers, *self._submitted]:
            worker.kill()


class _SlurmWorker:
    """A job, and what it has said."""

    def __init__(self, cluster: SlurmJobs, folder: Path, job: Any) -> None:
        self._cluster, self._submitted = cluster, job
        self._outbox, self._answers = Mailbox(folder / IN), Mailbox(folder / OUT)
        self._pulse = Pulse(folder / PULSE)
        self._asked_at = time.monotonic()
        self.is_ready = False
        self.inbox: deque[Message | Arrived | Said] = deque()

    @property
    def runs(self) -> bool:
        return not self._submitted.done()

    def tell(self, name: str, *arguments: object) -> None:
        """Have the agent do something."""
        with contextlib.suppress(OSError):  # reading says that it is gone
            self._outbox.put((name, arguments))

    def look(self) -> None:
        """Take what the job has said; now and then ask SLURM whether it still runs."""
        try:
            found = self._answers.take()
            silent = self._pulse.silence() > SILENT
        except (OSError, DamagedError) as error:
            self.inbox.append(Lost(f"job {self._submitted.job_id}: its messages cannot be read: {error}"))
            return
        self.inbox.extend(self._cluster.verdict(one) if isinstance(one, Hello) else one for one in found)
        if not self.inbox and time.monotonic() - self._asked_at > ASKED:
            self._asked_at = time.monotonic()
            if self._submitted.done():
                self.inbox.append(Lost(f"job {self._submitted.job_id} has ended: {self._submitted.state.lower()}"))
            elif self.is_ready and silent:
                self.inbox.append(Lost(f"job {self._submitted.job_id} shows no life"))

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

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # SLURM may be out of reach
            self._submitted.cancel(check=False)


def _executor(folder: Path, settings: Mapping[str, str], *, gpu: bool) -> Any:
    """The executor of submitit with the settings that were given.

    Raises:
        UsageError: there is no such setting, or it has another kind of value.
        WorkerError: there is no SLURM here.
    """
    import submitit
    from submitit.slurm.slurm import SlurmExecutor

    cluster = settings.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UsageError(f"--set-on cluster={cluster}: expected slurm or local, got {cluster}")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise WorkerError("--on slurm: there is no srun here; start optbench on a login node of the cluster") from error
    general = submitit.AutoExecutor._typed_parameters()
    of_slurm = SlurmExecutor._valid_parameters()
    given: dict[str, Any] = {"name": "optbench", "timeout_min": MINUTES, "cpus_per_task": 1}
    given |= {"gpus_per_node": 1} if gpu else {}
    for name, text in settings.items():
        if name in OWN:
            continue
        if name not in general and name not in of_slurm:
            raise UsageError(f"--set-on {name}: {unknown('setting', name, {*OWN, *general, *of_slurm})}")
        kind = general.get(name)
        value = _whole(name, text) if kind is int else _number(name, text) if kind is float else text
        # Of SLURM's own settings submitit declares no types; those that are numbers look like numbers.
        given[name if name in general else f"slurm_{name}"] = int(text) if kind is None and text.isdecimal() else value
    if given.get("tasks_per_node", 1) != 1 or given.get("nodes", 1) != 1:
        raise UsageError("--set-on: a job has one task on one node; max_jobs is how many there are")
    executor.update_parameters(**given)
    return executor


def _whole(name: str, text: str | int) -> int:
    try:
        if (value := int(text)) > 0:
            return value
    except ValueError:
        pass
    raise UsageError(f"--set-on {name}={text}: expected a whole number of at least 1, got {text}")


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--set-on {name}={text}: expected a number, got {text}") from None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
