"""Evidence for the checks: training runs on a small problem (`Problem`), each performed once, on first use."""

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
"""Number of steps in the plain loop. It is not a multiple of the usual intervals at which optimizers refresh their
preconditioners, so the loop ends between two refreshes."""


@dataclass(frozen=True, eq=False)
class Ending:
    """The outcome of training in the engine: a result, or a description of the exception that ended the cohort."""

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
    """Number of parameters to which `step` assigned new memory."""
    drawn: tuple[str, ...]
    """Libraries whose global random generators were used by `step`."""


class Evidence:
    """Training runs on one problem, each performed when its result is first requested."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def alone(self) -> Ending:
        """The outcome of the trial when trained alone."""
        return self._alone()[0]

    @cached_property
    def again(self) -> tuple[Ending, list[str]]:
        """The outcome of a second, identical training run, and the libraries whose global random generators it used."""
        return self._alone()

    @cached_property
    def deterministic(self) -> bool:
        return difference(self.alone, self.again[0]) is None

    @cached_property
    def among(self) -> Ending:
        """The outcome of the trial when trained between trials with two other seeds."""
        return self._between({})[0]

    def among_diverged(self, changed: Mapping[str, Any]) -> tuple[Ending, bool]:
        """Train the trial between two trials that use other seeds and the settings in `changed`.

        Return the trial's outcome, and whether both neighbours diverged or failed.
        """
        return self._between(changed)

    @cached_property
    def plain(self) -> PlainSteps:
        """The side effects of the first `PLAIN_STEPS` steps in a plain loop."""
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
        """A pair: the trial's outcome when it is interrupted after its first task and resumed, and None.

        If the trial cannot be resumed, the pair is the outcome of the uninterrupted trial and the reason.
        """
        kept: list[Interim] = []
        trials = [self.problem.trial(SEED)]
        self.problem.train(trials, lambda take: kept.extend(take()))
        assert kept, "no interim state was kept"
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
        except Exception as error:  # an optimizer in a shared lane raises for its entire cohort
            ending = Ending(None, self.problem.in_words(error))
        return ending, draws.moved(GlobalDraws.now())

    def _between(self, changed: Mapping[str, Any]) -> tuple[Ending, bool]:
        problem, (before, after) = self.problem, COMPANIONS
        trials = [problem.trial(before, changed), problem.trial(SEED), problem.trial(after, changed)]
        try:
            results = [Ending(result) for result in problem.train(trials)]
        except Exception as error:  # as in `_alone`
            return Ending(None, self.problem.in_words(error)), True
        return results[1], all(results[i].row.status != "ok" for i in (0, 2))


def difference(a: Ending, b: Ending) -> str | None:
    """Describe how two endings differ, ignoring timings and choices based on timings; return None if they agree."""
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
    # repr keeps every bit of a float and, unlike `==`, treats NaN as equal to NaN
    clocked = ("_seconds", "gradients")  # the method of computing gradients is chosen by timing
    return [
        repr({name: value for name, value in vars(row).items() if not name.endswith(clocked)}) for row in result.rows
    ]


def _copy(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.detach().clone()  # a frozen parameter has none


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)
