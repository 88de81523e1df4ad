"""The workers of a run, which train cohorts and compare solutions. The main process writes their results.

A worker uses one thread, because splitting a matrix product over threads changes the order of summation. With one
thread, a trial's results are the same, bit for bit, in any cohort. Several processes keep all cores busy instead.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from optbench.counting import count
from optbench.errors import OptbenchError, WorkerError
from optbench.execution.backend import Backend, Died, Lost, Ready, Refused, Worker
from optbench.execution.messages import (
    Arrived,
    Compare,
    Compared,
    Divide,
    Failed,
    Finished,
    Job,
    Said,
    Saved,
    Train,
    Unit,
    halved,
)
from optbench.plan import Cohort
from optbench.store.interim import Begun

if TYPE_CHECKING:
    from optbench.engine import Progress

Passed: TypeAlias = "Progress | Finished | Compared | Failed | Arrived | Said"
"""Messages that the pool passes on to its caller."""

PIECES = 8
"""Maximum number of pieces into which a cohort is cut after its worker process died, so that the member that caused the
death shares a piece with few others."""
TRIES_ELSEWHERE = 2
"""Maximum number of times a unit is retried, undivided, after its worker was lost for an unrelated reason. Losses
before the unit's latest saved state do not count."""
LOST_AT_START = 3
"""Maximum number of workers that can be lost in a row before any worker is ready, as a multiple of `Backend.jobs`."""


@dataclass
class _Slot:
    """A worker, its current unit, and the users' code that has run in its process.

    rested: True if the worker has sent nothing since it was last idle. If it is then reported as lost, this may have
        happened while it was idle, because messages from idle workers are not read.
    """

    place: int
    worker: Worker
    unit: Unit | None = None
    user_code: frozenset[str] = frozenset()
    rested: bool = False

    def serves(self, unit: Unit) -> bool:
        """Return whether the worker's process can run a unit: it has run no user's code, or exactly the unit's code."""
        return not self.user_code or self.user_code == unit.user_code

    def next_of(self, waiting: Sequence[Unit]) -> int | None:
        """Return the index of the last waiting unit for which `serves` is true; None if there is none."""
        return next((i for i in reversed(range(len(waiting))) if self.serves(waiting[i])), None)

    def give(self, unit: Unit, job: Job) -> None:
        self.unit = unit
        self.user_code |= unit.user_code
        self.worker.give(unit, job)

    def renew(self) -> _Slot:
        """Replace the worker's process."""
        self.unit = None
        self.user_code = frozenset()
        self.worker.renew()
        return self


