"""Remedies from `optbench check`: declarations to try, the line that raised, and the effect of resuming."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.cli import main

FILE = """
import torch

class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
        self.begin()
    def begin(self): ...
    def all(self): return [p for group in self.param_groups for p in group["params"]]
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.all(): self.move(p)
    def move(self, p): p.sub_(self.defaults["lr"] * p.grad)

class Asks(Plain):
    def step(self, closure=None):
        assert closure is not None
        with torch.enable_grad(): closure()
        super().step()

class Differentiates(Plain):
    def step(self, closure=None):
        grads = [p.grad for p in self.all()]
        if not all(g.requires_grad for g in grads): raise NotImplementedError  # it needs them so
        torch.autograd.grad(sum((g * g).sum() for g in grads), self.all())
        super().step()

class Matrices(Plain):
    def move(self, p):
        assert p.ndim == 2
        super().move(p)

class OnlyMatrices(Plain):
    def begin(self):
        assert all(p.ndim == 2 for p in self.all())

class Broken(Plain):
    def move(self, p): raise NotImplementedError  # whatever is declared

class Refuses(Plain):
    def begin(self): assert self.defaults["lr"] < 0

class Prints(Plain):
    def move(self, p): raise ValueError(f"strange: {torch.arange(4000.0)}")

class Freezes(Plain):
    def begin(self): self.all()[0].requires_grad_(False)
    def move(self, p):
        if p.requires_grad: super().move(p)

class Keyed(Plain):
    def begin(self): self.own = {}
    def move(self, p):
        m = self.own.setdefault(id(p), torch.zeros_like(p)).mul_(0.9).add_(p.grad)
        p.sub_(self.defaults["lr"] * m)

class Outer(Plain):
    '''As Lookahead: another optimizer, and slow weights of its own in an attribute.'''
    def begin(self):
        self.inner = torch.optim.Adam(self.all(), lr=0.01)
        self.slow = [p.detach().clone() for p in self.all()]
        self.again, self.taken = self.slow, 0
    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.taken += 1
        if self.taken % 5 == 0:
            for p, slow in zip(self.all(), self.slow):
                p.copy_(slow.lerp_(p, 0.5))

class Pretends(Plain):
    def move(self, p):
        p.sub_(self.defaults["lr"] * (p.grad if p.numel() < 500 else p.grad / p.grad.norm()))
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "theirs.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def checked(plugin: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str], str]]:
    """Return a function that returns the exit code, the mark and text of each line by name, and standard error."""

    def run(name: str, *settings: str) -> tuple[int, dict[str, str], str]:
        capsys.readouterr()
        code = main(["check", f"{plugin}:{name}", *(word for text in settings for word in ("--set", text))])
        out, err = capsys.readouterr()
        lines = [re.fullmatch(r"(.) (.{19}) (.*)", line).groups() for line in out.splitlines()[:-1]]  # type: ignore[union-attr]
        return code, {name.strip(): f"{mark} {text}" for mark, name, text in lines}, err

    return run


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("Asks", "needs=closure"), ("Differentiates", "needs=create_graph"), ("Matrices", "only_matrices=true")],
)
def test_declarations_are_tried_and_the_one_that_works_is_suggested(
    name: str, remedy: str, checked: Callable[..., tuple[int, dict[str, str], str]]
) -> None:
    code, lines, _ = checked(name)
    assert code == 1
    assert lines["lowers the loss"].startswith("✗ ")
    assert lines["lowers the loss"].endswith(f"; --set {remedy} works")
    assert checked(name, remedy)[0] == 0, "the suggested declaration works"


def test_nothing_is_suggested_if_no_declaration_works(checked: Callable[..., tuple[int, dict[str, str], str]]) -> None:
    code, lines, _ = checked("Broken")
    assert code == 1
    assert "works" not in lines["lowers the loss"]


def test_an_optimizer_of_matrices_is_refused_with_the_declaration_that_works(
    checked: Callable[..., tuple[int, dict[str, str], str]],
) -> None:
    code, lines, err = checked("OnlyMatrices")
    assert (code, lines) == (2, {})
    assert err.rstrip().endswith("; it works with --set only_matrices=true")
    assert checked("OnlyMatrices", "only_matrices=true")[0] == 0


@pytest.mark.parametrize("name", ["Refuses", "OnlyMatrices"])
def test_an_exception_without_a_message_is_reported_with_its_line(
    name: str, checked: Callable[..., tuple[int, dict[str, str], str]]
) -> None:
    _, _, err = checked(name)
    raising = {"Refuses": 'assert self.defaults["lr"] < 0', "OnlyMatrices": "assert all(p.ndim == 2"}[name]
    number = next(i for i, line in enumerate(FILE.splitlines(), 1) if raising in line)
    assert "AssertionError" in err
    assert f"theirs.py:{number}" in err
    assert "(no message)" not in err


def test_frozen_parameters_do_not_fail_a_check(checked: Callable[..., tuple[int, dict[str, str], str]]) -> None:
    code, lines, _ = checked("Freezes")
    assert code == 0
    assert lines["gradients"].startswith("✓")


def test_an_optimizer_that_cannot_be_resumed_passes_with_a_remark(
    checked: Callable[..., tuple[int, dict[str, str], str]],
) -> None:
    code, lines, _ = checked("Keyed")
    assert code == 0, "results are right even without resuming"
    assert lines["resume"].startswith("· an interrupted trial is trained again from the start, with the same results")
    assert "Keyed.load_state_dict(state_dict()) does not restore `own`" in lines["resume"]


def test_state_of_a_nested_optimizer_is_counted(
    checked: Callable[..., tuple[int, dict[str, str], str]],
) -> None:
    code, lines, _ = checked("Outer")
    assert code == 0
    # Two moments of Adam, the slow weights (under two names), and four step counts of four bytes.
    assert "12.0 bytes per parameter (3.0 float32 numbers)" in lines["state"]
    assert "Outer.load_state_dict(state_dict()) does not restore `" in lines["resume"]


def test_a_wrong_declaration_fails(checked: Callable[..., tuple[int, dict[str, str], str]]) -> None:
    code, lines, _ = checked("Pretends", "elementwise=true", "lr=0.01")
    assert code == 1
    assert lines["lane"].startswith("✗ declared elementwise, but trained with one instance per trial: ")
