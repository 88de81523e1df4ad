"""On a CPU, how gradients are computed is chosen by timing, and results do not depend on the choice."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.data import Dataset, InputSpec
from optbench.engine import stack
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.chosen import CHECKED, MEMORY, TRIED, Choice, _Together
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.members import TrialResult
from optbench.engine.stack import Layout
from optbench.kinds import calling
from optbench.models import cross_entropy
from optbench.suite import Suite
from tests import own_models
from tests.conftest import same_bits, small_suite, train_suite, trial_row

SMALL: dict[str, Any] = {"train_examples": 320, "test_examples": 60, "validation_examples": 60, "max_epochs": 1}


class NoBiases(nn.Module):
    """A two-layer transformer over the rows of an image, without biases, so that `torch.func` may give equal bits."""

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
def suite_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Suite]:
    """Return a function that builds a suite of three seeds for a user's model or for our CNN."""

    def suite(model: type[nn.Module] | None, *optimizers: str) -> Suite:
        if model is not None:

            def build(settings: object, inputs: InputSpec, outputs: int, seed: int = 0) -> nn.Module:
                with calling(seed):
                    return model(inputs, outputs)

            monkeypatch.setattr("optbench.engine.blueprint.build", build)
        cnn = {"kind": "cnn", "channels": [4], "hidden": 16}
        settings = {name: {"target": name, "lr": 0.02} for name in optimizers or ("adamw",)}
        return small_suite(settings, model=cnn, **SMALL)

    return suite


def ways(results: list[TrialResult]) -> set[str | None]:
    return {trial_row(result).gradients for result in results}


def clock(monkeypatch: pytest.MonkeyPatch, *, together: bool) -> None:
    """Patch the clock so that only gradients take time: 2 s member by member, 1 s or 3 s by `torch.func`."""
    now = 0

    def timed(call: Callable[..., Any], seconds: int) -> Callable[..., Any]:
        def timed_call(*given: Any) -> Any:
            nonlocal now
            now += seconds
            return call(*given)

        return timed_call

    monkeypatch.setattr(_Together, "__call__", timed(_Together.__call__, 1 if together else 3))
    monkeypatch.setattr(LoopGradients, "__call__", timed(LoopGradients.__call__, 2))
    monkeypatch.setattr("time.thread_time", lambda: now)


