"""Changes that one trial's optimizer makes to its arguments do not affect other trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.data import Dataset
from optbench.engine import Workspace
from optbench.execution.messages import Finished, Train
from optbench.execution.work import do
from optbench.plan import cohorts, trials
from optbench.store.tables import TrialRow
from tests.conftest import same_bits, small_suite, train_suite, trial_row

FILE = """
import torch
from torch.optim import SGD


class WritesSettings(SGD):
    '''Writes into the list and the mapping that it is given, and is faster where they were written into before.'''

    def __init__(self, params, lr, steps=(), options=None):
        seen = len(steps) > 1 or "seen" in options
        super().__init__(params, lr=lr * (5 if seen else 1))
        steps.append(7)
        options["seen"] = True


class WritesInputs(SGD):
    '''A hook of it writes into the batch.'''

    def __init__(self, model, lr, hooked=False):
        super().__init__(model.parameters(), lr=lr)
        first = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
        if hooked:
            first.register_forward_pre_hook(self.write)

    def write(self, module, inputs):
        with torch.no_grad():
            inputs[0].zero_()


class WritesGradients(SGD):
    '''Writes into gradients and weights after the step, through references that it keeps.'''

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.fill_(float("nan"))
                if group["lr"] > 0.4:
                    parameter.data.fill_(float("nan"))
"""
VARIANTS: dict[str, dict[str, Any]] = {
    "WritesSettings": {"lr": [0.05, 0.02], "steps": [[3]], "options": {"kind": "none"}},
    "WritesInputs": {"lr": 0.05, "hooked": [True, False]},
    "WritesGradients": {"lr": [0.5, 0.05]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_trial_among_others_equals_the_trial_alone(name: str, tmp_path: Path, mnist: Dataset) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    suite = small_suite({"mine": {"target": f"{file}:{name}", **VARIANTS[name]}}, seeds=2, max_epochs=1)
    settings = [dict(trial.hyperparameters) for trial in trials(suite)]
    before = json.dumps(settings)
    together = train_suite(suite, mnist)
    assert json.dumps(settings) == before
    assert len(together) == 4
    for i, trial in enumerate(together):
        assert trial_row(trial).hyperparameters == json.dumps(settings[i])
        assert same_bits(trial, train_suite(suite, mnist, i)[0]), trial.trial.id
    assert len({trial_row(trial).status for trial in together}) == (2 if name == "WritesGradients" else 1)


SHARED = {
    "mine.py": """
import torch
import rates

CALLS = []


class OnClass(torch.optim.SGD):
    made = 0

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        OnClass.made += 1


class InModule(torch.optim.SGD):
    def step(self, closure=None):
        CALLS.append(1)
        return super().step()


class InNeighbour(torch.optim.SGD):
    def step(self, closure=None):
        rates.seen["steps"] = rates.seen.get("steps", 0) + 1
        return super().step()


class InDefault(torch.optim.SGD):
    def step(self, closure=None, calls=[], rates=(1.0,)):
        calls.append(rates[0])
        return super().step()


class InInstance(torch.optim.SGD):
    pass
""",
    "rates.py": "seen = {}\n",
}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("OnClass", "OnClass.made"),
        ("InModule", "mine.CALLS"),
        ("InNeighbour", "rates.seen"),
        ("InDefault", "InDefault.step, default 2"),
        ("InInstance", None),
    ],
)
def test_state_shared_by_trials_of_a_process_is_noted(
    name: str, kept: str | None, tmp_path: Path, mnist: Dataset
) -> None:
    for file, text in SHARED.items():
        (tmp_path / file).write_text(text)
    target = f"{tmp_path / 'mine.py'}:{name}"
    suite = small_suite({"it": {"target": "sam", "base": {"target": target, "lr": 0.05}}}, seeds=2, max_steps=30)
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))
    (cohort,) = cohorts(trials(suite))
    answer = do(Train(cohort, {}), workspace, lambda progress: None, tmp_path / "interim")
    assert isinstance(answer, Finished)
    notes = [row.note or "" for _, row in answer.rows if isinstance(row, TrialRow)]
    said = f"the optimizer keeps state outside its instances ({kept}), which all trials of a process share"
    assert [said in note for note in notes] == [kept is not None] * 2
    assert all(("outside" in note) == (kept is not None) for note in notes)


def test_unreadable_objects_in_a_users_module_do_not_fail_a_trial(tmp_path: Path, mnist: Dataset) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import itertools, re, torch\n"
        "class Odd(dict):\n    def items(self): raise ValueError('not now')\n"
        "THINGS = [object(), re.compile('x'), itertools.count(), (i for i in range(3)), Odd(a=1), memoryview(b'x')]\n"
        "ODD, DEEP = Odd(a=1), []\nfor _ in range(5000): DEEP = [DEEP]\n"
        "class Mine(torch.optim.SGD): pass\n"
    )
    suite = small_suite({"it": {"target": f"{file}:Mine", "lr": 0.05}}, seeds=1, max_steps=5)
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))
    (cohort,) = cohorts(trials(suite))
    answer = do(Train(cohort, {}), workspace, lambda progress: None, tmp_path / "interim")
    assert isinstance(answer, Finished), answer
    assert [row.status for _, row in answer.rows if isinstance(row, TrialRow)] == ["ok"]
