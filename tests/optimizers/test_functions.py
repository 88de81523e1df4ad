"""Optimizers given as functions, and results that are not a `torch.optim.Optimizer`, train like the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.optimizers.load import load_factory
from optbench.optimizers.make import maker, resolve_made, resolve_spec
from optbench.optimizers.needs import needs_of
from optbench.optimizers.registry import find
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.optimizers.test_foreign_optimizers import SUITE

FILE = """
import contextlib
import torch
from torch import nn
from torch.optim import SGD, AdamW


class Plain(SGD):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)

def plain(params, lr=0.05):
    return SGD(params, lr=lr)

def groups(named_parameters, lr=0.05, bias_lr=0.05):
    weights = [p for name, p in named_parameters if not name.endswith("bias")]
    biases = [p for name, p in named_parameters if name.endswith("bias")]
    return SGD([{"params": weights}, {"params": biases, "lr": bias_lr}], lr=lr)

def by_net(net, *, lr=0.05):
    return SGD(net.parameters(), lr=lr)

def by_annotation(mlp: nn.Module, lr: float = 0.05):
    return SGD(mlp.parameters(), lr=lr)

def by_text(mlp: "torch.nn.Module", lr: float = 0.05):
    return SGD(mlp.parameters(), lr=lr)

def several(named_parameters, lr=0.05):
    named = list(named_parameters)
    return [SGD([p for _, p in named[:1]], lr=lr), SGD([p for _, p in named[1:]], lr=lr)]


class Duck:
    '''No Optimizer, no state, no parameter groups.'''

    def __init__(self, params, lr=0.05):
        self.params, self.lr = list(params), lr

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self):
        for p in self.params:
            p.sub_(p.grad, alpha=self.lr)


class Doubles(Duck):
    '''Has modes: measured at half of the weights it trains.'''
    training = False

    def train(self):
        assert not self.training
        self.training = True
        self._scale(2.0)

    def eval(self):
        assert self.training
        self.training = False
        self._scale(0.5)

    @torch.no_grad()
    def _scale(self, factor):
        for p in self.params:
            p.mul_(factor)

def doubles(params, lr=0.05):
    return Doubles(params, lr)

class NeedsClosure(Duck):
    def step(self, closure):
        loss = closure()
        super().step()
        return loss

def needs_closure(params, lr=0.05):
    return NeedsClosure(params, lr)


class Around(Duck):
    '''Evaluates gradients away from the weights: at w + shift.'''

    def __init__(self, params, lr=0.05, shift=0.0):
        super().__init__(params, lr)
        self.shift, self.inside, self.passes = shift, False, 0

    @contextlib.contextmanager
    def around_forward(self):
        assert not self.inside
        self.inside = True
        kept = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p in self.params:
                p.add_(self.shift)
        yield
        with torch.no_grad():
            for p, value in zip(self.params, kept):
                assert p.grad is not None, "the backward pass is inside"
                p.copy_(value)
        self.inside, self.passes = False, self.passes + 1

    def step(self):
        assert not self.inside
        assert self.passes == 1, "one pass a step, none while it is measured"
        self.passes = 0
        super().step()

def attached(params, lr=0.05):
    '''The method of another name, as IVON's `sampled_params`.'''
    optimizer = Duck(params, lr)
    optimizer.around_forward = lambda: contextlib.nullcontext()
    return optimizer

def nothing(params, lr=0.05):
    SGD(params, lr=lr)

def its_class(params, lr=0.05):
    return SGD

def no_zero_grad(params, lr=0.05):
    class Steps:
        def step(self): ...
    return Steps()

def demanding(params, lr=0.05):
    return [SGD(params, lr=lr), torch.optim.LBFGS(params)]

def breaks(params, lr=0.05):
    raise ArithmeticError("not today")

number = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "./mine.py"


def run(mnist: Dataset, target: str, **settings: Any) -> list[TrialResult]:
    suite = small_suite({"opt": {"target": target, **settings}}, seeds=2, max_epochs=1, train_examples=400)
    return train_suite(suite, mnist)


SAME = ["plain", "groups", "several", "Duck", "attached"]
CLOSE = ["by_net", "by_annotation", "by_text", "needs_closure", "NeedsClosure", "Around"]


@pytest.mark.parametrize("name", [*SAME, *CLOSE])
def test_the_result_of_a_function_takes_the_same_steps_as_the_class(name: str, file: str, mnist: Dataset) -> None:
    for result, plain in zip(run(mnist, f"{file}:{name}"), run(mnist, f"{file}:Plain"), strict=True):
        assert trial_row(result).status == "ok", trial_row(result).error_message
        assert trial_row(result).init_hash == trial_row(plain).init_hash
        if name in SAME[:3]:
            assert result.weights is not None
            assert plain.weights is not None
            assert all(torch.equal(result.weights[key], weight) for key, weight in plain.weights.items())
        else:  # tolerance for gradients from autograd and for another order of operations
            assert result.weights is not None
            for key, weight in (plain.weights or {}).items():
                torch.testing.assert_close(result.weights[key], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["groups", "Duck", "Around", "doubles"])
