"""Kinds: settings read from a signature, and users' datasets, task sequences and models through the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import optbench
from optbench.cli import main
from optbench.errors import KindError
from optbench.kinds import MODELS, TASKS, Registry
from tests.conftest import assert_same_tables
from tests.refusals import refusal

MINE = """
from typing import Annotated, Literal
import torch
from pydantic import Field
from torch import nn
import optbench

def moons(noise: Annotated[float, Field(ge=0)] = 0.1, count: int = 300) -> optbench.Dataset:
    def half(n):
        angle, label = torch.rand(n) * torch.pi, torch.arange(n) % 2
        x = torch.where(label == 0, angle.cos(), 1 - angle.cos())
        y = torch.where(label == 0, angle.sin(), 0.5 - angle.sin())
        return optbench.Split(torch.stack([x, y], 1) + noise * torch.randn(n, 2), label)
    return optbench.Dataset("moons", half(count), half(100), 2)

class Drift:
    def __init__(self, data, seed, count: int = 2, degrees: float = 30.0):
        self.data, self.names, self.degrees = data, [f"drift {i}" for i in range(count)], degrees
    def examples(self, trial_seed, task, part):
        plain = self.data[part]
        a = torch.tensor(self.degrees * task).deg2rad()
        turn = torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])])
        return plain.inputs @ turn + 0.01 * torch.randn(len(plain.targets), 2), plain.targets

class Net(nn.Module):
    def __init__(self, inputs, outputs, *, width: int = 8, act: Literal["relu", "tanh"] = "relu"):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(inputs.shape[0], width), nn.Linear(width, outputs), getattr(torch, act)
    def forward(self, x):
        return self.b(self.act(self.a(x)))
"""
SUITE = """\
name: mine
seeds: 2
optimizers: {sgd: {target: sgd, lr: 0.1}}
experiments:
  e:
    dataset: {kind: ./mine.py:moons, noise: 0.2}
    tasks: {kind: ./mine.py:Drift}
    models: {net: {kind: ./mine.py:Net, width: 6}}
    protocol: {batch_size: 32, max_steps: 3, validation_examples: 40}
    metrics: [forgetting]
"""
QUICK = ("--device", "cpu", "--jobs", "1", "--quiet")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "s.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "suites" / "mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


here = pytest.mark.usefixtures("_train_here")
"""Train in the process of the tests."""


# --- settings from a signature ---


def of(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return a registry of datasets in which the kind `./x.py:made` is the given function."""
    registry = Registry("dataset", (), {})
    monkeypatch.setattr("optbench.kinds.targets.load", lambda target: function)
    return registry


class Plain:
    """A kind with settings annotated as by users."""

    def __init__(
        self,
        depth: int,
        rate: float = 1,
        form: Literal["a", "b"] = "a",
        pair: tuple[int, float] = (1, 2.0),
        free=None,  # type: ignore[no-untyped-def]
        seed: int = None,  # type: ignore[assignment]  # noqa: RUF013
        call: Callable[[], object] = dict,
    ) -> None: ...


def test_defaults_are_written_out_if_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = of(Plain, monkeypatch)
    written = registry.complete("./x.py:made", {"depth": 3})
    assert written == {"depth": 3, "rate": 1, "form": "a", "pair": [1, 2.0], "free": None, "seed": None}
    assert registry.arguments("./x.py:made", written)["pair"] == (1, 2.0)


def test_defaults_without_annotations_are_passed_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(sizes=(4, 5), table={1: 2}, corners=[(0, 1)]): ...  # type: ignore[no-untyped-def]  # noqa: B006

    registry = of(made, monkeypatch)
    written = registry.complete("./x.py:made", {})
    assert written == {"sizes": [4, 5]}  # JSON has no numeric keys and no tuples within lists
    assert registry.arguments("./x.py:made", written) == {"sizes": (4, 5)}
    assert registry.arguments("./x.py:made", {"sizes": [6]}) == {"sizes": (6,)}


