"""Workers on a Ray cluster, each an actor with one CPU or one GPU.

Inputs are sent through Ray's object store and results are returned by actor calls, so no files are shared. Ray is
imported when a cluster is joined.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from optbench.counting import count
from optbench.errors import CONTROL, DeviceError, WorkerError
from optbench.execution.agent import Agent, Hello
from optbench.execution.backend import Lost, Message, Ready, Refused, Worker
from optbench.execution.elsewhere import refusal
from optbench.execution.messages import Arrived, Job, Said, Unit
from optbench.execution.parcels import Parcel, datasets, job_for_elsewhere, pack, packed_dataset, pickled

HEARTBEAT = 2.0
"""Seconds after which a call of an actor's `receive` returns even without messages, so that other calls can run."""
STALLED = 30.0
"""Seconds without any ready worker after which the user is told that no CPU or GPU is free."""
ANSWER = 10.0
"""Seconds after which a cluster that does not answer is considered unreachable."""
CHECK = 5.0
"""Seconds between checks of whether the head node answers."""
GONE = 30.0
"""Seconds without an answer from the head node after which the run ends. Ray ends the process itself after 60 seconds,
with its own error message and without closing the run."""
AUTH_MODE = "RAY_AUTH_MODE"
PATIENCE = 5.0
"""Seconds that actors have to end by themselves before they are killed."""


class RayAgent(Agent):
    """The agent in an actor. The bytes of parcels that are sent to many actors are in Ray's object store."""

    def fetch(self, content: Any) -> bytes:
        if isinstance(content, bytes):
            return content
        import ray

        found: bytes = ray.get(content)
        return found


