"""SAM limited to a number of steps: SAM until then, afterwards its base with the state kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.data import Dataset
from optbench.optimizers.sam import Sam
from tests.conftest import small_suite, train_suite, trial_row

BASE: dict[str, Any] = {"target": "adamw", "lr": 0.01}


class Problem:
    def __init__(self) -> None:
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.evaluations = 0

    def closure(self) -> Tensor:
        self.evaluations += 1
        self.w.grad = None
        loss = (self.w**4).sum()
        loss.backward()
        return loss.detach()

    def train(self, optimizer: Sam, steps: int) -> None:
        for _ in range(steps):
            self.closure()
            optimizer.step(self.closure)


def test_limited_sam_continues_as_its_base_with_the_state_kept() -> None:
    whole, parts = Problem(), Problem()
    ending, sam = Sam([whole.w], BASE, rho=0.1, steps=3), Sam([parts.w], BASE, rho=0.1)
    whole.train(ending, 3)
    parts.train(sam, 3)
    assert torch.equal(whole.w, parts.w)
    assert whole.evaluations == 6
    whole.train(ending, 4)
    for _ in range(4):
        parts.closure()
        sam.base.step()
    assert torch.equal(whole.w, parts.w)
    assert whole.evaluations == 6 + 4, "the base takes one gradient per step"


@pytest.mark.parametrize("before", [2, 5])
def test_limited_sam_continues_from_its_state(before: int) -> None:
    straight, resumed = Problem(), Problem()
    straight.train(Sam([straight.w], BASE, steps=3), 7)
    first = Sam([resumed.w], BASE, steps=3)
    resumed.train(first, before)
    second = Sam([resumed.w], BASE, steps=3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.train(second, 7 - before)
    assert torch.equal(straight.w, resumed.w)


def test_steps_are_counted_across_tasks_in_a_run(mnist: Dataset) -> None:
    base = {"target": "sgd", "lr": 0.05}
    optimizers = {"base": base, "sam": {"target": "sam", "base": base}, "ending": {"target": "sam", "base": base}}
    optimizers["ending"] |= {"steps": 1000}
    results = train_suite(small_suite(optimizers, seeds=1, max_epochs=1, early_stopping=None), mnist)
    found = {result.trial.optimizer: result.weights for result in results}
    assert all(trial_row(result).status == "ok" for result in results)
    ending, sam, plain = found["ending"], found["sam"], found["base"]
    assert ending is not None
    assert sam is not None
    assert plain is not None
    assert all(torch.equal(ending[name], sam[name]) for name in sam)
    assert not all(torch.equal(ending[name], plain[name]) for name in sam)