@pytest.mark.parametrize("wrong", [{"rate": "1e-3x"}, {"flat": "off"}, {"sizes": ["4", 5]}])
def test_text_is_refused_where_a_default_without_annotation_is_a_number_or_boolean(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(rate=0.1, flat=False, sizes=(4, 5), form="a", free=None): ...  # type: ignore[no-untyped-def]

    registry = of(made, monkeypatch)
    (name,) = wrong
    with pytest.raises(ValidationError, match=rf"{name}[^$]*expected (a number|true or false|numbers), got"):
        registry.complete("./x.py:made", wrong)
    accepted = {"rate": 1, "flat": 0, "sizes": [6.5], "form": "b", "free": "text"}
    assert registry.complete("./x.py:made", accepted) == accepted


@given(
    depth=st.integers(-(2**53), 2**53),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    form=st.sampled_from(["a", "b"]),
    free=st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner), max_leaves=4),
)
def test_written_settings_have_the_same_meaning_when_read(depth: int, rate: float, form: str, free: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        registry = of(Plain, patch)
        given_settings = {"depth": depth, "rate": rate, "form": form, "free": free}
        written = registry.complete("./x.py:made", given_settings)
        assert registry.complete("./x.py:made", json.loads(json.dumps(written))) == written
        arguments = registry.arguments("./x.py:made", written)
        assert {name: arguments[name] for name in given_settings} == given_settings


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"depth": 1, "rat": 2.0}, "extra_forbidden"),
    "missing": ({}, "missing"),
    "type": ({"depth": "3"}, "int_type"),
    "bool": ({"depth": True}, "int_type"),
    "choice": ({"depth": 1, "form": "c"}, "literal_error"),
    "short": ({"depth": 1, "pair": [1]}, "missing"),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_wrong_settings_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, kind = WRONG_SETTINGS[name]
    with pytest.raises(ValidationError) as caught:
        of(Plain, monkeypatch).complete("./x.py:made", settings)
    assert [error["type"] for error in caught.value.errors()] == [kind]


def no_settings_by_position(data: object, seed: int, count: int, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (5, "expected a class or a function, got a value of type int"),
        (lambda data: None, r"expected a task sequence \(data, seed, \*\*settings\), got \(data\)"),
        (no_settings_by_position, "does not begin with '_', got 'count'"),
        (lambda data, seed, kind: None, "does not begin with '_', got 'kind'"),
    ],
)
def test_an_invalid_kind_is_refused_with_the_reason(function: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.kinds.targets.load", lambda target: function)
    with pytest.raises(KindError, match=words):
        Registry("task sequence", ("data", "seed"), {}).settings("./x.py:made")


@pytest.mark.parametrize("registry", [TASKS, MODELS], ids=lambda registry: registry.what)
def test_shipped_kinds_satisfy_the_contract_of_users_kinds(registry: Registry) -> None:
    for name, target in registry.names.items():
        users = Registry(registry.what, registry.given, {})
        assert users.complete(target, {}) == registry.complete(name, {})


# --- through the command line ---


def test_users_kinds_train_and_the_run_can_be_repeated_from_its_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 0
    found = pd.read_parquet("runs/a/trials.parquet")
    assert (found.status == "ok").all()
    (entry,) = json.loads(Path("runs/a/run.json").read_text())["plugins"]
    assert set(found.source_hash) == {entry["source_hash"]}
    shutil.rmtree("suites")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = str(tmp_path / "runs" / "a")
    code = (
        "import sys; from optbench.cli import main; assert main(['report', sys.argv[1], '--format', 'json']) == 0; "
        "assert not {'torch', 'mine'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert main(["run", f"{run}/suite.yaml", "--name", "b", *QUICK]) == 0
    assert_same_tables(Path(run), Path("runs/b"))


@here
def test_a_dry_run_describes_users_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "suites/s.yaml", "--dry-run"]) == 0
    assert "e: tasks of ./mine.py:moons, ./mine.py:Drift (degrees 30)" in capsys.readouterr().out
    assert main(["run", "suites/s.yaml", "--set", "experiments.e.dataset=./suites/mine.py:moons", "--dry-run"]) == 0