class RayCluster:
    """A `Backend` that joins a Ray cluster, or starts one on this machine if there is none."""

    def __init__(self, address: str | None, device: str, jobs: int | None, *, force: bool = False) -> None:
        """address: the address of the cluster to join. With None, join the cluster on this machine, or start one.

        Raises:
            DeviceError: the cluster has no such device.
            WorkerError: the cluster cannot be joined.
        """
        self._exits = contextlib.ExitStack()
        self._force = force
        self._workers: list[_RayWorker] = []
        self._job: tuple[Job, Job, Parcel] | None = None  # as submitted, and as sent to workers
        self._data: dict[str, Parcel] = {}
        self._none_since: float | None = None
        try:
            self._exits.enter_context(_joined(address, jobs))
            import ray

            found = ray.cluster_resources()
            cpus, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
            self.device = "cuda" if device == "cuda" or (device == "auto" and gpus) else "cpu"
            most = gpus if self.device == "cuda" else cpus
            if not most:
                raise DeviceError(
                    f"--device {device}: the Ray cluster has no {'GPU' if self.device == 'cuda' else 'CPU'}"
                )
            self.jobs = jobs or most
            needs = {"num_cpus": 0, "num_gpus": 1} if self.device == "cuda" else {"num_cpus": 1}
            head = ray.get_runtime_context().gcs_address
            # From outside the cluster, only the address of a Ray client can be reached.
            self._head = _Head(address if address is not None and address.startswith("ray://") else head)
            self._greeting = f"the Ray cluster is at {head}: {count(cpus, 'CPU')}, {count(gpus, 'GPU')}"
            self._actors = ray.remote(RayAgent).options(**needs, max_restarts=0, max_task_retries=0)
        except BaseException:
            self._exits.close()
            raise

    def begin(self, job: Job, units: Sequence[Unit]) -> None:
        import ray

        sent = job_for_elsewhere(job, units, force=self._force)
        parcel = Parcel.of(pickled(sent))
        self._job = job, sent, Parcel(parcel.sum, ray.put(parcel.content))
        for experiment in dict.fromkeys(unit.experiment for unit in units):
            for key, settings in datasets(job.suite.experiments[experiment]).items():
                if key not in self._data:
                    packed = Parcel.of(packed_dataset(settings, job.data_dir))
                    self._data[key] = Parcel(packed.sum, ray.put(packed.content))

    def start(self, place: int) -> Worker:
        self._workers.append(worker := _RayWorker(self))
        if self._greeting:
            worker.inbox.append(Said(self._greeting))
            self._greeting = ""
        return worker

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Wait for messages, as described in `Backend.wait`.

        Raises:
            WorkerError: the head node has not answered for `GONE` seconds.
        """
        import ray

        ours = [worker for worker in workers if isinstance(worker, _RayWorker)]
        self._head.check()
        self._notice_stall(ours)
        if filled := [worker for worker in ours if worker.inbox]:
            return filled
        pending = {worker.pending(): worker for worker in ours}
        if not pending:
            time.sleep(0.1)
            return []
        done, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
        if done:
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        return [pending[reference] for reference in done]

    def _notice_stall(self, workers: Sequence[_RayWorker]) -> None:
        """Report, once, that no CPU or GPU is free if there has been no ready worker for `STALLED` seconds."""
        if any(worker.is_ready for worker in self._workers) or not workers:
            self._none_since = None
        elif self._none_since is None:
            self._none_since = time.monotonic()
        elif time.monotonic() - self._none_since > STALLED:
            what = "GPU" if self.device == "cuda" else "CPU"
            workers[0].inbox.append(Said(f"waiting for the Ray cluster: no {what} is free for a worker"))
            self._none_since = float("inf")  # do not repeat the message until a worker has started

    def parcel(self, job: Job) -> Parcel:
        assert self._job is not None, "begin comes first"
        assert self._job[0] is job, "begin comes first"
        return self._job[2]

    def data(self, job: Job, experiment: str) -> dict[str, Parcel]:
        """Return the parcels with an experiment's datasets, by key."""
        return {key: self._data[key] for key in datasets(job.suite.experiments[experiment])}

    def actor(self) -> Any:
        """Start an actor, which waits until a CPU or GPU is free."""
        return self._actors.remote(self._process_device)

    @property
    def _process_device(self) -> str:
        return "cuda:0" if self.device == "cuda" else "cpu"

    def verdict(self, hello: Hello) -> Ready | Refused:
        """Return `Ready` if an actor may train for this run, else `Refused`."""
        reason = refusal(hello.versions, hello.host)
        return Ready() if reason is None or self._force else Refused(reason)

    def discard(self, worker: Worker) -> None:
        assert isinstance(worker, _RayWorker)
        worker.kill()
        self._workers.remove(worker)

    def close(self) -> None:
        import ray

        try:
            with contextlib.suppress(Exception):  # a node may be gone
                closing = [worker.actor.close.remote() for worker in self._workers if worker.is_ready]
                if closing:
                    ray.wait(closing, num_returns=len(closing), timeout=PATIENCE)
            for worker in self._workers:
                worker.kill()
        finally:
            self._workers.clear()
            self._exits.close()

    def kill(self) -> None:
        """Do nothing: actors end with this process, or with `close` if the process continues."""


