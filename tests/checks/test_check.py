"""`optbench check`: the optimizer contract, tested on all registered optimizers and on ones that violate it."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optbench.checks import Finding
from optbench.checks.evidence import largest_difference
from optbench.checks.global_draws import GlobalDraws
from optbench.checks.optimizer import CHECKS, check
from optbench.checks.plain import PlainTraining
from optbench.checks.problem import Problem, Size
from optbench.cli import main
from optbench.cli.checking import MARKS, NAME_WIDTH, parse_settings
from optbench.errors import OptimizerError, UsageError
from optbench.optimizers.registry import OPTIMIZERS
from tests.engine.test_interim import STARTED_OVER

TINY = Size(side=7, hidden=16, examples=256, batch_size=32, steps=16)
ALL = [entry.name for entry in CHECKS]

# Every class is gradient descent with one fault or peculiarity.
FILE = """
import random

import numpy
import torch


class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr=0.05, momentum=0.9, weight_decay=0.0):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum}\\nis out of range")
        super().__init__(params, {"lr": lr, "momentum": momentum, "taken": 0})

    def each(self):
        return ((group, p) for group in self.param_groups for p in group["params"])

    def before(self):
        pass

    @torch.no_grad()
    def step(self, closure=None):
        self.param_groups[0]["taken"] += 1
        self.before()
        for group, p in self.each():
            self.move(p, group["lr"], self.velocity(p, group["momentum"]))

    def velocity(self, p, momentum):
        velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
        return velocity.mul_(momentum).add_(p.grad)

    def move(self, p, lr, velocity):
        p.sub_(lr * velocity)


class Climbs(Plain):
    def move(self, p, lr, velocity):
        p.add_(lr * velocity)


class Rests(Plain):
    def move(self, p, lr, velocity):
        pass


class Draws(Plain):
    '''From generators that the lane lends it.'''

    def move(self, p, lr, velocity):
        p.sub_(lr * velocity * torch.rand(()) * numpy.random.random())


class DrawsInPython(Plain):
    def move(self, p, lr, velocity):
        p.sub_(lr * velocity * random.random())


class DrawsElsewhere(Plain):
    def move(self, p, lr, velocity):
        p.sub_(lr * velocity * random.SystemRandom().random())


class Counts(Plain):
    '''Steps depend on how many instances the process has made.'''

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr)
        torch.made_by_plugins = getattr(torch, "made_by_plugins", 0) + 1
        self.scale = 1 + torch.made_by_plugins / 100

    def move(self, p, lr, velocity):
        p.sub_(lr * self.scale * velocity)


class Shares(Plain):
    '''What is shared lies outside this module, since every instance may get a module of its own.'''

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr)
        torch.shared_by_plugins = {"last": None, "lost": False}


class Gossips(Shares):
    '''A step is longer when another instance took one in between.'''

    def move(self, p, lr, velocity):
        shared = torch.shared_by_plugins
        p.sub_(lr * velocity * (1 if shared["last"] in (None, self) else 1.5))
        shared["last"] = self


class Infects(Shares):
    '''What one instance has lost, all lose.'''

    def move(self, p, lr, velocity):
        shared = torch.shared_by_plugins
        p.sub_(lr * velocity)
        shared["lost"] |= not p.abs().max() < 1e6
        if shared["lost"]:
            p.mul_(0.5)


class Forgets(Plain):
    '''Its momentum is not in its state.'''

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr)
        self.hidden = {}

    def velocity(self, p, momentum):
        velocity = self.hidden.setdefault(p, torch.zeros_like(p))
        return velocity.mul_(momentum).add_(p.grad)


class Unloadable(Plain):
    def load_state_dict(self, state_dict):
        raise KeyError("velocity")


class Mutates(Plain):
    def move(self, p, lr, velocity):
        p.sub_(lr * velocity)
        p.grad.mul_(-1e6)


class Rebinds(Plain):
    def move(self, p, lr, velocity):
        p.data = p.data - lr * velocity


class Raises(Plain):
    def before(self):
        if self.param_groups[0]["taken"] == 7:
            raise ArithmeticError("enough\\nof this")


