"""`state: keep` in a switch between users' optimizers keeps the state and takes every setting from the second one.

The reference is one instance whose settings are changed by hand at the switch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.data import Dataset
from optbench.engine.interim import loaded, saved
from optbench.optimizers.make import maker
from optbench.optimizers.registry import complete, find
from optbench.optimizers.switch import Switch
from tests.conftest import small_suite, train_suite, trial_row

FILE = """
from dataclasses import dataclass

import torch
from torch.optim import SGD, AdamW, Optimizer


class Momentum(Optimizer):
    '''Its momentum depends on its rate by default; a clock in the group, and an average outside `state`, by id.'''

    def __init__(self, params, lr=0.1, momentum=None):
        momentum = min(0.9, 10 * lr) if momentum is None else momentum
        super().__init__(params, {"lr": lr, "momentum": momentum, "floor": lr / 100, "clock": 0, "norm": 0.0})
        self._averages = {}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["clock"] += 1
            for p in group["params"]:
                # In float64, which `load_state_dict` would cast to the type of the parameters.
                average = self._averages.get(id(p), torch.zeros_like(p, dtype=torch.float64))
                self._averages[id(p)] = average = group["momentum"] * average + p.grad.double()
                group["norm"] += float(average.square().sum())
                rate = max(group["lr"] / group["clock"] ** 0.5, group["floor"]) / (1 + group["norm"]) ** 0.01
                p.sub_((rate * average).to(p.dtype))


@dataclass(frozen=True)
class Settings:
    lr: float
    decay: float


class Attributes(Optimizer):
    '''Settings in attributes, of which one is an object; a step size that it adapts from them.'''

    def __init__(self, params, lr=0.1, decay=0.0, **other):
        super().__init__(params, {})
        self._settings = Settings(lr, decay)
        self._sign = -1.0 if other.get("uphill") else 1.0
        self.taken, self.estimate = 0, lr / 10

    @torch.no_grad()
    def step(self):
        self.taken += 1
        self.estimate *= 1.01
        for p in self.param_groups[0]["params"]:
            old = self.state[p].get("old", p.grad)
            self.state[p]["old"] = p.grad.clone()
            rate = self._settings.lr / self.taken + self.estimate
            p.sub_(self._sign * rate * (p.grad + old) + self._settings.decay * p)


class Around(Optimizer):
    '''Averages the weights of an optimizer of its own every other step.'''

    def __init__(self, params, lr=0.1, mix=0.5):
        super().__init__(params, {})
        self.inner = AdamW(self.param_groups, lr=lr)
        self.param_groups = self.inner.param_groups
        self.mix, self.taken = torch.tensor(mix), 0

    @torch.no_grad()
    def step(self):
        self.inner.step()
        self.taken += 1
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.clone())
            if self.taken % 2 == 0:
                slow.lerp_(p, self.mix)
                p.copy_(slow)


class Decays(SGD):
    '''Lowers its own rate.'''

    def __init__(self, params, lr=0.1, rate=0.9):
        super().__init__(params, lr=lr, momentum=0.9)
        self.rate = rate

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= self.rate
        return loss


class Varies(Optimizer):
    '''One target, two classes.'''

    def __new__(cls, params, kind="a", lr=0.1):
        return super().__new__(VariesMore if kind == "b" else Varies)

    def __init__(self, params, kind="a", lr=0.1):
        super().__init__(params, {"lr": lr, "steps": 0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["steps"] += 1
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] / group["steps"])


class VariesMore(Varies):
    pass
