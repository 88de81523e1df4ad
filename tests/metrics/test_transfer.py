"""Transfer to another dataset: the probe agrees with plain ridge regression and has the same invariances."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench.metrics.catalog import select
from optbench.metrics.measuring import take
from optbench.metrics.trained import Transferred
from optbench.metrics.transfer import PENALTIES, Labelled, Probe, transfer_accuracy

torch.set_num_threads(1)


def draws(seed: int, separation: float = 1.0, width: int = 6) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    means = separation * torch.randn(4, width, generator=generator)

    def part(count: int) -> Labelled:
        targets = torch.randint(4, (count,), generator=generator)
        return Labelled(means[targets] + torch.randn(count, width, generator=generator), targets)

    return Probe(part(60), part(80), part(300), 4)


def plainly(probe: Probe) -> float:
    """Solve the normal equations with an unpenalised intercept for each penalty separately."""
    x, y = probe.train.features.double().numpy(), np.eye(probe.classes)[probe.train.targets.numpy()]
    scale = np.trace(np.cov(x.T, bias=True)) / x.shape[1]

    def accuracy(penalty: float, part: Labelled) -> float:
        design = np.column_stack([x, np.ones(len(x))])
        ridge = len(x) * penalty * scale * np.diag([*np.ones(x.shape[1]), 0.0])
        b = np.linalg.solve(design.T @ design + ridge, design.T @ y)
        here = np.column_stack([part.features.double().numpy(), np.ones(len(part.features))])
        return float(((here @ b).argmax(1) == part.targets.numpy()).mean())

    best = max(PENALTIES, key=lambda penalty: (accuracy(penalty, probe.validation), penalty))
    return accuracy(best, probe.test)


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_is_ridge_regression_with_the_best_penalty_on_validation_data(seed: int) -> None:
    probe = draws(seed)
    assert transfer_accuracy(probe) == pytest.approx(plainly(probe), abs=1e-12)
    assert 0.3 < transfer_accuracy(probe) < 0.95


def test_the_probe_has_its_extreme_values_and_invariances() -> None:
    assert transfer_accuracy(draws(0, separation=50.0)) == 1.0
    assert transfer_accuracy(draws(0, separation=0.0)) == pytest.approx(0.25, abs=0.1)
    probe = draws(1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q

    def changed(part: Labelled) -> Labelled:
        return dataclasses.replace(part, features=100 * part.features.double() @ turn + 7)

    other = Probe(changed(probe.train), changed(probe.validation), changed(probe.test), 4)
    assert transfer_accuracy(other) == pytest.approx(transfer_accuracy(probe), abs=1e-12)


@pytest.mark.parametrize(
    ("features", "note"),
    [
        (torch.zeros(60, 6), "the features do not vary"),
        (torch.full((60, 6), math.inf), "the features are not finite"),
    ],
)
def test_undefined_values_have_a_note(features: Tensor, note: str) -> None:
    probe = draws(0)
    probe = dataclasses.replace(probe, train=dataclasses.replace(probe.train, features=features))
    (found,) = take(select(["transfer_accuracy"]), Transferred(probe))
    assert (found.value, found.note) == (None, note)