class Pool:
    """The workers of a backend, started when there is work for them and kept until the pool is closed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._slots: list[_Slot] = []
        self._refused: dict[int, str] = {}  # reasons, by place
        self._said: set[str] = set()
        self._lost: Counter[str] = Counter()  # number of workers lost, by unit
        self._lost_at_start = 0
        self._take: Callable[[list[Unit], int], Unit] = list.pop

    def train(
        self,
        units: Sequence[Train],
        job: Job,
        more: Callable[[], Sequence[Compare]] = tuple,
        places: Callable[[Cohort], Mapping[str, Begun]] = lambda cohort: {},
        held: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        take: Callable[[list[Unit], int], Unit] = list.pop,
    ) -> Iterator[Passed]:
        """Process the units, starting them in order, and yield events as they occur.

        more: a function that returns the comparisons that have become ready, called at the start and after every unit.
            Comparisons are started after all training units.
        places: a function that returns the states from which the trials of a piece would resume now, by trial id.
        held: a function that returns a context in which interrupts are delayed. The context is entered before an event
            is read from a worker and left after the caller has processed the event, so that no event is lost.
        take: a function that removes a unit, given its index, from the list of waiting units and returns it. The units
            are started from the end of the list. The function may also move trainings from one waiting unit to another.

        Units that are too large for memory, or in which a user's code raises an exception, are halved. If a worker's
        process dies (is killed, or exhausts memory), its unit is retried in smaller pieces. A member fails if the
        process dies again while training this member alone. A comparison is retried once. If a worker is lost with its
        machine, its unit is retried undivided, at most `TRIES_ELSEWHERE` times.

        Raises:
            OptbenchError: a worker raised it because of the user's settings, or no worker is left for the remaining
                units.
        """
        waiting: list[Unit] = [*reversed(more()), *reversed(units)]
        died_before: set[str] = set()
        self._lost.clear()
        self._take = take
        self._backend.begin(job, waiting)
        self._hand_out(waiting, job)
        while waiting or any(slot.unit for slot in self._slots):
            listened = {id(slot.worker): slot for slot in self._slots if slot.unit or not slot.worker.is_ready}
            for worker in self._backend.wait([slot.worker for slot in listened.values()]):
                slot = listened[id(worker)]
                unit = slot.unit
                with held():
                    event = worker.receive()
                    slot.rested = slot.rested and (event is None or isinstance(event, Lost))
                    if isinstance(event, Finished | Compared | Failed):
                        slot.unit = None
                        self._hand_on(slot, waiting, job)
                    if event is not None and not isinstance(event, _OF_THE_POOL):
                        yield event
                if isinstance(event, OptbenchError):
                    raise event
                if isinstance(event, Ready):
                    self._lost_at_start = 0
                    yield from self._unsaid()
                elif isinstance(event, Died):
                    slot.renew()
                    if unit is None:
                        continue
                    if unit.id in died_before:
                        yield Failed(unit, "WorkerDied", f"the worker process died twice ({event.cause})")
                    else:
                        note = f"trained again because its worker process had died ({event.cause})"
                        pieces = unit.cohort.split(PIECES) if isinstance(unit, Train) else []
                        waiting += [Train(piece, places(piece), note) for piece in reversed(pieces)] or [unit]
                        singles = {piece.id for piece in pieces if len(piece.trainings) == 1}
                        died_before |= singles if pieces else {unit.id}
                elif isinstance(event, Refused):
                    waiting += [unit] if unit is not None else []
                    self._refuse(slot, event)
                    yield from self._unsaid()
                elif isinstance(event, Lost):
                    self._let_go(slot, event)
                    if unit is not None:
                        again = _again(unit, places)
                        before = 0 if _tasks(again) > _tasks(unit) else self._lost[unit.id]
                        self._lost[unit.id] = lost = before + (not slot.rested)
                        if lost > TRIES_ELSEWHERE:
                            yield Failed(unit, "WorkerLost", f"its worker was lost {lost} times ({event.cause})")
                        else:
                            waiting.append(again)
                            yield Said(f"a worker was lost ({event.cause}): {_size(unit)} again elsewhere")
                elif isinstance(event, Divide):
                    slot.unit = None
                    waiting += reversed(halved(event, places))
                elif not isinstance(event, Finished | Compared | Failed):
                    continue
                waiting[:0] = reversed(more())
                self._hand_out(waiting, job)

    def _hand_on(self, slot: _Slot, waiting: list[Unit], job: Job) -> None:
        """Give an idle worker the next unit that its process can run, so that it is busy while results are written.

        The worker's last results have not been written yet, so this must be fast and must not fail. Therefore, no
        process is stopped or started.
        """
        if (served := slot.next_of(waiting)) is not None:
            slot.give(self._take(waiting, served), job)

    def _hand_out(self, waiting: list[Unit], job: Job) -> None:
        """Give waiting units, last first, to idle workers, and start workers if there are more units than idle workers.

        A user's code can change its process irreversibly (patch PyTorch, start threads, leave modules behind).
        Therefore, a process that has run such code is given only units with the same code. Other units get a new
        process.
        """
        idle = [slot for slot in self._slots if slot.unit is None]
        taken = {slot.place for slot in self._slots} | self._refused.keys()
        free = [place for place in range(self._backend.jobs) if place not in taken]
        more = max(0, len(waiting) - len(idle))
        new = [_Slot(place, self._backend.start(place)) for place in free[:more]]
        self._slots += new
        # Workers that serve some unit with their current process come first, so that none is replaced unnecessarily.
        ready = [slot for slot in (*idle, *new) if slot.worker.is_ready]
        for slot in sorted(ready, key=lambda slot: not any(map(slot.serves, waiting))):
            if not waiting:
                slot.rested = True
                continue
            served = slot.next_of(waiting)
            unit = self._take(waiting, len(waiting) - 1 if served is None else served)
            (slot if served is not None else slot.renew()).give(unit, job)

    def _let_go(self, slot: _Slot, event: Lost) -> None:
        """Remove a worker that was lost.

        Raises:
            WorkerError: too many workers in a row were lost before any was ready.
        """
        self._slots.remove(slot)
        self._backend.discard(slot.worker)
        if not slot.worker.is_ready:
            self._lost_at_start += 1
            if self._lost_at_start > LOST_AT_START * self._backend.jobs:
                raise WorkerError(f"workers were lost before they were ready: {event.cause}")

    def _refuse(self, slot: _Slot, event: Refused) -> None:
        """Remove a worker that must not train for this run, and stop using its place.

        Raises:
            WorkerError: no place is left.
        """
        self._slots.remove(slot)
        self._backend.discard(slot.worker)
        self._refused[slot.place] = event.reason
        if len(self._refused) == self._backend.jobs:
            raise WorkerError(event.reason)

    def _unsaid(self) -> Iterator[Said]:
        """Yield the reasons for which workers were refused, each only once, as soon as any worker is ready.

        If all workers are refused, `_refuse` raises an error instead.
        """
        if any(slot.worker.is_ready for slot in self._slots):
            for reason in dict.fromkeys(self._refused.values()):
                if reason not in self._said:
                    self._said.add(reason)
                    yield Said(reason)

    def close(self) -> None:
        """End the workers, even if they are busy."""
        self._slots.clear()
        self._backend.close()

    def kill(self) -> None:
        """End the workers without waiting for them."""
        self._backend.kill()


_OF_THE_POOL = (Divide, OptbenchError, Died, Lost, Ready, Refused, Saved)
"""Messages of workers that the pool does not pass on."""


def _again(unit: Unit, places: Callable[[Cohort], Mapping[str, Begun]]) -> Unit:
    """Return a copy of the unit that resumes from the latest saved states. Comparisons are returned unchanged."""
    return Train(unit.cohort, places(unit.cohort), unit.note) if isinstance(unit, Train) else unit


def _tasks(unit: Unit) -> int:
    """Return the total number of tasks that a unit's trials had finished in the states from which they resume."""
    return sum(begun.task for begun in unit.begun.values()) if isinstance(unit, Train) else 0


def _size(unit: Unit) -> str:
    if isinstance(unit, Train):
        trials = len(unit.cohort.trials)
        return f"{count(trials, 'trial')} {'is' if trials == 1 else 'are'} trained"
    return "solutions are compared"
