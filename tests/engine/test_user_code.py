"""User code: constructors, all styles of closures, modes, frozen parameters, random draws, and isolated failures."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.optimizers.load import load_factory
from optbench.optimizers.make import maker, resolve_spec
from optbench.optimizers.needs import needs_of
from optbench.optimizers.registry import find
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.engine.test_interim import cut_and_whole

FILE = '''
import random
import numpy
import torch
from torch.optim import SGD, Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Plain(SGD):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)

    @property
    def parameters(self):
        return [p for group in self.param_groups for p in group["params"]]


class Refuses(Plain):
    """At a rate of 9 it raises where `where` says."""

    def __init__(self, params, lr=0.05, where="constructor"):
        self.where = where
        self.tasks = 0
        super().__init__(params, lr=lr)
        self.at("constructor")

    def at(self, where):
        if where == self.where and self.defaults["lr"] == 9:
            raise ArithmeticError(f"no {where} at this rate")

    def begin_task(self):
        self.tasks += 1
        self.at(f"task {self.tasks}")

    def train(self):
        self.at("train")

    def eval(self):
        self.at("eval")


class Shared(Plain):
    """Works weight by weight, and refuses a rate of 9."""

    def __init__(self, params, lr=0.05):
        if lr == 9:
            raise ArithmeticError("no constructor at this rate")
        super().__init__(params, lr=lr)


class Ends(Plain):
    """Ends the program at a rate of 9, in the constructor or in a step."""

    def __init__(self, params, lr=0.05, early=True, by="exit"):
        super().__init__(params, lr=lr)
        self.early, self.by = early, by
        self.end(early)

    def end(self, now):
        if now and self.defaults["lr"] == 9:
            raise SystemExit(3) if self.by == "exit" else KeyboardInterrupt

    def step(self):
        self.end(not self.early)
        super().step()


class BackwardInside(Plain):
    def step(self, closure):
        loss = closure()
        assert not loss.requires_grad
        super().step()


class WithinModes(Plain):
    """Evaluates its closure within modes that are left only afterwards."""

    def step(self, closure):
        twice = torch.autograd.graph.save_on_cpu
        with Mode(), torch.device("cpu"), Mode(), Dispatch(), torch.no_grad(), twice(), twice():
            closure()
        super().step()


class Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), named=None):
        return function(*arguments, **(named or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        return function(*arguments, **(named or {}))


class Extra(Plain):
    """Gives its closure arguments, and has some of its own."""

    def step(self, closure, *, norm=None, verbose=False):
        before = [p.grad.clone() for p in self.parameters]
        loss = closure(create_graph=False, verbose=verbose)
        assert closure("x", backward=False) == loss
        assert all(p.grad is None for p in self.parameters)
        closure()
        assert all(torch.allclose(p.grad, old, atol=1e-6) for p, old in zip(self.parameters, before))
        super().step()


class ByKeyword(Plain):
    def step(self, *, closure):
        closure()
        super().step()


class OnlyKeywords(Plain):
    def step(self, **arguments):
        arguments["closure"]()
        super().step()


class Differentiates(Plain):
    """Has a loss without a backward pass, and does that itself."""

    def step(self, closure):
        assert all(p.grad is None for p in self.parameters)
        loss = closure()
        assert loss.requires_grad
        loss.backward()
        super().step()


class Graph(Plain):
    """As second-order methods do: a gradient of the gradient, from a closure without a backward pass."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        grads = torch.autograd.grad(loss, self.parameters, create_graph=True)
        with torch.enable_grad():
            curvature = torch.autograd.grad(sum((g * g.detach()).sum() for g in grads), self.parameters)
        for p, g, h in zip(self.parameters, grads, curvature):
            assert torch.isfinite(h).all()
            p.grad = g.detach()
        super().step()


class TakesLoss(Plain):
    """Polyak-like: the gradients are there, and the loss is given by name."""

    def step(self, loss):
        assert loss > 0 and loss.ndim == 0 and not loss.requires_grad
        super().step()


class TakesBoth(Plain):
    def step(self, closure, loss):
        assert torch.equal(closure(), loss)
        super().step()


class TakesDifferentiableLoss(Plain):
    def step(self, loss):
        loss.backward()
        super().step()


