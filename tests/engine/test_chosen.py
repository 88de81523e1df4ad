"""The way to gradients on a CPU is chosen by the clock, and no result depends on it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench.data import Dataset, InputSpec
from optbench.engine.gradients.chosen import CHECKED, MEMORY, TRIED, Choice, _Together
from optbench.engine.members import TrialResult
from optbench.kinds import calling
from optbench.suite import Suite
from tests import own_models
from tests.conftest import same_bits, small_suite, train_suite, trial_row

SMALL: dict[str, Any] = {"train_examples": 320, "test_examples": 60, "validation_examples": 60, "max_epochs": 1}


class NoBiases(nn.Module):
    """A transformer of two layers over the rows of an image: bits by `torch.func` are those of each member alone."""

    def __init__(self, inputs: InputSpec, outputs: int, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs.shape[-1], width, bias=False)
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width, bias=False) for _ in range(2)])
        self.mlps = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(2)])
        self.head = nn.Linear(width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        for qkv, mlp in zip(self.qkv, self.mlps, strict=True):
            q, k, v = qkv(x).chunk(3, -1)
            x = x + (q @ k.mT / 3).softmax(-1) @ v
            x = x + mlp(x).relu()
        return self.head(x.mean(1))


@pytest.fixture
def suite_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[nn.Module] | None], Suite]:
    """A suite of three seeds for a user's model, or for a CNN of ours."""

    def suite(model: type[nn.Module] | None) -> Suite:
        if model is not None:

            def build(settings: object, inputs: InputSpec, outputs: int, seed: int = 0) -> nn.Module:
                with calling(seed):
                    return model(inputs, outputs)

            monkeypatch.setattr("optbench.engine.blueprint.build", build)
        cnn = {"kind": "cnn", "channels": [4], "hidden": 16}
        return small_suite({"adamw": {"target": "adamw", "lr": 0.02}}, model=cnn, **SMALL)

    return suite


def ways(results: list[TrialResult]) -> set[str | None]:
    return {trial_row(result).gradients for result in results}


def clock(monkeypatch: pytest.MonkeyPatch, *, together: bool) -> None:
    """Have the clock say which way is faster."""
    monkeypatch.setattr("optbench.engine.gradients.chosen.faster", lambda *seconds: together)


def test_the_faster_way_is_taken_where_bits_are_the_same_and_changes_none(
    mnist: Dataset, suite_of: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.engine.gradients.chosen.CHECKED", 3)
    suite = suite_of(NoBiases)
    clock(monkeypatch, together=True)
    together = train_suite(suite, mnist)
    alone = train_suite(suite, mnist, only=1)
    clock(monkeypatch, together=False)
    each = train_suite(suite, mnist)
    assert (ways(together), ways(alone), ways(each)) == ({"torch.func"}, {"member by member"}, {"member by member"})
    assert all(map(same_bits, together, each))
    assert same_bits(alone[0], each[1])


@pytest.mark.parametrize("model", [None, own_models.VisionTransformer], ids=["cnn", "transformer"])
def test_other_bits_are_never_taken_however_fast(
    model: type[nn.Module] | None,
    mnist: Dataset,
    suite_of: Callable[..., Suite],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = suite_of(model)
    expected = train_suite(suite, mnist, only=1)[0]
    clock(monkeypatch, together=True)
    found = train_suite(suite, mnist)
    assert ways(found) == {"member by member"}
    assert same_bits(found[1], expected)
    # Let it be tried in training, too, on whole batches of all members.
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["optbench.engine.train"], "together_alike", lambda *_: 1)
    assert all(map(same_bits, train_suite(suite, mnist), found))


@pytest.mark.parametrize("sound", [1, TRIED + 1], ids=["while it is tried", "later"])
@pytest.mark.parametrize("fault", ["other bits", "raises"])
def test_a_way_that_goes_wrong_leaves_no_trace(
    sound: int, fault: str, mnist: Dataset, suite_of: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(NoBiases)
    clock(monkeypatch, together=False)
    expected = train_suite(suite, mnist)
    clock(monkeypatch, together=True)
    monkeypatch.setattr("optbench.engine.gradients.chosen.CHECKED", 2)
    right = _Together.__call__
    taken = 0

    def wrong(self: _Together, step: int, losses: Tensor) -> None:
        nonlocal taken
        taken += 1
        right(self, step, losses)
        if taken > sound and fault == "raises":
            raise RuntimeError("no more")
        if taken > sound:
            self._vmap._grads["head.weight"].mul_(1 + 1e-6)

    monkeypatch.setattr(_Together, "__call__", wrong)
    found = train_suite(suite, mnist)
    assert taken > sound
    assert ways(found) == {"member by member"}
    assert all(map(same_bits, found, expected))


def test_global_generators_are_as_before(mnist: Dataset, suite_of: Callable[..., Suite]) -> None:
    def states() -> tuple[object, ...]:
        numpy = np.random.get_state()  # noqa: NPY002  # the global one
        return random.getstate(), str(numpy), torch.get_rng_state().tolist()

    for model in (NoBiases, own_models.ResNet):
        suite = suite_of(model)
        before = states()
        assert {trial_row(result).status for result in train_suite(suite, mnist)} == {"ok"}
        assert states() == before


def test_only_what_fits_is_tried() -> None:
    choice = Choice(kept=1000)
    assert choice.open(2, MEMORY // 2000)
    assert not choice.open(4, MEMORY // 2000)
    assert not choice.open(1, 1)
    assert CHECKED > TRIED
    choice.possible = False
    assert not choice.open(2, 1)