# Old text of the suite, new text, and part of the message
WRONG: dict[str, tuple[str, str, str]] = {
    "unknown setting": ("noise: 0.2", "nois: 0.2", "s.yaml:6:38: experiments.e.dataset: unknown key 'nois'; did you"),
    "bound": ("noise: 0.2", "noise: -1", "s.yaml:6:45: experiments.e.dataset.noise: expected a number of at least 0"),
    "type": ("width: 6", "width: wide", "s.yaml:8:48: experiments.e.models.net.width: expected a whole number"),
    "choice": ("width: 6", "act: rely", "unknown choice 'rely'; did you mean 'relu'?"),
    "attribute": ("mine.py:Drift", "mine.py:Drft", "s.yaml:7:19: experiments.e.tasks.kind: ./mine.py:Drft: ./mine.py"),
    "no file": ("./mine.py:Net", "./min.py:Net", "s.yaml:8:26: experiments.e.models.net.kind: ./min.py:Net: there is"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_in_one_line_with_its_place(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, words = WRONG[name]
    path = Path("suites/s.yaml")
    assert old in SUITE
    path.write_text(SUITE.replace(old, new))
    assert words in refusal(capsys, tmp_path, "run", "suites/s.yaml", *QUICK)


# Old text of the file, new text, and part of the message
BROKEN: dict[str, tuple[str, str, str]] = {
    "raises on import": ("import optbench\n", "import optbench\nraise KeyError('x')\n", "cannot import"),
    "no dataset": ("return optbench.Dataset(", "return tuple([", "expected an optbench.Dataset, got tuple"),
    "dataset raises": ("    def half(n):", "    raise OSError('gone')\n    def half(n):", "moons raised OSError: gone"),
    "NaN": ("noise * torch.randn(n, 2)", "float('nan')", "train.inputs: expected finite numbers, got NaN or infinity"),
    "targets out of range": ("% 2\n", "% 3\n", "train.targets: expected integers in 0..1, got 0..2"),
    "no names": ("self.names,", "self.called,", "expected 'names', a name for each task, got NoneType"),
    "names are a text": ('[f"drift {i}" for i in range(count)]', "'drift'", "a name for each task, got str"),
    "no examples": ("def examples", "def example", "expected a method 'examples(trial_seed, task, part)', got none"),
    "examples raise": ("        plain = self", "        1 / 0\n        plain = self", "raised ZeroDivisionError"),
    "examples end the program": ("        plain = self", "        exit(0)\n        plain = self", "ends the program"),
    "changes the data": (
        "return plain.inputs @ turn",
        "return plain.inputs.mul_(2) @ turn",
        "in place; work on a clone()",
    ),
    "draws on and on": (
        " @ turn + 0.01 * torch.randn(len(plain.targets), 2)",
        " @ turn + torch.randn(2, generator=vars(self).setdefault('rng', torch.Generator()))",
        "expected the same examples on every call, got different ones on the second; draw from torch.Generator()",
    ),
    "no tensors": ("torch.randn(len(plain.targets), 2), plain.targets", "1", "examples(0, 0, 'train'): expected Exam"),
    "fewer targets": (", plain.targets\n", ", plain.targets[1:]\n", "expected as many inputs as targets"),
    "float targets": (", plain.targets\n", ", plain.targets.float()\n", ".targets: expected int64 of shape"),
    "another shape": (
        " @ turn + 0.01 * torch.randn(len(plain.targets), 2)",
        "[:, :1]",
        "expected examples in the dataset's form",
    ),
    "too few": (
        "        plain = self.data[part]",
        "        plain = self.data[part].select(torch.arange(9))",
        "batch_size: expected at most the 9 training examples",
    ),
    "task raises on making": ("self.data, self.names", "[][0], self.names", "Drift raised IndexError"),
}


@here
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kind_is_refused_in_one_line_before_training(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, words = BROKEN[name]
    assert old in MINE
    text = MINE.replace(old, new)
    if name == "no dataset":
        text = text.replace("half(100), 2)", "half(100), 2])")
    Path("suites/mine.py").write_text(text)
    Path("suites/s.yaml").write_text(SUITE.replace("./mine.py:Net, width: 6", "mlp, hidden: [4]"))
    said = refusal(capsys, tmp_path, "run", "suites/s.yaml", *QUICK)
    assert words in said
    assert said.count("\n") <= 1


@here
def test_a_task_sequence_that_raises_in_a_later_task_fails_its_trials(capsys: pytest.CaptureFixture[str]) -> None:
    late = "        if task == 1: raise LookupError('no more')\n        plain = self"
    Path("suites/mine.py").write_text(MINE.replace("        plain = self", late))
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 4
    found = pd.read_parquet("runs/a/trials.parquet")
    assert set(found.status) == {"failed"}
    assert set(found.error_type) == {"LookupError"}
    assert set(found.error_message) == {"no more"}


RAISES = """
    def examples(self, trial_seed, task, part):
        if trial_seed in (1, 3) and task == 1:
            raise RuntimeError("unlucky")
"""


@here
def test_a_run_with_a_changed_task_sequence_resumes_only_with_force_and_has_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "suites" / "mine.py"
    file.write_text(MINE.replace("\n    def examples(self, trial_seed, task, part):\n", RAISES))
    more = "optimizers: {adam: {target: adam, lr: 0.01}, "
    Path("suites/s.yaml").write_text(SUITE.replace("seeds: 2", "seeds: 4").replace("optimizers: {", more))
    assert main(["run", "suites/s.yaml", "--name", "a", *QUICK]) == 3
    file.write_text(MINE)
    for words in (["run", "--resume", "a"], ["run", "suites/s.yaml", "--resume", "a"]):
        assert f"{file} has changed since the run was made" in refusal(capsys, tmp_path, *words, *QUICK)
    assert main(["run", "--resume", "a", "--force", *QUICK]) == 0
    found = pd.read_parquet("runs/a/trials.parquet")
    assert (found.status == "ok").all()
    noted = found.note.fillna("").str.contains("trained after mine.py was changed")
    assert (noted == found.seed.isin([1, 3])).all()
    for words in (["report", "a"], ["compare", "a:sgd", "a:adam"]):
        capsys.readouterr()
        main(words)
        assert "2 versions of the code" in " ".join(capsys.readouterr().out.split()), words


# --- the package itself ---


FOURTH = '''
"""Inverted images: one task of them."""
from typing import Any
from optbench.tasks.examples import Examples

class Inverted:
    """Inverted images."""
    def __init__(self, data: Any, seed: int, *, count: int = 1) -> None:
        self.data, self.names = data, [f"inverted {i}" for i in range(count)]
    def examples(self, trial_seed: int, task: int, part: Any) -> Examples:
        plain = self.data[part]
        return Examples(255 - plain.inputs, plain.targets)
'''


def test_adding_a_task_sequence_takes_one_file_and_one_line(tmp_path: Path) -> None:
    package = tmp_path / "copy" / "optbench"
    shutil.copytree(Path(optbench.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "tasks" / "inverted.py").write_text(FOURTH)
    kinds = package / "kinds.py"
    line = '        "rotated": "optbench.tasks.rotated:Rotated",\n'
    kinds.write_text(
        kinds.read_text().replace(line, line + '        "inverted": "optbench.tasks.inverted:Inverted",\n')
    )
    text = SUITE.replace("{kind: ./mine.py:moons, noise: 0.2}", "mnist").replace(
        "./mine.py:Drift", "inverted, count: 2"
    )
    Path("s.yaml").write_text(text.replace("./mine.py:Net, width: 6", "mlp, hidden: [4]"))
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from optbench.cli import main
assert main(["list", "tasks"]) == 0
assert "torch" not in sys.modules
sys.exit(main(sys.argv[2:]))
"""
    command = [sys.executable, "-c", code, str(package.parent), "run", "s.yaml", *QUICK]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "inverted" in done.stdout
    assert "2 trials: 2 ok" in done.stdout
