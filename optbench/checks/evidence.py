"""The evidence for checks: trainings on the small problem, each run only once, on first use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from optbench.checks.global_draws import GlobalDraws
from optbench.checks.plain import PlainTraining
from optbench.checks.problem import Problem
from optbench.engine import TrialResult
from optbench.engine.interim import CannotResume, Interim
from optbench.store.tables import TrialRow

SEED = 0
COMPANIONS = (1, 2)
PLAIN_STEPS = 8
"""Number of steps in the plain loop; it is no multiple of the usual intervals, so the loop ends between refreshes."""


@dataclass(frozen=True, eq=False)
class Ending:
    """The end of a training in the engine: a result, or the description of an exception raised for the whole cohort."""

    result: TrialResult | None
    raised: str = ""

    @property
    def obstacle(self) -> str | None:
        """The reason why training did not finish; None if it did."""
        if self.result is None:
            return f"raised in training: {self.raised}"
        row = self.row
        if row.status == "failed":
            message = " ".join((row.error_message or "").split()) or "(no message)"
            return f"raised at step {row.last_step}: {row.error_type}: {message}"
        if row.status == "diverged":
            return f"diverged at step {row.last_step}: the loss or a weight is not finite"
        return None

    @property
    def row(self) -> TrialRow:
        assert self.result is not None
        return next(row for row in self.result.rows if isinstance(row, TrialRow))


@dataclass(frozen=True, eq=False)
class PlainSteps:
    """Side effects of a few steps in a plain loop."""

    training: PlainTraining
    changed_gradients: int
    """Number of parameters whose gradient was changed by `step`."""
    rebound: int
    """Number of parameters whose memory was replaced."""
    drawn: tuple[str, ...]
    """Libraries whose global random generators were used by `step`."""


class Evidence:
    """The trainings on one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def alone(self) -> Ending:
        """The trial trained alone."""
        return self._alone()[0]

    @cached_property
    def again(self) -> tuple[Ending, list[str]]:
        """The trial trained a second time, and the libraries whose global random generators the training used."""
        return self._alone()

    @cached_property
    def deterministic(self) -> bool:
        return difference(self.alone, self.again[0]) is None

    @cached_property
    def among(self) -> Ending:
        """The trial trained between two other seeds."""
        return self._between({})[0]

    def among_diverged(self, changed: Mapping[str, Any]) -> tuple[Ending, bool]:
        """Train the trial between two others with these settings; also return whether both diverged or failed."""
        return self._between(changed)

    @cached_property
    def plain(self) -> PlainSteps:
        """The first steps of a training in a plain loop."""
        training = PlainTraining(self.problem)
        training.begin_task()
        changed: set[int] = set()
        rebound: set[int] = set()
        drawn: dict[str, None] = {}
        for step in range(PLAIN_STEPS):
            training.gradients(step)
            kept = [_copy(p.grad) for p in training.parameters]
            places = [p.data_ptr() for p in training.parameters]
            with training.draws():
                before = GlobalDraws.now()
                training.step(step)
                drawn |= dict.fromkeys(before.moved(GlobalDraws.now()))
            for i, parameter in enumerate(training.parameters):
                if not _same(parameter.grad, kept[i]):
                    changed.add(i)
                if parameter.data_ptr() != places[i]:
                    rebound.add(i)
        return PlainSteps(training, len(changed), len(rebound), tuple(drawn))

    @cached_property
    def resumed(self) -> tuple[Ending, str | None]:
        """The trial interrupted after its first task and resumed, and the reason if it cannot be resumed."""
        kept: list[Interim] = []
        trials = [self.problem.trial(SEED)]
        self.problem.train(trials, lambda take: kept.extend(take()))
        assert kept, "it trained to its end"
        read = Interim.from_record(json.loads(json.dumps(kept[0].record())), kept[0].state, kept[0].rows)
        if read.refused is not None:
            return self.alone, read.refused
        try:
            return Ending(self.problem.train(trials, begun={trials[0].id: read})[0]), None
        except CannotResume as error:
            return self.alone, str(error)

    def _alone(self) -> tuple[Ending, list[str]]:
        draws = GlobalDraws.now()
        try:
            ending = Ending(self.problem.train([self.problem.trial(SEED)])[0])
        except Exception as error:  # an optimizer in a shared lane raises for its whole cohort
            ending = Ending(None, self.problem.in_words(error))
        return ending, draws.moved(GlobalDraws.now())

    def _between(self, changed: Mapping[str, Any]) -> tuple[Ending, bool]:
        """Train the trial between two others with changed settings; also return whether both diverged or failed."""
        problem, (before, after) = self.problem, COMPANIONS
        trials = [problem.trial(before, changed), problem.trial(SEED), problem.trial(after, changed)]
        try:
            results = [Ending(result) for result in problem.train(trials)]
        except Exception as error:  # as in `_alone`
            return Ending(None, self.problem.in_words(error)), True
        return results[1], all(results[i].row.status != "ok" for i in (0, 2))


def difference(a: Ending, b: Ending) -> str | None:
    """Describe how two endings differ, ignoring timings; return None if they agree bit for bit."""
    if a.obstacle or b.obstacle:
        return None if a.obstacle == b.obstacle else f"one of the two {b.obstacle or a.obstacle}"
    assert a.result is not None
    assert b.result is not None
    assert a.result.weights is not None
    assert b.result.weights is not None
    distance = largest_difference(a.result.weights, b.result.weights)
    if distance is not None:
        return f"weights differ by up to {distance:.2g}"
    if _timeless(a.result) != _timeless(b.result):
        return "the weights agree, but measurements during training differ"
    return None


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float | None:
    """Return the largest absolute difference between two sets of weights; None if they agree bit for bit."""
    if all(torch.equal(a[name], b[name]) for name in a):
        return None
    distances = [(a[name].double() - b[name].double()).abs().max().item() for name in a]
    return math.nan if any(map(math.isnan, distances)) else max(distances)


def _timeless(result: TrialResult) -> list[str]:
    # repr keeps every bit of a float, and unlike `==` treats NaN as equal to NaN
    clocked = ("_seconds", "gradients")  # the way to compute gradients is chosen by timing
    return [
        repr({name: value for name, value in vars(row).items() if not name.endswith(clocked)}) for row in result.rows
    ]


def _copy(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.detach().clone()  # a frozen parameter has none


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)