class Detaches(Plain):
    """Clears gradients with a graph in place, as `zero_grad(set_to_none=False)` does."""

    def step(self, closure=None):
        for p in self.parameters:
            assert p.grad.grad_fn is not None
            torch.autograd.grad(p.grad.sum(), p, retain_graph=True, allow_unused=True)
            p.grad.detach_()
        super().step()


class Freezes(Plain):
    """Trains all but the first layer."""

    def __init__(self, params, lr=0.05):
        params = list(params)
        super().__init__(params, lr=lr)
        for p in params[:2]:
            p.requires_grad_(False)

    def step(self, closure=None):
        if closure is not None:
            loss = closure()
            if loss.requires_grad:
                loss.backward()
        assert [p.grad is None for p in self.parameters] == [True, True, False, False]
        super().step()


class FreezesAll(Freezes):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        for p in self.parameters:
            p.requires_grad_(False)

    def step(self, closure):
        assert closure().ndim == 0


class NoModes(Plain):
    """Methods of these names that are something else."""

    def train(self, data):
        raise AssertionError

    def eval(self):
        raise AssertionError


class OneMode(Plain):
    def train(self):
        raise AssertionError


class AbstractModes(Plain):
    def train(self):
        raise NotImplementedError  # as a base class leaves it

    def eval(self):
        raise NotImplementedError  # as a base class leaves it


class OtherModes(Plain):
    def train(self):
        raise AssertionError

    def eval(self):
        raise AssertionError


