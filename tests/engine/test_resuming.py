"""Optimizers that cannot be resumed from their `state_dict()` restart, and their trials have a note with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import optbench.execution.work
from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import train
from optbench.engine.interim import Interim
from optbench.optimizers.load import load_factory
from optbench.plan import cohorts, trials
from optbench.suite import Suite, dump_suite
from tests.conftest import same_bits, small_suite, tables, trial_row
from tests.engine.test_interim import cut_and_whole, setting_of

pytestmark = pytest.mark.usefixtures("_train_here")

COMMON = """
import weakref
import torch

MODULE = {}

class Base(torch.optim.Optimizer):
    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
        self.begin()
    def begin(self): ...
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.update(p), alpha=group["lr"])
"""
KEYS = {
    "id(p) in an attribute": ("self.own = {}", "buffers, key = self.own, id(p)"),
    "id(p) in the state": ("...", "buffers, key = self.state, id(p)"),
    "id(p) in a group": ("self.param_groups[0]['own'] = {}", "buffers, key = self.param_groups[0]['own'], id(p)"),
    "data_ptr of what was made": ("self.own = {}", "buffers, key = self.own, p.data_ptr()"),
    "id(p) as text": ("self.own = {}", "buffers, key = self.own, f'p{id(p)}'"),
    "the parameter, in the module": ("...", "buffers, key = MODULE, p"),
    "a counter of the class": ("...", "type(self).taken += 1; buffers, key = self.state[p], 'm'"),
}
"""Places to keep momentum: the code in the constructor, and the code in `update` that finds it."""


def source() -> str:
    classes = []
    for i, (begin, find) in enumerate(KEYS.values()):
        classes.append(
            f"\nclass C{i}(Base):\n    taken = 0\n    def begin(self): {begin}\n"
            f"    def update(self, p):\n        {find}\n"
            "        if key not in buffers: buffers[key] = torch.zeros_like(p)\n"
            "        return buffers[key].mul_(0.9).add_(p.grad).mul(1 / (1 + type(self).taken / 1000))\n"
        )
    honest = (
        "\nclass Honest(Base):\n"
        "    def update(self, p):\n"
        "        m = self.state[p].setdefault('m', torch.zeros_like(p))\n"
        "        return m.mul_(0.9).add_(p.grad + 0.01 * torch.randn(p.shape))\n"
        "\nclass Late(Base):\n"
        "    def begin(self): self.own, self.taken = {}, 0\n"
        "    def update(self, p):\n"
        "        self.taken += 1\n"
        "        kept = self.own.setdefault(id(p), torch.zeros_like(p)).add_(p.grad)\n"
        "        return p.grad + (kept if self.taken % 160 < 4 else 0)\n"
        "\nclass OnParameters(Base):\n"
        "    def begin(self): self.param_groups[0]['taken'] = 0\n"
        "    def update(self, p):\n"
        "        self.param_groups[0]['taken'] += 1\n"
        "        p.kept = getattr(p, 'kept', 0) + p.grad\n"
        "        return p.grad + (p.kept if self.param_groups[0]['taken'] % 160 < 4 else 0)\n"
    )
    return COMMON + "".join(classes) + honest


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "keyed.py"
    path.write_text(source())
    return path


def suite_of(target: str | dict[str, Any], **more: Any) -> Suite:
    """target: the target, or all settings of the optimizer."""
    settings = {"target": target} if isinstance(target, str) else target
    small: dict[str, Any] = {"train_examples": 300, "test_examples": 100, "validation_examples": 50, "max_epochs": 1}
    return small_suite(
        {"it": settings}, tasks={"kind": "permuted", "count": 3}, **{"seeds": 2, "metrics": ["hoyer"], **small, **more}
    )


def kept_of(suite: Suite, mnist: Dataset) -> list[Interim]:
    (cohort,) = cohorts(trials(suite))
    kept: list[Interim] = []
    train(cohort, setting_of(suite, mnist), lambda progress: None, lambda take: kept.extend(take()))
    return kept


@pytest.mark.parametrize("name", KEYS)
def test_a_state_that_resumes_differently_is_not_saved(name: str, plugins: Path, mnist: Dataset) -> None:
    kept = kept_of(suite_of(f"{plugins}:C{list(KEYS).index(name)}"), mnist)
    assert [(interim.task, len(interim.rows), interim.state) for interim in kept] == [
        (task, 0, b"") for task in (1, 1, 2, 2)
    ]
    for interim in kept:
        assert interim.refused is not None
        assert re.search("takes different steps|does not restore `own`|outside of its instances", interim.refused)
        assert "\n" not in interim.refused


def test_state_that_is_rarely_used_is_compared_too(plugins: Path, mnist: Dataset) -> None:
    """The state matters only in every fortieth step, beyond the trial steps, but the instances differ immediately."""
    for name, what in (("Late", "`own`"), ("OnParameters", "all of its state")):
        suite = suite_of(f"{plugins}:{name}", train_examples=2000, early_stopping=None, seeds=1)
        refused = kept_of(suite, mnist)[0].refused
        assert refused == f"{name}.load_state_dict(state_dict()) does not restore {what}"


def test_checking_a_state_does_not_affect_the_trial(plugins: Path, mnist: Dataset) -> None:
    for cohort, whole, again in cut_and_whole(suite_of(f"{plugins}:Honest"), mnist):
        assert all(map(same_bits, whole, again))
        plain = train(cohort, setting_of(suite_of(f"{plugins}:Honest"), mnist), lambda progress: None)
        assert all(map(same_bits, plain, whole))


@pytest.mark.parametrize("name", KEYS)
def test_a_copy_that_fails_does_not_affect_the_original(name: str, plugins: Path, mnist: Dataset) -> None:
    suite = suite_of(f"{plugins}:C{list(KEYS).index(name)}", seeds=1)
    (cohort,) = cohorts(trials(suite))
    shared = name == "a counter of the class"
    ends = []
    for keep in (None, lambda take: take()):
        if shared:  # a counter of the class is shared by trials, so reset it
            load_factory(cohort.trials[0].target).taken = 0  # type: ignore[attr-defined]
        ends += train(cohort, setting_of(suite, mnist), lambda progress: None, keep)
    assert same_bits(*ends)


STATES: dict[str, tuple[str, str | None]] = {
    "SGD with momentum": ("SGD", None),
    "Adam": ("Adam", None),
    "state in state_dict": ("Honest", None),
    "a duck with state_dict": ("Proper", None),
    "state in an attribute": ("Attribute", "does not restore `velocity`"),
    "a load_state_dict that raises": ("Unloadable", "raised KeyError"),
    "a duck without state_dict": ("Duck", "Duck has no state_dict and no load_state_dict"),
    "a state that is not read as data": ("Custom", "torch.load(weights_only=True) rejects the state"),
    "Lookahead over another": ("lookahead", None),
    "a wrapper of schedulefree": ("schedule_free", None),
}


@pytest.mark.parametrize("name", STATES)
def test_a_resumed_trial_is_identical_or_restarts(name: str, states: Path, mnist: Dataset) -> None:
    attribute, words = STATES[name]
    for package in {"lookahead": ["pytorch_optimizer"], "schedule_free": ["schedulefree"]}.get(attribute, []):
        pytest.importorskip(package)
    suite = suite_of(f"{states}:{attribute}", seeds=1)
    refused = {interim.refused for interim in kept_of(suite, mnist)}
    if words is None:
        assert refused == {None}
        for _, whole, again in cut_and_whole(suite, mnist):
            assert [trial_row(result).status for result in whole] == ["ok"]
            assert all(map(same_bits, whole, again))
    else:
        (reason,) = refused
        assert reason is not None
        assert words in reason


STATES_FILE = """
import torch

