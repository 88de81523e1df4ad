"""The metric contract: a metric returns one number, which is the same for equal arguments."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from optbench.checks.finding import Finding, Found, lines
from optbench.checks.global_draws import GlobalDraws
from optbench.checks.problem import Problem
from optbench.engine.own_metrics import asked
from optbench.errors import UsageError
from optbench.metrics import Measurement, Metric, take
from optbench.metrics.measuring import Accuracy, Features, Reading, Weights
from optbench.metrics.own import METRIC_KINDS, RAISED, MetricSettings, resolve
from optbench.metrics.trained import Model

EXAMPLES, WIDTH, CLASSES, TASKS = 512, 32, 10, 3


@dataclass(frozen=True, eq=False)
class _Subject:
    metric: Metric

    @cached_property
    def reading(self) -> Reading | None:
        """The metric's input, random or from an untrained network; None if this kind of metric requires training."""
        draws = torch.Generator().manual_seed(0)
        targets = torch.arange(EXAMPLES) % CLASSES
        features = torch.randn(EXAMPLES, WIDTH, generator=draws).relu()
        accuracy = torch.rand(TASKS + 1, TASKS, generator=draws, dtype=torch.float64)
        problem = Problem.of("sgd", {"lr": 0.1})
        network = problem.network(problem.start(0)).eval()
        readings: list[Reading] = [
            Features(features, targets, torch.randn(EXAMPLES, CLASSES, generator=draws), {self.metric.place: None}),
            Accuracy(accuracy.numpy()),
            Weights({name: parameter.detach() for name, parameter in network.named_parameters()}),
            Model(network, problem.inputs, problem.labels),
        ]
        return next((reading for reading in readings if self.metric.kind in reading.kinds), None)

    @property
    def data(self) -> str:
        return "an untrained network" if isinstance(self.reading, Weights | Model) else "random numbers"

    @property
    def arguments(self) -> list[Any]:
        return [getattr(self.reading, name) for name in self.metric.reads]

    def take(self) -> list[Measurement]:
        if self.reading is None:
            raise UsageError(f"a metric of {self.metric.kind}, which can only be measured during training")
        found = take([self.metric], self.reading, asked(torch.device("cpu"), 0, 0, "checked"))
        return [one for one in found if one.metric == self.metric.name]  # some metrics have companions


def findings(target: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Check a metric on random numbers or an untrained network, depending on its kind.

    Raises:
        KindError: the metric cannot be loaded, or is not marked as a metric.
        ValidationError: the metric rejects the settings.
    """
    entry = MetricSettings(kind=target, **METRIC_KINDS.departures(target, settings))
    metric, *_ = resolve([entry])  # any companions come after it
    return lines(_Subject(metric), OF_USERS if entry.is_users else CHECKS)


def _of(subject: _Subject) -> Found:
    metric = subject.metric
    better = {"higher": "higher is better", "lower": "lower is better"}.get(metric.direction, "no preferred direction")
    where = f" at {metric.place.name}" if metric.place.name else ""
    unit, margin = f", in {metric.unit}" if metric.unit else "", f", margin {metric.margin:g}" if metric.margin else ""
    return "passed", f"{metric.kind} ({', '.join(metric.reads)}){where}; {better}{unit}{margin}"


def _number(subject: _Subject) -> Found:
    found = subject.take()
    if raised := next((m.note for m in found if m.note and m.note.startswith(RAISED)), None):
        return "failed", f"it {raised}"
    of_trial = found[-1]
    if of_trial.value is None:
        return "information", f"undefined on {subject.data}: {of_trial.note}"
    layers = f" ({len(found) - 1} layers, and all layers together)" if len(found) > 1 else ""
    return "passed", f"{of_trial.value:.6g} on {subject.data}{layers}"


def _same_twice(subject: _Subject) -> Found:
    one, other = subject.take(), subject.take()
    if repr(one) != repr(other):
        advice = "seed the metric's random generators and keep no state between calls"
        return "failed", f"two calls return {one[-1].value} and {other[-1].value}; {advice}"
    return "passed", "two calls return the same number"


def _leaves_inputs(subject: _Subject) -> Found:
    function, (given, kept) = subject.metric.function(), (copy.deepcopy(subject.arguments) for _ in range(2))
    before = GlobalDraws.now()
    function(*given)
    drawn = before.moved(GlobalDraws.now())
    draws = "".join(f"; it draws from {name}, which is seeded for each trial" for name in drawn)
    changed = [name for name, a, b in zip(subject.metric.reads, given, kept, strict=True) if not _equal(a, b)]
    if changed:
        changes = f"the metric changes its {' and '.join(changed)}"
        return "information", f"{changes}, which is harmless because it receives copies{draws}"
    return "passed", f"the metric does not change them{draws}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.nn.Module):
        a, b = a.state_dict(), b.state_dict()
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return torch.equal(torch.as_tensor(a), torch.as_tensor(b))


CHECKS = (("measures", _of), ("one number", _number), ("reproducible", _same_twice))
OF_USERS = (*CHECKS, ("arguments", _leaves_inputs))
