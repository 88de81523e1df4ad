"""Errors in constructors are reported before anything is trained, and exception messages are explained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from optbench.cli import main
from optbench.optimizers.explain import explained
from optbench.store import read_run
from tests.refusals import refusal

pytestmark = pytest.mark.usefixtures("_train_here")
FILE = '''
import os, sys, warnings
import torch
from torch.optim import SGD


class Plain(SGD):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)


class Positive(Plain):
    def __init__(self, params, lr=0.05):
        if lr < 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        super().__init__(params, lr=lr)


class Asserts(Plain):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        assert self.param_groups[0]["lr"] < 1


class Abstract(Plain):
    def __init__(self, params, lr=0.05):
        raise NotImplementedError  # an abstract class


class Prints(Plain):
    def __init__(self, params, lr=0.05):
        params = list(params)
        raise ValueError(f"bad weights: {params[0]}")


class MatricesOnly(Plain):
    def __init__(self, params, lr=0.05):
        params = list(params)
        assert all(p.ndim == 2 for p in params)
        super().__init__(params, lr=lr)


class Ends(Plain):
    def __init__(self, params, lr=0.05):
        sys.exit(5)


class EndsLater(Plain):
    def step(self, closure=None):
        sys.exit(0)


class Wide(Plain):
    """Takes layers of at most 15 units."""

    def __init__(self, params, lr=0.05):
        params = list(params)
        if params[0].shape[0] > 15:
            raise ValueError(f"{params[0].shape[0]} units are too many")
        super().__init__(params, lr=lr)


class Warns(Plain):
    def __init__(self, params, lr=0.05):
        warnings.warn("this method is beta")
        torch.set_default_dtype(torch.float64)
        os.environ["OPTBENCH_TEST"] = "1"
        super().__init__(params, lr=lr)


class Talks(Plain):
    def __init__(self, params, lr=0.05):
        print("hello from a constructor")
        raise ValueError("and goodbye")


class Late(Plain):
    """Its constructor raises only once the training has begun, so no check before the run can find it."""

    def __init__(self, params, lr=0.05):
        if os.path.exists("runs/late"):
            raise RuntimeError("not any more")
        super().__init__(params, lr=lr)


class Silent(Plain):
    def step(self):
        assert not self.param_groups


class Needy(Plain):
    def step(self, closure=None):
        closure()
'''
LINE = FILE.splitlines().index("        assert not self.param_groups") + 1
SUITE = """
name: made
seeds: 2
optimizers:
  sgd: {target: sgd, lr: [0.05, 0.1]}
experiments:
  permuted:
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [10]}, large: {kind: mlp, hidden: [20]}}
    protocol: {max_steps: 10, train_examples: 1000, validation_examples: 200, test_examples: 200, batch_size: 32}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SUITE, encoding="utf-8")