def SGD(params, lr=0.05):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)

def Adam(params, lr=0.005):
    return torch.optim.Adam(params, lr=lr)

class Honest(torch.optim.Optimizer):
    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            m = self.state[p].setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
            p.sub_(m, alpha=self.param_groups[0]["lr"])

class Duck:
    def __init__(self, params, lr=0.05):
        self.params, self.lr = list(params), lr
        self.velocity = [torch.zeros_like(p) for p in self.params]
    def zero_grad(self): ...
    @torch.no_grad()
    def step(self):
        for p, m in zip(self.params, self.velocity):
            p.sub_(m.mul_(0.9).add_(p.grad), alpha=self.lr)

class Proper(Duck):
    def state_dict(self):
        return {"velocity": self.velocity}
    def load_state_dict(self, state):
        self.velocity = [m.clone() for m in state["velocity"]]

class Attribute(Proper):
    def load_state_dict(self, state): ...

class Unloadable(Proper):
    def load_state_dict(self, state):
        raise KeyError("velocity")

class Custom(Proper):
    def state_dict(self):
        return {"velocity": self}

def lookahead(params, lr=0.05):
    from pytorch_optimizer import Lookahead
    return Lookahead(torch.optim.SGD(params, lr=lr, momentum=0.9))

def schedule_free(params, lr=0.05):
    from schedulefree import ScheduleFreeWrapper
    return ScheduleFreeWrapper(torch.optim.SGD(params, lr=lr), momentum=0.9)
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states") / "states.py"
    path.write_text(STATES_FILE)
    return path