class Nan(Plain):
    def move(self, p, lr, velocity):
        p.sub_(lr * velocity if self.param_groups[0]["taken"] != 7 else torch.nan)


class AsksLate(Plain):
    '''Needs a closure, whatever its signature says.'''

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise TypeError("step() needs a closure")
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


class Asks(AsksLate):
    def step(self, closure):
        return super().step(closure)


class Modes(Plain):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr)
        self.mode = "eval"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"

    def before(self):
        assert self.mode == "train"


class Calm(torch.optim.SGD):
    '''No setting of it can be absurd.'''

    def __init__(self, params, lr=0.05):
        if lr > 1:
            raise ValueError("lr is too large")
        super().__init__(params, lr=lr)


class Elementwise(torch.optim.SGD):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr, momentum=0.9)


print("a user's file may print")
"""


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    path = tmp_path_factory.mktemp("plugins") / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    return lambda name: f"{path}:{name}"


@pytest.fixture
def find(plugins: Callable[[str], str]) -> Callable[..., dict[str, Finding]]:
    def run(name: str, **hyperparameters: Any) -> dict[str, Finding]:
        return {found.name: found for found in check(Problem.of(plugins(name), hyperparameters, TINY))}

    return run


def with_outcome(findings: dict[str, Finding], outcome: str) -> list[str]:
    return [name for name, found in findings.items() if found.outcome == outcome]


def numbers(finding: Finding) -> list[float]:
    return [float(text) for text in re.findall(r"\d+(?:\.\d+)?", finding.text)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_registered_optimizer_satisfies_the_contract(name: str) -> None:
    before = GlobalDraws.now()
    findings = {found.name: found for found in check(Problem.of(name, {}, TINY))}
    assert with_outcome(findings, "failed") == [], findings
    assert before.moved(GlobalDraws.now()) == [], "registered optimizers do not use the global generators"
    trained = ("lowers the loss", "deterministic", "resume", "independence")
    assert [check for check in trained if findings[check].outcome != "passed"] == (
        ["resume"] if name in STARTED_OVER else []
    )


def test_a_correct_optimizer_passes_every_check(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Plain", lr=0.03)
    assert with_outcome(findings, "passed") == list(ALL[:7])
    assert with_outcome(findings, "information") == ["lane", "state", "step time"]
    assert list(findings) == [name for name in ALL if name in findings], "in the order of the table"
    assert findings["loads"].text == "Plain takes lr=0.03"
    assert findings["lane"].text.startswith("per-member: ")
    assert findings["state"].text == "4.0 bytes per parameter (1.0 float32 numbers)"
    assert "× AdamW's" in findings["step time"].text


def test_an_optimizer_declared_elementwise_is_checked_in_that_lane(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Elementwise", elementwise=True)
    assert with_outcome(findings, "failed") == []
    assert findings["lane"].text.startswith("elementwise: ")


# By name: the failing check, its message, and the checks that are then skipped
FAULTS: dict[str, tuple[str, str, list[str]]] = {
    "Climbs": ("lowers the loss", "after 32 steps", []),
    "Rests": ("lowers the loss", "the weights are unchanged after 32 steps", ["diverged neighbour"]),
    "DrawsElsewhere": ("deterministic", "two training runs with the same seed differ", ALL[3:6]),
    "Counts": ("deterministic", "weights differ by up to", ALL[3:6]),
    "Raises": (
        "lowers the loss",
        "raised at step 7: ArithmeticError: enough of this",
        [*ALL[2:7], "state", "step time"],
    ),
    "Nan": ("lowers the loss", "diverged at step 8", [*ALL[2:7], "state", "step time"]),
    "AsksLate": ("lowers the loss", "; --set needs=closure works", [*ALL[2:7], "state", "step time"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_fails_its_own_check(name: str, find: Callable[..., dict[str, Finding]]) -> None:
    fails, says, skipped = FAULTS[name]
    findings = find(name)
    assert with_outcome(findings, "failed") == [fails]
    assert says in findings[fails].text
    assert with_outcome(findings, "skipped") == skipped
    assert "\n" not in findings[fails].text


def test_a_member_that_depends_on_its_companions_is_detected(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Gossips", lr=0.01)
    assert with_outcome(findings, "failed") == ["independence", "diverged neighbour"]
    assert "a restored Gossips takes different steps" in findings["resume"].text


def test_divergence_that_spreads_to_a_neighbour_is_detected(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Infects")
    assert with_outcome(findings, "failed") == ["diverged neighbour"]
    assert "lr=1e+30: weights differ by up to" in findings["diverged neighbour"].text


def test_changed_gradients_are_reported_as_harmless(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Mutates")
    assert with_outcome(findings, "failed") == []
    assert findings["gradients"].outcome == "passed"
    assert "changes the gradients of 4 of 4 parameters, which is harmless because it receives copies" in (
        findings["gradients"].text
    )


def test_draws_from_seeded_global_generators_are_reported_as_harmless(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Draws")
    assert with_outcome(findings, "failed") == []
    assert "the global generator of torch and numpy.random" in findings["draws"].text
    findings = find("DrawsInPython")
    assert with_outcome(findings, "failed") == []
    assert "Python's random" in findings["draws"].text
    assert "draws" not in find("Plain")


def test_rebound_memory_is_reported_as_harmless(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Rebinds")
    assert with_outcome(findings, "failed") == []
    assert findings["p.data"].outcome == "information"
    assert "p.data" not in find("Plain")


@pytest.mark.parametrize(
    ("name", "settings"), [("Asks", {}), ("AsksLate", {"needs": "closure"})], ids=["signature", "declared"]
)
def test_a_closure_is_passed_if_requested(
    name: str, settings: dict[str, Any], find: Callable[..., dict[str, Finding]]
) -> None:
    findings = find(name, **settings)
    assert with_outcome(findings, "failed") == []
    assert "closure" in findings["needs"].text
    assert with_outcome(findings, "skipped") == ["gradients"]
    # The same method with a closure; the engine's gradients are rounded differently.
    assert numbers(findings["lowers the loss"]) == pytest.approx(numbers(find("Plain")["lowers the loss"]), rel=1e-5)


def test_modes_are_reported_and_used(find: Callable[..., dict[str, Finding]]) -> None:
    findings = find("Modes")
    assert with_outcome(findings, "failed") == []
    assert "train() before steps" in findings["needs"].text


def test_the_check_of_diverged_neighbours_is_skipped_without_a_suitable_setting(
    find: Callable[..., dict[str, Finding]],
) -> None:
    finding = find("Calm")["diverged neighbour"]
    assert finding.outcome == "skipped"
    assert "no lr or learning_rate or weight_decay that can be set to 1e+30" in finding.text


def test_checks_restore_threads_and_generators(find: Callable[..., dict[str, Finding]]) -> None:
    torch.set_num_threads(2)
    try:
        before = GlobalDraws.now()
        find("Plain")
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
        assert before.moved(GlobalDraws.now()) == []
    finally:
        torch.set_num_threads(1)


def test_drawing_from_a_global_generator_is_detected() -> None:
    draws: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.rand(()).item(),
        "numpy.random": lambda: np.random.random(),  # noqa: NPY002 (what is to be seen)
        "Python's random": random.random,
    }
    for library, draw in draws.items():
        before = GlobalDraws.now()
        draw()
        assert before.moved(GlobalDraws.now()) == [library]


def test_the_plain_loop_and_the_engine_start_at_the_same_weights() -> None:
    problem = Problem.of("sgd", {"lr": 0.1}, TINY)
    training = PlainTraining(problem)
    assert largest_difference(training.weights(), problem.start(0)) is None
    training.run(0, 1)
    inputs, labels = problem.batch(0)
    network = problem.network(problem.start(0))
    loss = torch.nn.functional.cross_entropy(network(inputs), labels)
    grads = torch.autograd.grad(loss, list(network.parameters()))
    for (name, parameter), grad in zip(network.named_parameters(), grads, strict=True):
        assert torch.allclose(training.weights()[name], parameter.detach() - 0.1 * grad, atol=1e-7)


def test_the_largest_difference_detects_one_bit_and_nan() -> None:
    one = torch.ones(3)
    bit = torch.tensor([1.0, 1.0 + 2**-23, 1.0])
    assert largest_difference({"w": one}, {"w": one.clone()}) is None
    assert largest_difference({"w": one}, {"w": bit}) == 2**-23
    assert str(largest_difference({"w": one}, {"w": torch.tensor([1.0, torch.nan, 1.0])})) == "nan"


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("adamm", {}, "did you mean 'adam'"),
        ("adam", {"rate": 1}, "unknown hyper-parameter 'rate' of adam"),
        ("adam", {"lr": "fast"}, "expected a number"),
        ("no_such_module:Sgd", {}, "cannot import no_such_module"),
        ("torch.optim:Adaam", {}, "did you mean 'Adam'"),
        ("torch.nn:Linear", {}, "expected a torch.optim.Optimizer, or a class or function"),
        ("torch.optim:SGD", {"lr": -1.0}, "rejects its hyper-parameters: ValueError"),
    ],
)
def test_a_target_that_cannot_be_loaded_is_refused_before_training(
    target: str, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.checks.problem.train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(OptimizerError, match=message) as caught:
        Problem.of(target, settings, TINY)
    assert "\n" not in str(caught.value)


def test_settings_are_parsed_as_in_a_suite() -> None:
    texts = ["lr=1e-3", "betas=[0.9, 0.99]", "nesterov=true", "base.target=adamw", "base.lr=0.1"]
    expected = {"lr": 1e-3, "betas": [0.9, 0.99], "nesterov": True, "base": {"target": "adamw", "lr": 0.1}}
    assert parse_settings(texts) == expected
    with pytest.raises(UsageError, match=r"expected key\.path"):
        parse_settings(["lr"])
    with pytest.raises(UsageError, match=r"expected lr to be a mapping, got 0\.1"):
        parse_settings(["lr=0.1", "lr.low=2"])


def test_names_fit_their_column() -> None:
    assert max(map(len, ALL)) <= NAME_WIDTH


def test_the_command_prints_one_line_per_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.py").write_text(FILE, encoding="utf-8")  # a file is executed once per process, so it prints once
    assert main(["check", f"{tmp_path / 'new.py'}:Rebinds", "--set", "lr=0.02"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line[2 : 2 + NAME_WIDTH].rstrip() for line in lines[:-1]] == [n for n in ALL if n not in ("draws", "needs")]
    assert all(line[0] in MARKS.values() for line in lines[:-1])
    assert lines[0] == f"✓ {'loads':<{NAME_WIDTH}} Rebinds takes lr=0.02"
    assert lines[-1].endswith("Rebinds satisfies the contract")
    assert "\x1b" not in out
    assert "a user's file may print" in err
    assert "a user's file may print" not in out


def test_a_broken_contract_gives_exit_code_1(plugins: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", plugins("Raises")]) == 1
    out, _ = capsys.readouterr()
    assert "\n✗ lowers the loss     raised at step 7: ArithmeticError: enough of this\n" in out
    assert out.endswith("Raises violates the contract: lowers the loss\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adamm"], "unknown name 'adamm'; did you mean 'adam'?"),
        (["adam", "--set", "rate=1"], "unknown hyper-parameter 'rate' of adam"),
        (["adam", "--set", "lr"], "expected key.path"),
        (["./no_such_file.py:Sgd"], "there is no file"),
        (["PLUGIN", "--set", "momentum=2"], "ValueError: momentum 2 is out of range"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, plugins: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["check", *(plugins("Plain") if a == "PLUGIN" else a for a in arguments)])
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("optbench: ")]
    assert (code, out, len(said)) == (2, "", 1)
    assert message in said[0]


def test_on_a_terminal_messages_wrap_next_to_the_name() -> None:
    from rich.console import Console

    from optbench.cli.checking import _line

    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=True, color_system="standard")
    console.print(_line(Finding("resume", "failed", "it forgets its momentum [bold] " * 3), folded=True))
    lines = [line.rstrip() for line in Console(width=60).render_str(file.getvalue()).plain.splitlines()]
    assert "\x1b[" in file.getvalue()
    assert "[bold]" in file.getvalue(), "messages are not interpreted as markup"
    assert len(lines) > 1