def test_a_trial_alone_equals_the_same_trial_among_others(name: str, file: str, mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": f"{file}:{name}"}}, seeds=3, max_epochs=1, train_examples=400)
    together = train_suite(suite, mnist)
    assert all(trial_row(result).status == "ok" for result in together), trial_row(together[0]).error_message
    assert same_bits(train_suite(suite, mnist, only=1)[0], together[1])


def test_gradients_are_evaluated_at_the_weights_set_by_around_forward(file: str, mnist: Dataset) -> None:
    (plain, _), (shifted, _) = (run(mnist, f"{file}:Around", shift=shift) for shift in (0.0, 0.5))
    assert trial_row(shifted).status == "ok", trial_row(shifted).error_message
    assert plain.weights is not None
    assert shifted.weights is not None
    assert not any(torch.allclose(shifted.weights[key], weight) for key, weight in plain.weights.items())


def test_modes_of_a_returned_object_are_detected(file: str, mnist: Dataset) -> None:
    """Its methods double the weights for training and halve them for measuring, and assert the right order."""
    (result, *_), (plain, *_) = run(mnist, f"{file}:doubles", lr=0.0), run(mnist, f"{file}:plain", lr=0.0)
    assert trial_row(result).status == "ok", trial_row(result).error_message
    assert result.weights is not None
    assert all(torch.allclose(result.weights[key], weight) for key, weight in (plain.weights or {}).items())
    (still, *_) = run(mnist, f"{file}:doubles", lr=0.0, needs="no-modes")
    assert all(torch.equal((still.weights or {})[key], weight) for key, weight in (plain.weights or {}).items())


def test_needs_of_a_function_are_read_from_its_signature_and_result(file: str) -> None:
    def needs(name: str) -> set[str]:
        target = f"{file}:{name}"
        spec = resolve_spec(find(target), {})
        network = nn.Sequential(nn.Linear(2, 2))
        made = maker(spec, {}, {"model": network})(list(network.parameters()))
        assert needs_of(load_factory(target), {}) == spec.needs
        return set(resolve_made(spec, made, {}).needs) - {"random"}

    assert needs("plain") == needs("Duck") == set()
    assert needs("by_net") == needs("by_annotation") == needs("by_text") == {"model"}
    assert needs("groups") == needs("several") == {"named_parameters"}
    assert needs("needs_closure") == needs("NeedsClosure") == {"closure"}
    assert needs("doubles") == needs("Doubles") == {"modes"}
    assert needs("attached") == needs("Around") == {"around_forward"}


def test_wrappers_accept_functions_as_base(file: str, mnist: Dataset) -> None:
    for base in ("plain", "Duck"):
        suite = small_suite(
            {"opt": {"target": "gradient-noise", "eta": 0.0, "base": {"target": f"{file}:{base}", "lr": 0.05}}},
            seeds=1,
            max_epochs=1,
        )
        (result,) = train_suite(suite, mnist)
        assert trial_row(result).status == "ok", trial_row(result).error_message


def test_a_function_can_be_declared_elementwise(file: str, mnist: Dataset) -> None:
    stacked, apart = (run(mnist, f"{file}:plain", **more) for more in ({"elementwise": True}, {}))
    for result, expected in zip(stacked, apart, strict=True):
        assert all(torch.equal((result.weights or {})[k], w) for k, w in (expected.weights or {}).items())
    with pytest.raises(Exception, match="is declared elementwise, but fails the test"):
        run(mnist, f"{file}:Duck", elementwise=True)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("nothing", [], "mine.py:nothing: expected the returned value to be an optimizer with `step` and `zero_grad`"),
        ("nothing", [], "got None"),
        ("its_class", [], "got a class instead of an instance"),
        ("no_zero_grad", [], "got Steps without zero_grad"),
        ("demanding", [], "got LBFGS, which needs closure"),
        ("breaks", [], "ArithmeticError: not today"),
        ("number", [], "'number' is of type int"),
        ("plain", ["--set", "optimizers.x.lrr=1"], "unknown hyper-parameter 'lrr' of ./mine.py:plain"),
        ("groups", ["--set", "optimizers.x.bias_ls=1"], "did you mean 'bias_lr'?"),
        ("by_text", ["--set", "optimizers.x.lr=fast"], "'lr' of ./mine.py:by_text: expected float, got 'fast'"),
        ("by_text", ["--set", "optimizers.x.lr=true"], "'lr' of ./mine.py:by_text: expected float, got True"),
        ("nothign", [], "did you mean 'nothing'?"),
    ],
)
def test_a_function_that_returns_no_optimizer_is_refused_before_training(
    name: str, words: list[str], said: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    assert main(["run", "suite.yaml", "--device", "cpu", "--optimizer", f"x={file}:{name}", *words]) == 2
    shown, error = capsys.readouterr()
    assert shown == ""
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_check_accepts_functions(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:Around", "--set", "shift=0.1"]) == 0
    assert "around_forward() around each forward and backward pass" in capsys.readouterr().out
    assert main(["check", f"{file}:groups"]) == 0
    assert main(["check", f"{file}:doubles"]) == 0