class Exact:
    """A replacement for `Vmap` whose gradients have exactly the bits of each member alone."""

    name = Vmap.name

    def __init__(self, network: nn.Module, layout: Layout, bound: Bound) -> None:
        self._network = copy.deepcopy(network)
        self._members = [layout.views(row) for row in bound.weights.unbind()]
        self.grads = layout.views(bound.grads)

    def __call__(self, inputs: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
        logits = []
        for i, views in enumerate(self._members):
            weights = {name: view.detach().requires_grad_() for name, view in views.items()}
            logits.append(functional_call(self._network, weights, (inputs[i],)))
            loss = cross_entropy(logits[i], targets[i])
            for target, grad in zip(self.grads.values(), torch.autograd.grad(loss, [*weights.values()]), strict=True):
                target[i] = grad
            losses[i] = loss.detach()
        return torch.stack(logits).detach()


def replace_vmap(monkeypatch: pytest.MonkeyPatch, way: type[Exact]) -> None:
    """Replace `torch.func` by another implementation and make the engine try it."""
    monkeypatch.setattr("optbench.engine.gradients.chosen.Vmap", way)
    have_tried(monkeypatch)


def have_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make training try `torch.func` on complete batches, regardless of its result on a few examples."""
    monkeypatch.setattr("optbench.engine.gradients.ways.together_alike", lambda *_: 1)


@pytest.mark.parametrize("model", [NoBiases, None], ids=["transformer", "cnn"])
def test_the_faster_way_is_chosen_if_its_bits_are_the_same(
    model: type[nn.Module] | None, mnist: Dataset, suite_of: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.engine.gradients.chosen.CHECKED", 3)
    suite = suite_of(model)
    replace_vmap(monkeypatch, Exact)
    clock(monkeypatch, together=True)
    together = train_suite(suite, mnist)
    alone = train_suite(suite, mnist, only=1)
    clock(monkeypatch, together=False)
    each = train_suite(suite, mnist)
    assert (ways(together), ways(alone), ways(each)) == ({"torch.func"}, {"member by member"}, {"member by member"})
    assert all(map(same_bits, together, each))
    assert same_bits(alone[0], each[1])


@pytest.mark.parametrize("tried", ["on a few examples first", "at once"])
@pytest.mark.parametrize(
    "model", [NoBiases, None, own_models.VisionTransformer], ids=["without biases", "cnn", "transformer"]
)
def test_torch_func_is_chosen_if_its_bits_are_the_same_on_this_machine(
    model: type[nn.Module] | None,
    tried: str,
    mnist: Dataset,
    suite_of: Callable[..., Suite],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = suite_of(model)
    expected = train_suite(suite, mnist, only=1)[0]
    agreed = []

    def noted(a: Tensor, b: Tensor) -> bool:
        agreed.append(stack.same_bits(a, b))
        return agreed[-1]

    for module in ("chosen", "tried"):
        monkeypatch.setattr(f"optbench.engine.gradients.{module}.same_bits", noted)
    if tried == "at once":
        have_tried(monkeypatch)
    clock(monkeypatch, together=True)
    found = train_suite(suite, mnist)
    assert same_bits(found[1], expected)
    assert agreed
    assert ways(found) == {"torch.func" if all(agreed) else "member by member"}


@pytest.mark.parametrize(
    "sound", [0, 1, TRIED + 1], ids=["at the first call", "while being tried", "after being chosen"]
)
@pytest.mark.parametrize("fault", ["other bits", "raises"])
def test_results_are_unaffected_when_the_faster_way_fails(
    sound: int, fault: str, mnist: Dataset, suite_of: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(NoBiases)
    clock(monkeypatch, together=False)
    expected = train_suite(suite, mnist)
    clock(monkeypatch, together=True)
    monkeypatch.setattr("optbench.engine.gradients.chosen.CHECKED", 2)
    taken = 0

    class Wrong(Exact):
        def __call__(self, inputs: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
            nonlocal taken
            taken += 1
            logits = super().__call__(inputs, targets, losses)
            if taken > sound and fault == "raises":
                raise RuntimeError("no more")
            if taken > sound:
                self.grads["head.weight"].mul_(1 + 1e-6)
            return logits

    replace_vmap(monkeypatch, Wrong)
    found = train_suite(suite, mnist)
    assert taken > sound
    assert ways(found) == {"member by member"}
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("sound", [True, False])
def test_the_next_cohort_reuses_the_choice_of_the_first(
    sound: bool, mnist: Dataset, suite_of: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(NoBiases, "adamw", "sgd")
    expected = train_suite(suite, mnist)
    stacks: list[Noted] = []
    few: list[object] = []

    class Noted(Exact):
        def __init__(self, network: nn.Module, layout: Layout, bound: Bound) -> None:
            super().__init__(network, layout, bound)
            stacks.append(self)
            self._steps = 0

        def __call__(self, inputs: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
            logits = super().__call__(inputs, targets, losses)
            self._steps += 1
            if not sound and self._steps > TRIED:
                self.grads["head.weight"].mul_(1 + 1e-6)
            return logits

    replace_vmap(monkeypatch, Noted)
    monkeypatch.setattr("optbench.engine.gradients.ways.together_alike", lambda *given: few.append(given) or 1)
    clock(monkeypatch, together=True)
    found = train_suite(suite, mnist)
    assert len(few) == 1, "the check on a few examples runs once"
    assert ways(found) == {"torch.func" if sound else "member by member"}
    assert (len(stacks) > 1) == sound, "after other bits in one cohort, the next does not try again"
    assert all(map(same_bits, found, expected))


def test_training_leaves_global_generators_unchanged(mnist: Dataset, suite_of: Callable[..., Suite]) -> None:
    def states() -> tuple[object, ...]:
        numpy = np.random.get_state()  # noqa: NPY002  # the global one
        return random.getstate(), str(numpy), torch.get_rng_state().tolist()

    for model in (NoBiases, own_models.ResNet):
        suite = suite_of(model)
        before = states()
        assert {trial_row(result).status for result in train_suite(suite, mnist)} == {"ok"}
        assert states() == before


def test_the_faster_way_is_tried_only_if_it_fits_in_memory() -> None:
    choice = Choice()
    assert choice.open(MEMORY)
    assert not choice.open(MEMORY + 1)
    assert CHECKED > TRIED
    choice.possible = False
    assert not choice.open(1)