COUNTER = list(KEYS).index("a counter of the class")
INSIDE: dict[str, dict[str, Any]] = {
    "a wrapper": {"target": "sam", "base": {"target": "FILE", "lr": 0.05}},
    "two wrappers": {"target": "sam", "base": {"target": "l1", "base": {"target": "FILE", "lr": 0.05}}},
    "an optimizer of matrices only": {"target": "FILE", "only_matrices": True},
}


@pytest.mark.parametrize("where", INSIDE)
def test_state_outside_instances_of_a_wrapped_optimizer_is_detected(where: str, plugins: Path, mnist: Dataset) -> None:
    """The state is detected before the copy changes it, since results must not depend on when states are saved."""
    target = f"{plugins}:C{COUNTER}"
    settings = json.loads(json.dumps(INSIDE[where]).replace("FILE", target))
    suite = suite_of(settings, seeds=1)
    (cohort,) = cohorts(trials(suite))
    kept: list[Interim] = []
    ends = []
    for keep in (None, lambda take: kept.extend(take())):
        load_factory(target).taken = 0  # type: ignore[attr-defined]
        ends += train(cohort, setting_of(suite, mnist), lambda progress: None, keep)
    assert same_bits(*ends)
    assert all("outside of its instances" in (interim.refused or "") for interim in kept)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Save a state after every task and raise KeyboardInterrupt after the given number of writes."""
    left: list[int] = [0]
    write = optbench.execution.work.write_interim

    def written(*given: Any) -> None:
        write(*given)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(optbench.execution.work, "write_interim", written)
    monkeypatch.setattr(optbench.execution.work, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(optbench.execution.work, "SHARE", 1e9)
    return left


@pytest.mark.parametrize(
    ("name", "words"),
    [("C0", "C0.load_state_dict(state_dict()) does not restore `own`"), ("Honest", None)],
)
def test_after_a_kill_the_trial_restarts_with_a_note(
    name: str, words: str | None, plugins: Path, tmp_path: Path, killed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(dump_suite(suite_of(f"{plugins}:{name}")))
    runs = ["--runs-dir", str(tmp_path / "runs"), "--device", "cpu", "--jobs", "1", "--quiet"]
    assert main(["run", str(file), "--name", "whole", *runs]) == 0
    killed[0] = 1
    assert main(["run", str(file), "--name", "cut", *runs]) == 130
    capsys.readouterr()
    assert main(["run", "--resume", str(tmp_path / "runs/cut"), *runs]) == 0
    whole, cut = tables(tmp_path / "runs/whole"), tables(tmp_path / "runs/cut")
    notes = cut["trials"].pop("note").tolist()
    assert whole["trials"].pop("note").isna().all()
    for table in whole:
        pd.testing.assert_frame_equal(whole[table], cut[table], check_exact=True)
    if words is None:
        assert all(map(pd.isna, notes))
    else:
        assert all(note.startswith(f"trained from the start when resumed: {words}") for note in notes)
    assert not list((tmp_path / "runs/cut/interim").glob("*/members.json")), "no interim state is left"