def words(name: str, *settings: str) -> list[str]:
    """Return the arguments of `optbench run` for the suite, with a class from the file as the optimizer `mine`."""
    options = [word for text in settings for word in ("--set", f"optimizers.mine.{text}")]
    return ["run", "s.yaml", "--optimizer", f"mine=./mine.py:{name}", "--device", "cpu", "--jobs", "1", *options]


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "one variant of a sweep": (
        ["Positive", "lr=[0.1,-1,0.2,-2]"],
        [
            "optimizers.mine lr=-1: ValueError: Invalid learning rate: -1",
            "optimizers.mine lr=-2: ValueError: Invalid learning rate: -2",
        ],
    ),
    "a bare assertion": (
        ["Asserts", "lr=[0.1,2]"],
        [
            "optimizers.mine lr=2: AssertionError: no message, raised by Asserts.__init__ in mine.py:22: "
            'assert self.param_groups[0]["lr"] < 1'
        ],
    ),
    "a bare NotImplementedError": (
        ["Abstract"],
        ["optimizers.mine default: NotImplementedError: no message, raised by Abstract.__init__ in mine.py:27: raise"],
    ),
    "a tensor in the message": (
        ["Prints"],
        ["optimizers.mine default: ValueError: bad weights: Parameter containing: a tensor, raised by Prints.__init__"],
    ),
    "a class for matrices only": (["MatricesOnly"], ["commonly missing: `only_matrices: true`"]),
    "sys.exit in the constructor": (["Ends"], ["it ends the program with exit(5)"]),
    "sys.exit in a trial step": (["EndsLater", "elementwise=true"], ["it ends the program with exit(0)"]),
    "an error on one model": (["Wide"], ["optimizers.mine default: ValueError: 20 units are too many"]),
    "a class declared elementwise": (["Positive", "lr=-1", "elementwise=true"], ["Invalid learning rate: -1"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_of_a_constructor_is_reported_before_anything_is_trained(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (target, *settings), lines = REFUSED[name]
    said = refusal(capsys, tmp_path, *words(target, *settings), lines=len(lines)).splitlines()
    assert len(said) == len(lines)
    for got, expected in zip(said, lines, strict=True):
        assert expected in got


def test_the_base_of_a_wrapper_is_also_constructed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bases = "{target: ./mine.py:Positive, lr: [0.1, -1]}"
    said = refusal(capsys, tmp_path, "run", "s.yaml", "--set", f"optimizers.sam={{target: sam, base: {bases}}}")
    assert said.startswith("optimizers.sam base.lr=-1: ValueError: Invalid learning rate: -1")


def test_a_long_list_of_refused_variants_is_cut_short_with_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ",".join(str(-i) for i in range(1, 31))
    said = refusal(capsys, tmp_path, *words("Positive", f"lr=[{rates}]"), lines=21).splitlines()
    assert said[-1] == "... and 10 more variants"


def test_warnings_are_shown_once_and_global_settings_are_restored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPTBENCH_TEST", raising=False)
    assert main([*words("Warns", "lr=[0.1,0.2,0.3]"), "--name", "x"]) == 0
    printed = capfd.readouterr()
    assert printed.err.count("this method is beta") == 1
    assert "optimizers.mine: UserWarning: this method is beta" in printed.err
    assert torch.get_default_dtype() == torch.float32
    assert "OPTBENCH_TEST" not in os.environ


def test_output_of_a_constructor_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("Talks")) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "hello from a constructor" in printed.err


def test_an_optimizer_that_raises_later_fails_only_its_own_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words("Late"), "--name", "late"]) == 3
    capsys.readouterr()
    rows = read_run(tmp_path / "runs/late").table("trials").to_pylist()
    for row in rows:
        if row["optimizer"] == "mine":
            assert (row["status"], row["error_type"], row["error_message"]) == (
                "failed",
                "RuntimeError",
                "not any more",
            )
        else:
            assert row["status"] == "ok"
    assert main(["run", "s.yaml", "--device", "cpu", "--jobs", "1", "--name", "alone"]) == 0
    capsys.readouterr()
    late, alone = (read_run(tmp_path / "runs" / name).table("accuracy").to_pylist() for name in ("late", "alone"))
    assert [row for row in late if row["optimizer"] == "sgd"] == alone


def test_an_error_without_a_message_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--optimizer", "needy=./mine.py:Needy", "--seeds", "1", "--name", "silent"]
    assert main([*words("Silent"), *more]) == 3
    capsys.readouterr()
    rows = read_run(tmp_path / "runs/silent").table("trials").to_pylist()
    messages = {row["optimizer"]: row["error_message"] for row in rows}
    assert messages["mine"].startswith(
        f"no message, raised by Silent.step in mine.py:{LINE}: assert not self.param_groups; commonly missing: `needs: "
    )
    assert messages["needy"].startswith("'NoneType' object is not callable, raised by Needy.step in mine.py:")
    assert messages["needy"].endswith("closure(); commonly missing: `needs: closure`")


def raised(code: str) -> BaseException:
    try:
        exec(compile(code, "<user>", "exec"), {"torch": torch})  # the errors are given as text in a table
    except BaseException as error:
        return error
    raise AssertionError(code)


@pytest.mark.parametrize(
    ("code", "settings", "words"),
    [
        ("raise ValueError('clear enough')", {}, "clear enough"),
        ("raise ValueError(str(torch.ones(3)))", {}, "a tensor"),
        ("raise ValueError('x' * 5000)", {}, "x ..."),
        ("raise ValueError", {}, "no message"),
        ("(lambda closure: 0)()", {}, "commonly missing: `needs: closure`"),
        ("(lambda closure: 0)()", {"needs": "closure"}, "positional argument: 'closure'"),
        ("torch.ones(1).backward()", {}, "commonly missing: `needs: create_graph` or `needs: loss`"),
    ],
)
def test_error_messages_are_explained_in_one_short_line(code: str, settings: dict[str, str], words: str) -> None:
    kind, message = explained(raised(code), "./mine.py:Mine", settings)
    assert words in message
    assert len(message) < 1000
    assert "\n" not in message
    own_kind, own = explained(raised(code), "sgd", settings)
    assert (own_kind, own) == (kind, str(raised(code))), "errors of registered optimizers are left unchanged"
