"""Calls to users' metrics with copied arguments and per-trial seeds; process settings are restored after each call."""

from __future__ import annotations

import contextlib
import copy
import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optbench.data import Dataset
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.faults import of_the_machine
from optbench.engine.randomness import SEEDS, seeded
from optbench.engine.user_code import ended
from optbench.errors import UsageError
from optbench.isolation import isolated
from optbench.metrics import Metric
from optbench.metrics.measuring import Accuracy, Ask, Features, Reading, Weights, take
from optbench.metrics.own import RAISED
from optbench.metrics.trained import Model
from optbench.models import materialised
from optbench.streams import stream_seed
from optbench.suite.schema import ExperimentSettings
from optbench.targets import said

EXAMPLES, WIDTH = 512, 32
"""Numbers of examples and features in the random data on which metrics are tried."""


def asked(device: torch.device, suite_seed: int, trial_seed: int, purpose: str) -> Ask:
    """Return a function that calls users' metrics with a seed derived from `suite_seed`, `trial_seed` and `purpose`.

    If a metric raises an exception, the function returns NaN and a note.
    """
    seed = stream_seed(suite_seed, trial_seed, f"metrics/{purpose}") % SEEDS

    def ask(metric: Metric, arguments: Sequence[Any]) -> tuple[float, str | None]:
        function, copies = metric.function(), [_copied(argument) for argument in arguments]
        try:
            with contextlib.redirect_stdout(sys.stderr), seeded(seed, device), isolated():
                value = _number(function(*copies))
        except BaseException as error:
            said_of = error if isinstance(error, Exception) else ended(error)
            if not isinstance(said_of, Exception) or of_the_machine(said_of):
                raise said_of from error
            return math.nan, f"{RAISED} {said(said_of)}"
        return value, None if math.isfinite(value) else f"the function returned {value}"

    return ask


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _number(value: Any) -> float:
    if isinstance(value, Tensor | np.ndarray) and value.shape:
        raise TypeError(f"expected one number, got {type(value).__name__} of shape {tuple(value.shape)}")
    plain = value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise TypeError(f"expected one number, got {type(plain).__name__}")
    return float(plain)


def try_metrics(metrics: Sequence[Metric], experiment: ExperimentSettings, dataset: Dataset, tasks: int) -> None:
    """Call each user's metric once on random numbers and untrained networks, to find most faults before training.

    tasks: the number of tasks; 0 if unknown, in which case metrics of accuracies are not called.

    Raises:
        UsageError: a metric raises an exception or does not return a number.
    """
    own = [metric for metric in metrics if metric.is_users]
    draws, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    targets = torch.arange(EXAMPLES) % dataset.classes
    features, logits = (torch.randn(EXAMPLES, width, generator=draws) for width in (WIDTH, dataset.classes))
    readings: list[Reading] = [Features(features, targets, logits)]
    if tasks:
        accuracy = torch.rand(tasks + 1, tasks, generator=draws, dtype=torch.float64).numpy()
        readings.append(Accuracy(accuracy))
    inputs = Normaliser.of(dataset, experiment.protocol, cpu)(dataset.test.inputs[:EXAMPLES])
    for name in experiment.models:
        blueprint = Blueprint.of(experiment, name, dataset, f"models.{name}")
        network = materialised(blueprint.network, cpu).eval()
        blueprint.layout.copy_to(network, blueprint.layout.pack(blueprint.start(0, 0)))
        weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
        readings += [Weights(weights), Model(network, inputs, dataset.test.targets[:EXAMPLES])]
    for found in [found for reading in readings for found in take(own, reading, asked(cpu, 0, 0, "tried"))]:
        if found.note is not None and found.note.startswith(RAISED):
            target = next(metric.target for metric in own if metric.name == found.metric)
            raise UsageError(f"{target}: {found.note} (in a test call before training)")