"""
STEPS, AT = 9, 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def made(target: str, settings: dict[str, Any], parameters: list[nn.Parameter]) -> Any:
    return maker(find(target), complete(target, settings))(parameters)


def weights() -> list[nn.Parameter]:
    """Return weights that fill complete SIMD vectors, so that kernels round them equally in a stack and alone."""
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(16, 4, generator=random)), nn.Parameter(torch.randn(16, generator=random))]


def trained(
    optimizer: Any, parameters: list[nn.Parameter], by_hand: Callable[[Any], None] | None = None
) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        if step == AT and by_hand is not None:
            by_hand(optimizer)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=random)
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def switched(target: str, first: dict[str, Any], then: dict[str, Any], state: str = "keep") -> tuple[Any, list[Tensor]]:
    parameters = weights()
    settings = {
        "first": {"target": target, **first},
        "then": {"target": target, **then},
        "at": AT,
        "state": state,
    }
    optimizer = made("switch", settings, parameters)
    return optimizer, trained(optimizer, parameters)


def plain(target: str, settings: dict[str, Any], by_hand: Callable[[Any], None] | None = None) -> list[Tensor]:
    parameters = weights()
    return trained(made(target, settings, parameters), parameters, by_hand)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def groups(**values: Any) -> Callable[[Any], None]:
    def change(optimizer: Any) -> None:
        for part in getattr(optimizer, "parts", [optimizer]):
            for group in part.param_groups:
                group.update({name: value for name, value in values.items() if name in group})

    return change


def attributes(**values: Any) -> Callable[[Any], None]:
    def change(optimizer: Any) -> None:
        vars(optimizer).update(values)

    return change


def new_settings(optimizer: Any) -> None:
    vars(optimizer)["_settings"] = type(optimizer._settings)(0.03, 0.001)


def new_inner(optimizer: Any) -> None:
    optimizer.inner.param_groups[0]["lr"] = 0.02
    optimizer.mix = torch.tensor(0.25)


CHANGES: list[tuple[str, dict[str, Any], dict[str, Any], Callable[[Any], None]]] = [
    # The learning rate is given; momentum and floor are defaults of the second, derived from its learning rate.
    ("Momentum", {"lr": 0.2}, {"lr": 0.01}, groups(lr=0.01, momentum=0.1, floor=0.0001)),
    # A setting given only for the first: the second takes the default of its class.
    ("Momentum", {"lr": 0.2, "momentum": 0.5}, {"lr": 0.2}, groups(momentum=0.9)),
    ("Momentum", {"momentum": 0.5}, {}, groups(momentum=0.9)),
    # An estimate initialised from a setting and updated since is state; a sign derived from a setting is not.
    ("Attributes", {"lr": 0.1}, {"lr": 0.03, "decay": 0.001}, new_settings),
    ("Attributes", {"uphill": True}, {}, attributes(_sign=1.0)),
    ("Around", {"lr": 0.1}, {"lr": 0.02, "mix": 0.25}, new_inner),
    # A learning rate that the optimizer changes is still a setting if the suite gives another.
    ("Decays", {"lr": 0.1}, {"lr": 0.02}, groups(lr=0.02)),
    ("Decays", {"rate": 0.9}, {"rate": 0.5}, attributes(rate=0.5)),
    ("Varies", {"lr": 0.1}, {"lr": 0.3}, groups(lr=0.3)),
]


@pytest.mark.parametrize(("name", "first", "then", "by_hand"), CHANGES)
def test_a_switch_that_keeps_the_state_equals_changing_settings_by_hand(
    name: str, first: dict[str, Any], then: dict[str, Any], by_hand: Callable[[Any], None], file: Path
) -> None:
    target = f"{file}:{name}"
    optimizer, found = switched(target, first, then)
    assert same(found, plain(target, first, by_hand))
    # Keeping the first settings, or starting the second afresh, gives other results.
    assert not same(found, plain(target, first))
    assert not same(found, switched(target, first, then, "reset")[1])
    assert isinstance(optimizer, Switch)


REGISTERED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.02, "momentum": 0.5}),
    ("adam", {"lr": 0.1}, {"lr": 0.01, "betas": [0.5, 0.9]}),
    ("prodigy", {"lr": 1.0}, {"lr": 0.5}),
    ("muon", {"lr": 0.1, "fallback_lr": 0.1}, {"lr": 0.02, "fallback_lr": 0.03}),
    ("shampoo", {"lr": 0.1, "momentum": 0.9}, {"lr": 0.01, "momentum": 0.5}),
]


@pytest.mark.parametrize(("target", "first", "then"), REGISTERED, ids=[case[0] for case in REGISTERED])
def test_registered_optimizers_keep_their_state_under_new_settings(
    target: str, first: dict[str, Any], then: dict[str, Any]
) -> None:
    def by_hand(optimizer: Any) -> None:
        fresh = made(target, then, weights())
        for old, new in zip(leaf_groups(optimizer), leaf_groups(fresh), strict=True):
            old.update({name: value for name, value in new.items() if name in SETTINGS})

    found = switched(target, first, then)[1]
    assert same(found, plain(target, first, by_hand))
    assert not same(found, switched(target, first, then, "reset")[1])


SETTINGS = {"lr", "momentum", "nesterov", "betas"}


def leaf_groups(optimizer: Any) -> list[dict[str, Any]]:
    return [group for part in getattr(optimizer, "parts", [optimizer]) for group in part.param_groups]


@pytest.mark.parametrize(("target", "first"), [(name, first) for name, first, _ in REGISTERED])
def test_switching_between_equal_settings_changes_nothing(target: str, first: dict[str, Any]) -> None:
    assert same(switched(target, first, first)[1], plain(target, first))


@pytest.mark.parametrize("name", ["Momentum", "Attributes", "Around", "Decays", "Varies"])
def test_switching_between_equal_settings_of_a_plug_in_changes_nothing(name: str, file: Path) -> None:
    target = f"{file}:{name}"
    assert same(switched(target, {"lr": 0.07}, {"lr": 0.07})[1], plain(target, {"lr": 0.07}))


def test_the_base_of_a_wrapper_takes_its_own_settings(file: Path) -> None:
    base = {"target": f"{file}:Momentum"}
    first = {"base": {**base, "lr": 0.2, "momentum": 0.5}, "strength": 0.01}
    then = {"base": {**base, "lr": 0.01}, "strength": 0.1}

    def by_hand(optimizer: Any) -> None:
        groups(strength=0.1)(optimizer)
        groups(lr=0.01, momentum=0.1, floor=0.0001)(optimizer.base)

    assert same(switched("l1", first, then)[1], plain("l1", first, by_hand))


@pytest.mark.parametrize(
    ("target", "first", "then"),
    [
        # SGD cannot use the state of Adam even under the same wrapper, and one target can build two classes.
        ("l1", {"base": {"target": "adam"}}, {"base": {"target": "sgd", "momentum": 0.9}}),
        ("l1", {"base": {"target": "sgd", "momentum": 0.9}}, {"base": {"target": "adam"}}),
        ("FILE:Varies", {"kind": "a"}, {"kind": "b"}),
    ],
)
def test_the_state_is_dropped_if_the_class_changes(
    target: str, first: dict[str, Any], then: dict[str, Any], file: Path
) -> None:
    target = target.replace("FILE", str(file))
    assert same(switched(target, first, then)[1], switched(target, first, then, "reset")[1])


def test_another_power_of_powerpropagation_keeps_the_weights() -> None:
    # The state is φ, and the weights are a power of it; they must not jump when the power changes.
    base = {"base": {"target": "sgd", "lr": 0.0}}
    parameters = weights()
    start = [p.detach().clone() for p in parameters]
    settings = {
        "first": {"target": "powerpropagation", "alpha": 2.0, **base},
        "then": {"target": "powerpropagation", "alpha": 4.0, **base},
        "at": AT,
        "state": "keep",
    }
    for found, expected in zip(trained(made("switch", settings, parameters), parameters), start, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["FILE:Decays", "prodigy", "muon", "adam"])
@pytest.mark.parametrize("cut", [AT - 1, AT, AT + 1])
def test_a_switch_is_resumed_to_the_same_bits(name: str, cut: int, file: Path) -> None:
    """The state is saved after some steps and loaded into a new instance, as the engine does between tasks."""
    target = name.replace("FILE", str(file))
    settings = {
        "first": {"target": target, "lr": 0.1},
        "then": {"target": target, "lr": 0.02},
        "at": AT,
        "state": "keep",
    }
    parameters = weights()
    random = torch.Generator().manual_seed(1)
    optimizer = made("switch", settings, parameters)
    for step in range(STEPS):
        if step == cut:
            state = loaded(saved(optimizer.state_dict()), torch.device("cpu"))
            parameters = [nn.Parameter(p.detach().clone()) for p in parameters]
            optimizer = made("switch", settings, parameters)
            optimizer.load_state_dict(state)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=random)
        optimizer.step()
    assert same([p.detach() for p in parameters], switched(target, {"lr": 0.1}, {"lr": 0.02})[1])


def test_trials_with_plug_ins_keep_the_state_at_a_switch_between_tasks(file: Path, mnist: Dataset) -> None:
    target = f"{file}:Momentum"
    switch = {"target": "switch", "first": {"target": target, "lr": 0.05}, "then": {"target": target, "lr": 0.01}}
    optimizers = {"keep": {**switch, "at": 25, "state": "keep"}, "reset": {**switch, "at": 25}}
    results = train_suite(
        small_suite(optimizers, seeds=1, max_epochs=1, evaluate_every=0.25, early_stopping=None), mnist
    )
    assert [trial_row(result).status for result in results] == ["ok", "ok"], trial_row(results[0]).error_message
    kept, reset = (result.weights for result in results)
    assert kept is not None
    assert reset is not None
    assert any(not torch.equal(kept[name], reset[name]) for name in kept)