class DrawsAside(Plain):
    """Draws from all three generators outside of steps, and moves by what it drew."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        self.made = self.drawn()
        self.told = 0.0
        self.switched = 0.0

    def drawn(self):
        return torch.rand(()).item() + numpy.random.random() + random.random()

    def begin_task(self):
        self.told += self.drawn()

    def train(self):
        self.switched += self.drawn()

    def eval(self):
        self.switched += self.drawn()

    def step(self):
        super().step()
        for p in self.parameters:
            p.data.add_((self.made + self.told + self.switched) * 1e-3)

    def state_dict(self):
        return {**super().state_dict(), "drawn": [self.made, self.told, self.switched]}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.made, self.told, self.switched = state["drawn"]


class DrawsInSteps(Plain):
    def step(self):
        super().step()
        for p in self.parameters:
            p.data.add_((random.random() - 0.5) * 1e-3)


class Named(Plain):
    def __init__(self, named_parameters, lr=0.05):
        pairs = list(named_parameters)
        assert [name for name, _ in pairs][-1] == "head.bias", pairs
        super().__init__([p for _, p in pairs], lr=lr)


class NamedToo(Plain):
    def __init__(self, params, named_parameters, lr=0.05):
        params = list(params)
        assert [id(p) for _, p in named_parameters] == [id(p) for p in params]
        super().__init__(params, lr=lr)


class ModelAndParams(Plain):
    def __init__(self, model, params, lr=0.05):
        params = list(params)
        assert [id(p) for p in model.parameters()] == [id(p) for p in params]
        super().__init__(params, lr=lr)


class OtherName(Plain):
    def __init__(self, network, data_size, horizon, lr=0.05):
        super().__init__(network.parameters(), lr=lr)
        assert (data_size, horizon) == (800, self.steps()), (data_size, horizon)

    def steps(self):
        return 60


class NamedMatrices(Plain):
    def __init__(self, named_parameters, lr=0.05):
        pairs = list(named_parameters)
        assert pairs and all(p.ndim == 2 for _, p in pairs)
        super().__init__([p for _, p in pairs], lr=lr)
'''


@pytest.fixture(scope="module")
def mnist(coarse_mnist: Dataset) -> Dataset:
    return coarse_mnist


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "./mine.py"


def run(mnist: Dataset, target: str, *, seeds: int = 2, **settings: Any) -> list[TrialResult]:
    small: dict[str, Any] = {"max_epochs": 5, "max_steps": 30, "early_stopping": None, "metrics": ["hoyer"]}
    return train_suite(small_suite({"opt": {"target": target, **settings}}, seeds=seeds, **small), mnist)


@pytest.fixture(scope="module")
def plain(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[TrialResult]:
    path = tmp_path_factory.mktemp("plain") / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    return run(mnist, f"{path}:Plain")


def by_rate(results: Sequence[TrialResult]) -> dict[float, list[TrialResult]]:
    found: dict[float, list[TrialResult]] = {}
    for result in results:
        found.setdefault(result.trial.hyperparameters["lr"], []).append(result)
    return found


def weights_of(result: TrialResult) -> Mapping[str, torch.Tensor]:
    row = trial_row(result)
    assert row.status == "ok", (row.error_type, row.error_message)
    assert result.weights is not None
    return result.weights


WHERE = {"constructor": 0, "train": 0, "task 1": 0, "task 2": 30, "eval": 25}
"""Where the optimizer raises, and the steps taken by then; evaluations are every half epoch, 12.5 steps."""


@pytest.mark.parametrize("where", WHERE)
def test_a_member_whose_optimizer_raises_fails_alone(where: str, file: str, mnist: Dataset) -> None:
    found = by_rate(run(mnist, f"{file}:Refuses", lr=[0.03, 9, 0.05], where=where))
    for result in found[9]:
        row = trial_row(result)
        assert (row.status, row.error_type) == ("failed", "ArithmeticError")
        expected = {"train": "train", "eval": "eval"}.get(where, where)
        assert row.error_message == f"no {expected} at this rate"
        assert row.parameters > 0
        assert row.init_hash
        assert row.last_step <= WHERE[where]
        assert (row.last_step == 0) == (WHERE[where] == 0)
    without = by_rate(run(mnist, f"{file}:Refuses", lr=[0.03, 0.05], where=where))
    for rate in (0.03, 0.05):
        assert all(same_bits(a, b) for a, b in zip(found[rate], without[rate], strict=True))


@pytest.mark.parametrize("rates", [[9, 0.03, 0.05], [0.03, 9, 0.05], [0.05, 0.03, 9], [9]])
def test_a_member_that_raises_in_a_shared_lane_fails_alone(rates: list[float], file: str, mnist: Dataset) -> None:
    found = by_rate(run(mnist, f"{file}:Shared", lr=rates, elementwise=True))
    for result in found.pop(9):
        row = trial_row(result)
        assert (row.status, row.error_type, row.last_step) == ("failed", "ArithmeticError", 0)
    if found:
        without = by_rate(run(mnist, f"{file}:Shared", lr=[r for r in rates if r != 9], elementwise=True))
        for rate in found:
            assert all(same_bits(a, b) for a, b in zip(found[rate], without[rate], strict=True))


def test_a_member_whose_wrapped_optimizer_raises_fails_alone(file: str, mnist: Dataset) -> None:
    def trained(rates: list[float]) -> dict[float, list[TrialResult]]:
        base = {"target": f"{file}:Refuses", "lr": rates, "needs": "no-modes"}
        results = run(mnist, "sam", base=base)
        found: dict[float, list[TrialResult]] = {}
        for result in results:
            found.setdefault(result.trial.hyperparameters["base"]["lr"], []).append(result)
        return found

    found, without = trained([0.03, 9]), trained([0.03])
    assert [trial_row(result).status for result in found[9]] == ["failed", "failed"]
    assert all(same_bits(a, b) for a, b in zip(found[0.03], without[0.03], strict=True))


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    ("by", "said"),
    [("exit", "it ends the program with exit(3)"), ("interrupt", "it raises KeyboardInterrupt")],
)
def test_an_optimizer_that_exits_the_program_fails_alone(
    by: str, said: str, early: bool, file: str, mnist: Dataset
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a worker
    try:
        found = by_rate(run(mnist, f"{file}:Ends", lr=[9, 0.05], early=early, by=by))
    finally:
        signal.signal(signal.SIGINT, before)
    for result in found[9]:
        row = trial_row(result)
        assert (row.status, row.error_message) == ("failed", said)
    assert [trial_row(result).status for result in found[0.05]] == ["ok", "ok"]


def test_keyboard_interrupt_in_a_step_propagates_outside_workers(file: str, mnist: Dataset) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a script ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(mnist, f"{file}:Ends", lr=[9, 0.05], early=False, by="interrupt")
    finally:
        signal.signal(signal.SIGINT, before)


STYLES: dict[str, dict[str, Any]] = {
    "BackwardInside": {},
    "WithinModes": {},
    "Extra": {},
    "ByKeyword": {},
    "OnlyKeywords": {"needs": "closure"},
    "Differentiates": {"needs": "loss"},
    "Graph": {"needs": "loss"},
    "TakesLoss": {},
    "TakesBoth": {},
    "TakesDifferentiableLoss": {"needs": "loss"},
    "Detaches": {"needs": "create_graph"},
    "NoModes": {},
    "OneMode": {},
    "AbstractModes": {},
    "OtherModes": {"needs": "no-modes"},
    "Named": {},
    "NamedToo": {},
    "ModelAndParams": {},
    "OtherName": {
        "network": {"given": "model"},
        "data_size": {"given": "examples"},
        "horizon": {"given": "total_steps"},
    },
}


@pytest.mark.parametrize("name", STYLES)
def test_every_coding_style_takes_the_same_steps_as_the_plain_optimizer(
    name: str, file: str, mnist: Dataset, plain: list[TrialResult]
) -> None:
    for result, expected in zip(run(mnist, f"{file}:{name}", **STYLES[name]), plain, strict=True):
        for key, weight in weights_of(expected).items():
            # Gradients in a closure come from autograd; the lane uses a hand-written backward pass.
            torch.testing.assert_close(weights_of(result)[key], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("needs", ["", "closure", "loss", "create_graph", "closure create_graph"])
def test_frozen_parameters_keep_their_values(needs: str, file: str, mnist: Dataset) -> None:
    settings = {"needs": needs} if needs else {}
    (frozen,) = run(mnist, f"{file}:Freezes", seeds=1, **settings)
    start = run(mnist, f"{file}:FreezesAll", seeds=1)[0]
    weights, before = weights_of(frozen), weights_of(start)
    first, last = list(before)[:2], list(before)[2:]
    assert all(torch.equal(weights[name], before[name]) for name in first)
    assert not any(torch.equal(weights[name], before[name]) for name in last)


def test_a_declared_mode_that_raises_fails_the_trial(file: str, mnist: Dataset) -> None:
    for result in run(mnist, f"{file}:AbstractModes", needs="modes"):
        assert trial_row(result).error_type == "NotImplementedError"


@pytest.mark.parametrize("name", ["DrawsAside", "DrawsInSteps"])
@pytest.mark.parametrize("state", ["keep", "reset"])
def test_random_draws_outside_steps_belong_to_the_trial(name: str, state: str, file: str, mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": f"{file}:{name}"}}, seeds=3, max_epochs=1, optimizer_state=state)
    together = train_suite(suite, mnist)
    torch.rand(3)  # earlier draws do not matter
    assert all(same_bits(a, b) for a, b in zip(train_suite(suite, mnist), together, strict=True))
    assert same_bits(train_suite(suite, mnist, only=1)[0], together[1])
    first, second = weights_of(together[0]), weights_of(together[1])
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_needs_are_detected_or_declared(file: str) -> None:
    def needs(name: str, **settings: Any) -> set[str]:
        return set(needs_of(load_factory(f"{file}:{name}"), settings)) - {"random"}

    assert needs("Plain") == set()
    assert needs("BackwardInside") == {"closure"}
    assert needs("TakesLoss") == {"closure"}
    assert needs("OtherModes") == {"modes"}
    assert needs("OtherModes", needs="no-modes") == set()
    assert needs("NoModes") == needs("OneMode") == set()
    assert needs("Named") == {"named_parameters"}
    assert needs("ModelAndParams") == {"model"}
    assert needs("Plain", lr={"given": "examples"}) == {"examples"}


def test_named_parameters_can_be_combined_with_only_matrices(file: str, mnist: Dataset) -> None:
    (result,) = run(mnist, f"{file}:NamedMatrices", seeds=1, only_matrices=True)
    assert weights_of(result)


def test_named_parameters_are_in_the_order_of_the_model(file: str) -> None:
    spec = resolve_spec(find(f"{file}:Named"), {})
    network = torch.nn.Sequential()
    network.add_module("body", torch.nn.Linear(3, 2))
    network.add_module("head", torch.nn.Linear(2, 2))
    made = maker(spec, {}, {"model": network})(list(network.parameters()))
    assert [id(p) for p in made.param_groups[0]["params"]] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize("state", ["keep", "reset"])
@pytest.mark.parametrize("name", ["DrawsAside", "DrawsInSteps"])
def test_random_draws_resume_after_an_interruption(name: str, state: str, file: str, mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": f"{file}:{name}"}}, seeds=2, train_examples=200, optimizer_state=state)
    for _, whole, again in cut_and_whole(suite, mnist):
        assert [trial_row(result).status for result in whole] == ["ok", "ok"]
        assert all(map(same_bits, whole, again))
