"""Where workers run, as the pool sees it: one interface for processes of this machine and for those of a cluster.

A backend starts workers, passes units to them and what they send back. Which unit a worker gets, what is tried again,
and when a unit is given up is decided by the pool, alike for every backend.
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
    """The process of a worker ended in the middle of a unit, which may be to blame; the worker can be renewed."""

    cause: str


@dataclass(frozen=True)
class Lost:
    """The worker is gone with its machine or connection, which no unit is to blame for."""

    cause: str


@dataclass(frozen=True)
class Ready:
    """The worker has started and takes units from now on."""


@dataclass(frozen=True)
class Refused:
    """The worker has started, but must not train for this run, as no other one in its place."""

    reason: str


Message: TypeAlias = "Progress | Answer | Saved | Arrived | Said | OptbenchError | Died | Lost | Ready | Refused | None"
"""What is read from a worker. OptbenchError: the user's settings are to blame. None: nothing yet."""


class Worker(Protocol):
    """Does one unit at a time."""

    @property
    def is_ready(self) -> bool:
        """True once it takes units: at once, or when it has said that it is ready."""

    def give(self, unit: Unit, job: Job) -> None:
        """Submit a unit. Raises nothing where the worker is gone: reading from it says so."""

    def receive(self) -> Message:
        """Return the next message of a worker that `Backend.wait` has returned."""

    def renew(self) -> None:
        """Cancel its unit, if it has any, and continue in a fresh process that no user's code has run in."""


class Backend(Protocol):
    """Starts workers, up to `jobs` at a time."""

    @property
    def device(self) -> str:
        """What all workers train on: `cpu`, `cuda:0`, or `cuda` where each has a GPU of its own."""

    @property
    def jobs(self) -> int:
        """How many workers there may be at a time."""

    def begin(self, job: Job, units: Sequence[Unit]) -> None:
        """Make ready what workers need for a job, before they are given the first of its units."""

    def start(self, place: int) -> Worker:
        """Start the worker of a place, 0..jobs-1, which has none."""

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Wait for messages of some of these workers; return those that have any, or none after a while."""

    def discard(self, worker: Worker) -> None:
        """Let go of a worker that is lost or refused."""

    def close(self) -> None:
        """End all workers, whatever they are doing."""

    def kill(self) -> None:
        """End all workers without waiting for them; called while anything else may be going on."""
