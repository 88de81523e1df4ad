"""The model contract: a model can be built for, and trained on, at least one form of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from optbench.checks.evidence import Evidence
from optbench.checks.finding import Finding, Found
from optbench.checks.optimizer import Check, alone_and_among_others, check, deterministic, lowers_the_loss, resume
from optbench.checks.problem import SMALL, Problem
from optbench.checks.samples import first_that_fits, reasons
from optbench.data import Dataset
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import METHOD
from optbench.engine.gradients import Ways
from optbench.kinds import MODELS
from optbench.suite.schema import ModelSettings

RATE = 3e-3
"""Learning rate for training the model with Adam."""


def findings(target: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Try each form of sample data in turn, and train the model on the first form that it accepts.

    Raises:
        KindError, ValidationError: the model cannot be loaded, or rejects its settings.
    """
    MODELS.complete(target, settings)
    given = ModelSettings.of(target, **settings)

    def problem(dataset: Dataset) -> Problem:
        return Problem.of("adam", {"lr": RATE}, SMALL, given, dataset)

    return _lines(problem)


def _lines(make: Callable[[Dataset], Problem]) -> Iterator[Finding]:
    found = first_that_fits(make)
    if isinstance(found, str):
        yield Finding("builds", "failed", found)
        return
    scope = f"on {found.name} of shape {found.shape}"
    if found.rejected:
        scope += f", after rejecting {' and '.join(found.rejected)}"
    built = f"for {found.name}: inputs {found.shape}, {found.dataset.inputs.dtype}"
    yield Finding("builds", "passed", built, scope)
    if found.rejected:
        yield Finding("rejects", "information", reasons(found.rejected))
    yield from check(found.made, CHECKS)


def _output(evidence: Evidence) -> Found:
    problem = evidence.problem
    logits = problem.network(problem.start(0))(problem.inputs[:4].clone())
    return "passed", f"({', '.join(map(str, ('B', *logits.shape[1:])))}), float32 and finite"


def _features(evidence: Evidence) -> Found:
    where = evidence.problem.blueprint.features
    return "passed", "what features(x) returns" if where == METHOD else f"the input of the last nn.Linear, '{where}'"


def _initialisation(evidence: Evidence) -> Found:
    one, same, other = (evidence.problem.start(seed) for seed in (0, 0, 1))
    if wrong := [name for name in one if not torch.equal(one[name], same[name])]:
        return "failed", f"'{wrong[0]}' differs between two models made with the same seed; draw from torch's generator"
    if all(torch.equal(one[name], other[name]) for name in one):
        return "information", "the same for every seed, so seeds differ only in data order"
    return "passed", "bit-identical for one seed, different for another"


def _lockstep(evidence: Evidence) -> Found:
    problem = evidence.problem
    normalise = Normaliser.of(problem.workspace.dataset, problem.workspace.experiment.protocol, torch.device("cpu"))
    why = Ways(problem.blueprint, problem.workspace.family.parts.train, normalise, 0, together=True).alone
    if why is None:
        return "information", "members can be trained together, as they are on accelerators"
    return "information", f"trained member by member ({why}): slower on accelerators, but the results are correct"


CHECKS = (
    Check("output", _output),
    Check("features", _features),
    Check("initialisation", _initialisation),
    Check("lowers the loss", lowers_the_loss),
    Check("deterministic", deterministic, after="training"),
    Check("resume", resume, after="determinism"),
    Check("independence", alone_and_among_others, after="determinism"),
    Check("lock-step", _lockstep),
)
