"""The interface between the pool and its workers, which run on this machine or on a cluster.

A backend starts workers, sends them units of work and receives their messages. The pool decides which unit a worker
gets, which units are retried, and when a unit is abandoned. These decisions do not depend on the backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from optbench.errors import OptbenchError
from optbench.execution.messages import Answer, Arrived, Job, Said, Saved, Unit

if TYPE_CHECKING:
    from optbench.engine import Progress


@dataclass(frozen=True)
class Died:
    """A message that the worker's process has ended, possibly because of its current unit.

    The worker can be renewed.
    """

    cause: str


@dataclass(frozen=True)
class Lost:
    """A message that the worker counts as lost for a reason unrelated to its unit, e.g. a failure of its machine."""

    cause: str


@dataclass(frozen=True)
class Ready:
    """A message that the worker has started and accepts units from now on."""


@dataclass(frozen=True)
class Refused:
    """A message that the worker cannot start, or must not train for this run.

    No other worker is started in its place.
    """

    reason: str


Message: TypeAlias = "Progress | Answer | Saved | Arrived | Said | OptbenchError | Died | Lost | Ready | Refused | None"
"""A message read from a worker. An OptbenchError is caused by the user's settings; None means that no message has
arrived."""


class Worker(Protocol):
    """A worker, which processes one unit at a time."""

    @property
    def is_ready(self) -> bool:
        """True once the worker accepts units: from the start or, on a cluster, after its message `Ready`."""

    def give(self, unit: Unit, job: Job) -> None:
        """Submit a unit. If the worker is lost, no exception is raised here; `receive` reports the loss."""

    def receive(self) -> Message:
        """Return the worker's next message. Call this only for workers that `Backend.wait` has returned."""

    def renew(self) -> None:
        """Cancel the worker's unit, if any, and continue in a new process in which no user's code has run."""


class Backend(Protocol):
    """The interface of a backend, which runs up to `jobs` workers at a time."""

    @property
    def device(self) -> str:
        """The workers' device.

        On a cluster, `cpu` or `cuda`; on this machine, the device of the first worker, e.g. `cuda:0`.
        """

    @property
    def jobs(self) -> int:
        """The maximum number of concurrent workers."""

    def begin(self, job: Job, units: Sequence[Unit]) -> None:
        """Prepare the data that workers need for a job, before the job's first unit is submitted."""

    def start(self, place: int) -> Worker:
        """Start a worker. place: a number from 0 to `jobs` - 1 that no current worker has."""

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Wait for messages; return those of `workers` that have sent any, or an empty sequence after a timeout."""

    def discard(self, worker: Worker) -> None:
        """Remove a worker that was lost or refused."""

    def close(self) -> None:
        """End all workers, even if they are busy."""

    def kill(self) -> None:
        """End all workers without waiting for them. This can be called while another method is running."""
