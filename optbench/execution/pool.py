"""Workers, wherever they run: each trains cohorts, or compares solutions, with one thread; the parent writes what they
find.

One thread each, because a product split over threads sums in another order than the same product alone: with one
thread a trial's bits do not depend on its cohort, and the cores are kept busy by processes instead.
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
"""What the pool passes on."""

PIECES = 8
"""Into so many, where there are as many, goes what a process had that died: the training to blame costs few others."""
TRIES_ELSEWHERE = 2
"""So often a unit whose worker was lost is tried again, whole: a machine that goes down is not its fault."""
LOST_AT_START = 3
"""So many workers for each place may be lost one after another without any that became ready."""


@dataclass
class _Slot:
    """A worker, what it is doing, and which user's code has run in its process."""

    place: int
    worker: Worker
    unit: Unit | None = None
    user_code: frozenset[str] = frozenset()

    def serves(self, unit: Unit) -> bool:
        """True if no user's code but the unit's own has run in its process."""
        return not self.user_code or self.user_code == unit.user_code

    def next_of(self, waiting: Sequence[Unit]) -> int | None:
        """The place of the last of the waiting units that it serves; None where it serves none."""
        return next((i for i in reversed(range(len(waiting))) if self.serves(waiting[i])), None)

    def give(self, unit: Unit, job: Job) -> None:
        self.unit = unit
        self.user_code |= unit.user_code
        self.worker.give(unit, job)

    def renew(self) -> _Slot:
        """Replace its process."""
        self.unit = None
        self.user_code = frozenset()
        self.worker.renew()
        return self


class Pool:
    """Up to as many workers as a backend has places for, started when there is work; they stay until it is closed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._slots: list[_Slot] = []
        self._refused: dict[int, str] = {}  # by place, why
        self._said: set[str] = set()
        self._lost: Counter[str] = Counter()  # by unit, how often its worker was lost
        self._lost_at_start = 0

    def train(
        self,
        units: Sequence[Train],
        job: Job,
        more: Callable[[], Sequence[Compare]] = tuple,
        places: Callable[[Cohort], Mapping[str, Begun]] = lambda cohort: {},
        held: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Iterator[Passed]:
        """Do the units, in order of starting; events as they come.

        more: what there is to compare by now; asked at first and after every end, and done when all training has begun.
        places: where trials of a piece resume by now. held: makes an interrupt wait; entered before an event is read
        from a worker, left after the caller has taken it, so that none is lost in between. Units that are too large for
        memory are halved, what a process had that died (killed, out of memory) is tried once more, in pieces down to a
        training alone, and what was lost with a machine is tried again as it was.

        Raises:
            OptbenchError: what a worker raised because of the user's settings; or there is no worker for the rest.
        """
        waiting: list[Unit] = [*reversed(more()), *reversed(units)]
        died_before: set[str] = set()
        self._lost.clear()
        self._backend.begin(job, waiting)
        self._hand_out(waiting, job)
        while waiting or any(slot.unit for slot in self._slots):
            listened = {id(slot.worker): slot for slot in self._slots if slot.unit or not slot.worker.is_ready}
            for worker in self._backend.wait([slot.worker for slot in listened.values()]):
                slot = listened[id(worker)]
                unit = slot.unit
                with held():
                    event = worker.receive()
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
                        note = f"tried again after its worker process had died ({event.cause})"
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
                    if unit is not None and (lost := self._lost[unit.id] + 1) > TRIES_ELSEWHERE:
                        yield Failed(unit, "WorkerLost", f"its worker was lost {lost} times ({event.cause})")
                    elif unit is not None:
                        self._lost[unit.id] = lost
                        waiting.append(_again(unit, places))
                        yield Said(f"a worker was lost ({event.cause}): {_size(unit)} again elsewhere")
                elif isinstance(event, Divide):
                    slot.unit = None
                    waiting += reversed(halved(event, places))
                elif not isinstance(event, Finished | Compared | Failed):
                    continue
                waiting[:0] = reversed(more())
                self._hand_out(waiting, job)

    @staticmethod
    def _hand_on(slot: _Slot, waiting: list[Unit], job: Job) -> None:
        """Give an idle worker the next unit that its process serves, so that it has work while results are written.

        What it found last is not written yet, so nothing here may take long or fail: processes are neither stopped nor
        started.
        """
        if (served := slot.next_of(waiting)) is not None:
            slot.give(waiting.pop(served), job)

    def _hand_out(self, waiting: list[Unit], job: Job) -> None:
        """Give waiting units, the last first, to idle workers, and start workers while there are more units than those.

        A user's code can change its process in ways that cannot be undone (patch PyTorch, start threads, leave
        modules), so a process that has run it gets no other unit: one that runs other code starts a process of its own.
        """
        idle = [slot for slot in self._slots if slot.unit is None]
        taken = {slot.place for slot in self._slots} | self._refused.keys()
        free = [place for place in range(self._backend.jobs) if place not in taken]
        more = max(0, len(waiting) - len(idle))
        new = [_Slot(place, self._backend.start(place)) for place in free[:more]]
        self._slots += new
        # Those first that can serve something as they are, so that no process is replaced in vain.
        ready = [slot for slot in (*idle, *new) if slot.worker.is_ready]
        for slot in sorted(ready, key=lambda slot: not any(map(slot.serves, waiting))):
            if not waiting:
                return
            served = slot.next_of(waiting)
            unit = waiting.pop(-1 if served is None else served)
            (slot if served is not None else slot.renew()).give(unit, job)

    def _let_go(self, slot: _Slot, event: Lost) -> None:
        """Give up a worker that is lost.

        Raises:
            WorkerError: one after another is lost before it is ready.
        """
        self._slots.remove(slot)
        self._backend.discard(slot.worker)
        if not slot.worker.is_ready:
            self._lost_at_start += 1
            if self._lost_at_start > LOST_AT_START * self._backend.jobs:
                raise WorkerError(f"workers are lost before they are ready: {event.cause}")

    def _refuse(self, slot: _Slot, event: Refused) -> None:
        """Give up a worker that must not train, and its place.

        Raises:
            WorkerError: there is no place left.
        """
        self._slots.remove(slot)
        self._backend.discard(slot.worker)
        self._refused[slot.place] = event.reason
        if len(self._refused) == self._backend.jobs:
            raise WorkerError(event.reason)

    def _unsaid(self) -> Iterator[Said]:
        """Why workers were refused, once; not before there is one to continue with, else it is an error."""
        if any(slot.worker.is_ready for slot in self._slots):
            for reason in dict.fromkeys(self._refused.values()):
                if reason not in self._said:
                    self._said.add(reason)
                    yield Said(reason)

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._slots.clear()
        self._backend.close()

    def kill(self) -> None:
        """End the workers without waiting for them."""
        self._backend.kill()


_OF_THE_POOL = (Divide, OptbenchError, Died, Lost, Ready, Refused, Saved)
"""What a worker sends that is not passed on."""


def _again(unit: Unit, places: Callable[[Cohort], Mapping[str, Begun]]) -> Unit:
    """The same unit, from where it can be resumed by now."""
    return Train(unit.cohort, places(unit.cohort), unit.note) if isinstance(unit, Train) else unit


def _size(unit: Unit) -> str:
    if isinstance(unit, Train):
        trials = len(unit.cohort.trials)
        return f"{count(trials, 'trial')} {'is' if trials == 1 else 'are'} trained"
    return "solutions are compared"