class _RayWorker:
    """An actor, and the messages received from it."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self.is_ready = False
        self.actor = cluster.actor()
        self.inbox: deque[Message | Arrived | Said] = deque()
        self._pending: Any = None

    def pending(self) -> Any:
        """Return Ray's reference to the actor's next messages."""
        if self._pending is None:
            self._pending = self.actor.receive.remote(HEARTBEAT)
        return self._pending

    def give(self, unit: Unit, job: Job) -> None:
        sent, data = Parcel.of(pack(unit, job.interim)), self._cluster.data(job, unit.experiment)
        with contextlib.suppress(Exception):  # the actor is gone, which `receive` reports
            self.actor.give.remote(sent, self._cluster.parcel(job), data)

    def receive(self) -> Message | Arrived | Said:
        import ray

        if not self.inbox:
            reference, self._pending = self.pending(), None
            try:
                found = ray.get(reference)
            except ray.exceptions.RayError as error:
                return _fault(error)
            self.inbox.extend(self._cluster.verdict(one) if isinstance(one, Hello) else one for one in found)
        message = self.inbox.popleft() if self.inbox else None
        if isinstance(message, Ready):
            self.is_ready = True
        return message

    def renew(self) -> None:
        with contextlib.suppress(Exception):  # as in `give`
            self.actor.renew.remote()

    def kill(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # as in `give`
            ray.kill(self.actor)


class _Head:
    """The head node, whose loss ends a run: without it, Ray can neither start workers nor report that they are lost."""

    def __init__(self, address: str) -> None:
        """address: `host:port` of Ray's global control service, or the address `ray://host:port` that was joined."""
        self._address = address
        self._checked = time.monotonic()
        self._refused_since: float | None = None

    def check(self) -> None:
        """Check at most every `CHECK` seconds whether the node answers.

        Raises:
            WorkerError: it has not answered for `GONE` seconds, in at least two checks.
        """
        now = time.monotonic()
        if now - self._checked < CHECK:
            return
        self._checked = now
        try:
            _probe(self._address)
            self._refused_since = None
        except ConnectionError as error:
            if self._refused_since is None:
                self._refused_since = now
            elif now - self._refused_since > GONE:
                raise WorkerError(
                    f"lost contact with the head node of the Ray cluster ({self._address}): {error}"
                ) from error


def _fault(error: Exception) -> Lost | Refused:
    """Convert an error that Ray raised when reading a worker's messages to a message for the pool."""
    import ray

    lines = [line.strip() for line in CONTROL.sub("\n", str(error)).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayActorError) and getattr(error, "_actor_init_failed", False):
        return Refused(f"a worker cannot start on the Ray cluster: {lines[-1] if lines else error}")
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return Lost("its node is gone or cannot be reached")
    said = " ".join(lines)
    if "node has died" in said or "node was terminated" in said or "node failure" in said:
        return Lost("its node has died")
    host = next((line.removeprefix("ip: ") for line in lines if line.startswith("ip: ")), None)
    return Lost(f"its process on {host} has died" if host else lines[0] if lines else type(error).__name__)


@contextlib.contextmanager
def _joined(address: str | None, jobs: int | None) -> Iterator[None]:
    """Connect this process to a cluster for the duration of the block, unless it is already connected to one.

    Raises:
        WorkerError: the cluster cannot be joined.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    with _quiet():
        where = f"--on ray:{address}" if address else "--on ray"
        try:
            with _undisturbed():
                _connect(address, jobs)
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise WorkerError(f"{where}: cannot join: {lines[0] if lines else type(error).__name__}") from error
        try:
            yield
        finally:
            with _undisturbed():
                ray.shutdown()


def _connect(address: str | None, jobs: int | None) -> None:
    import ray

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        try:
            ray.init(address="auto", **settings)
            return
        except ConnectionError:
            from optbench.engine.device import cores

            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports without the user's consent
            ray.init(address="local", num_cpus=jobs or cores(), include_dashboard=False, **settings)
    else:
        _probe(address)
        try:
            ray.init(address=address, **settings)
        except ConnectionError as error:
            if AUTH_MODE in os.environ:
                raise
            # Clusters require a token by default since Ray 2.61, and many do since 2.59.
            reason = str(error).strip().partition("\n")[0]
            raise ConnectionError(f"{reason}; if the cluster requires a token, set {AUTH_MODE}=token") from error


def _probe(address: str) -> None:
    """Raise ConnectionError if nothing listens at an address; Ray itself would keep trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except OSError as error:
        raise ConnectionError(f"no answer from this address: {error.strerror or error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Ray's output in the block. Ray would write cluster errors to standard output, which is for results."""
    from ray._private import worker

    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Suppress warnings in the block, such as those about future versions of Ray.

    At the end of the block, restore the signal handlers that Ray has replaced.
    """
    numbers = [signal.SIGINT, signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None is a handler that was not set from Python
                signal.signal(number, handler)
