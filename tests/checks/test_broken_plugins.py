"""Users' optimizers that cannot be loaded: one line gives the name and the reason; nothing is trained or written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optbench.cli import main
from tests.refusals import refusal
from tests.suite.test_faults import GOOD

HEAD = "import torch\n"
CLASS = HEAD + "class Mine(torch.optim.SGD):\n    "


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as with `python -m`
    (tmp_path / "s.yaml").write_text(GOOD, encoding="utf-8")
    yield
    # Remove modules whose `__getattr__` answers to any name, since later scans of all modules would call it.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__")).startswith(str(tmp_path)):
            del sys.modules[name]


# The file, the name after the colon, and part of the message
FILES: dict[str, tuple[str | bytes, str, str]] = {
    "syntax error": ("class Mine(:\n", "Mine", "cannot import plugin.py: SyntaxError: "),
    "indentation": (" x = 1\n  y = 2\n", "Mine", "cannot import plugin.py: IndentationError: "),
    "not UTF-8": (b"x = '\xe4'\n", "Mine", "cannot import plugin.py: SyntaxError: "),
    "NUL": (b"x = 1\0\n", "Mine", "cannot import plugin.py: SyntaxError: "),
    "binary": (b"\x7fELF\x02\x01\x01" + bytes(range(256)), "Mine", "cannot import plugin.py: "),
    "empty": ("", "Mine", "plugin.py has no 'Mine'"),
    "raises": ("raise ValueError('no\\nmore')\n", "Mine", "cannot import plugin.py: ValueError: no"),
    "raises without a message": ("raise ValueError\n", "Mine", "cannot import plugin.py: ValueError"),
    "raises with an escape": ("raise ValueError('\\x1b[31m')\n", "Mine", r"ValueError: \x1b[31m"),
    "raises an unprintable exception": (
        "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute\n",
        "Mine",
        "cannot import plugin.py: Mute",
    ),
    "asserts": ("assert False\n", "Mine", "cannot import plugin.py: AssertionError"),
    "exits with a code": ("import sys\nsys.exit(3)\n", "Mine", "it ends the program with exit(3)"),
    "exits with a message": ("raise SystemExit('bye')\n", "Mine", "it ends the program with exit(bye)"),
    "calls exit()": ("exit()\n", "Mine", "it ends the program with exit("),
    "infinite recursion": ("def f(): f()\nf()\n", "Mine", "cannot import plugin.py: RecursionError: "),
    "imports itself": ("import plugin\nplugin.Mine\n", "Mine", "cannot import plugin.py: AttributeError: "),
    "missing import": (
        "import nowhere_at_all\n",
        "Mine",
        "ModuleNotFoundError: No module named 'nowhere_at_all'",
    ),
    "no such class": (CLASS + "pass\n", "Mien", "plugin.py has no 'Mien'; did you mean 'Mine'?"),
    "a class inside another": (CLASS + "pass\n", "Mine.Inner", "plugin.py has no 'Mine.Inner'"),
    "empty class name": (CLASS + "pass\n", "", "expected module:Class or ./file.py:Class"),
    "a function": ("def Mine(params): ...\n", "Mine", "an optimizer with `step` and `zero_grad`, got None"),
    "a number": ("Mine = 5\n", "Mine", "'Mine' is of type int"),
    "None": ("Mine = None\n", "Mine", "plugin.py has no 'Mine'"),
    "a module": ("import torch as Mine\n", "Mine", "'Mine' is of type module"),
    "another class": ("class Mine: ...\n", "Mine", "'Mine' is the class Mine"),
    "an instance": (
        HEAD + "Mine = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)\n",
        "Mine",
        "'Mine' is of type SGD",
    ),
    "a schedule": (HEAD + "Mine = torch.optim.lr_scheduler.StepLR\n", "Mine", "Mine needs a value for step_size"),
    "abstract": (
        HEAD + "import abc\nclass Mine(torch.optim.Optimizer, abc.ABC):\n"
        "    @abc.abstractmethod\n    def update(self): ...\n    @abc.abstractmethod\n    def begin(self): ...\n",
        "Mine",
        "'Mine' is abstract: it lacks begin, update",
    ),
    "the base class": (HEAD + "from torch.optim import Optimizer as Mine\n", "Mine", "needs a value for defaults"),
    "needs an argument": (
        CLASS + "def __init__(self, params, speed): super().__init__(params, lr=speed)\n",
        "Mine",
        "needs a value for speed, as in speed: ...",
    ),
    "an invalid signature": (
        CLASS + "__signature__ = 5\n",
        "Mine",
        "the arguments of its constructor cannot be read",
    ),
    "a module whose __getattr__ exits": (
        "def __getattr__(name): raise SystemExit(name)\n",
        "Mine",
        "it ends the program with exit(Mine)",
    ),
    "a module replaced by a number": ("import sys\nsys.modules[__name__] = 5\n", "Mine", "plugin.py has no 'Mine'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, attribute, words = FILES[name]
    (tmp_path / "plugin.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    target = f"./plugin.py:{attribute}"
    said = refusal(capsys, tmp_path, "run", "s.yaml", "--optimizer", f"mine={target}", "--device", "cpu")
    assert words in said
    assert target in said


TARGETS: dict[str, tuple[str, str]] = {
    "missing file": ("./gone.py:Mine", "there is no file gone.py"),
    "a folder": ("./folder.py:Mine", "there is no file folder.py"),
    "name too long": (f"./{'x' * 300}.py:Mine", "there is no file"),
    "text too long": (f"./{'x' * 5000}.py:Mine", "expected at most 400 characters"),
    "NUL": ("./a\0b.py:Mine", "there is no file"),
    "escape sequence": ("./\x1b[31m.py:Mine", r"there is no file \x1b[31m.py"),
    "line break": ("./a\nb.py:Mine", r"there is no file a\nb.py"),
    "path outside the folder": ("../../../../nowhere/x.py:Mine", "there is no file ../../../../nowhere/x.py"),
    "a device": ("/dev/null.py:Mine", "there is no file /dev/null.py"),
    "missing module": ("nowhere_at_all:Mine", "cannot import nowhere_at_all: ModuleNotFoundError"),
    "submodule of a plain module": ("json.nowhere:Mine", "cannot import json.nowhere: ModuleNotFoundError"),
    "relative module": (".mine:Mine", "cannot import .mine: TypeError"),
    "no module": (":Mine", "expected module:Class or ./file.py:Class"),
    "only a colon": (":", "expected module:Class or ./file.py:Class"),
    "neither a name nor a path": ("mine", "unknown optimizer 'mine'"),
    "a path without a class": ("./plugin.py", "./plugin.py: expected ./plugin.py:NAME, a class or function"),
    "another class of the standard library": ("json:JSONDecoder", "'JSONDecoder' is the class JSONDecoder"),
    "another class of torch": ("torch:no_grad", "'no_grad' is the class no_grad"),
    "three parts": ("torch.optim:SGD:x", "cannot import torch.optim:SGD"),
    "module with a NUL": ("a\0b:Mine", "cannot import"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_an_invalid_target_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.py").mkdir()
    target, words = TARGETS[name]
    refused = refusal(capsys, tmp_path, "run", "s.yaml", "--optimizer", f"mine={target}", "--device", "cpu")
    assert words in refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["mine.speed=1"], "'speed'"),
        (["mine.lr=.nan"], "finite"),
        (["mine.needs=coffee"], "unknown need 'coffee'"),
        (["mine.elementwise=1"], "'elementwise': expected true or false, got 1"),
        (["mine.params=1"], "'params'"),
        (["mine.only_matrices=true", "mine.fallback_speed=1"], "'speed'"),
    ],
)
def test_unknown_arguments_of_a_class_are_refused(
    settings: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugin.py").write_text(CLASS + "def __init__(self, params, lr=0.1): super().__init__(params, lr=lr)\n")
    options = [word for text in settings for word in ("--set", f"optimizers.{text}")]
    command = ("run", "s.yaml", "--optimizer", "mine=./plugin.py:Mine", "--device", "cpu", *options)
    assert words in refusal(capsys, tmp_path, *command)


def test_a_duplicate_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plugin.py").write_text(CLASS + "pass\n")
    named = ("run", "s.yaml", "--optimizer", "sgd=./plugin.py:Mine")
    assert "the suite has an optimizer 'sgd'; choose another name" in refusal(capsys, tmp_path, *named)
    twice = ("run", "s.yaml", "--optimizer", "a=./plugin.py:Mine", "--optimizer", "a=./plugin.py:Mine")
    assert "'a' is added twice" in refusal(capsys, tmp_path, *twice)


def test_a_file_named_after_a_module_or_an_optimizer_does_not_shadow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "sgd", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise ValueError('not this one')\n")
    assert main(["run", "s.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("good: ")
    said = refusal(capsys, tmp_path, "run", "s.yaml", "--optimizer", "mine=./torch.py:SGD", "--device", "cpu")
    assert "cannot import torch.py: ValueError: not this one" in said


def test_output_of_a_file_goes_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plugin.py").write_text("print('hello')\nimport sys\nprint('to', 'you', file=sys.stderr)\nMine = 5\n")
    assert main(["run", "s.yaml", "--optimizer", "mine=./plugin.py:Mine", "--device", "cpu", "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(
        "hello\nto you\noptbench: optimizers.mine: ./plugin.py:Mine: expected a torch.optim.Optimizer"
    )


def test_a_dry_run_refuses_the_same_optimizers_as_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plugin.py").write_text(CLASS + "def __init__(self, params, lr=0.1): super().__init__(params, lr=lr)\n")
    good = ("run", "s.yaml", "--dry-run", "--optimizer", "mine=./plugin.py:Mine")
    assert main([*good]) == 0
    capsys.readouterr()
    typo = refusal(capsys, tmp_path, *good, "--set", "optimizers.mine.Lr=1")
    assert "optimizers.mine: unknown hyper-parameter 'Lr' of ./plugin.py:Mine; did you mean 'lr'?" in typo
    assert "has no 'Mien'; did you mean 'Mine'?" in refusal(capsys, tmp_path, *good[:-1], "mine=./plugin.py:Mien")


def test_an_optimizer_whose_constructor_raises_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plugin.py").write_text(
        CLASS + "def __init__(self, params, lr=0.1):\n        raise ValueError('no \\x1b[31m way\\nat all')\n"
    )
    words = ["--optimizer", "mine=./plugin.py:Mine", "--optimizer", "mine", "--seeds", "1"]
    said = refusal(capsys, tmp_path, "run", "s.yaml", *words, "--device", "cpu")
    assert said == r"optimizers.mine default: ValueError: no \x1b[31m way at all"
