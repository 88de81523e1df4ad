"""`optbench tune` without `tune` in the suite: the learning rates tried, and the reasons for skipping an optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from optbench.cli import main
from optbench.optimizers.registry import OPTIMIZERS, complete
from optbench.studies.tuning.space import searches
from optbench.suite import load_suite
from tests.refusals import refusal

MINE = '''
import torch


class Own(torch.optim.SGD):
    """With a default rate of its own."""

    def __init__(self, params, lr=0.25, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)


class NoDefault(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)


class NoRate(torch.optim.SGD):
    def __init__(self, params, speed=0.1):
        super().__init__(params, lr=speed)


class NullRate(torch.optim.SGD):
    def __init__(self, params, lr=None):
        super().__init__(params, lr=lr or 0.1)


class ZeroRate(torch.optim.SGD):
    def __init__(self, params, lr=0.0):
        super().__init__(params, lr=lr)


class TextRate(torch.optim.SGD):
    def __init__(self, params, lr="auto"):
        super().__init__(params, lr=0.1)
'''
SUITE = """
name: defaults
seeds: 2
optimizers:
{optimizers}
experiments:
  e:
    tasks: {{kind: permuted, count: 1}}
    models: {{net: {{kind: mlp, hidden: [8]}}}}
    protocol: {{batch_size: 32, max_steps: 4, early_stopping: null, train_examples: 400,
               validation_examples: 400, test_examples: 100}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def suite(folder: Path, **optimizers: str) -> Path:
    path = folder / "suite.yaml"
    lines = "\n".join(f"  {name}: {settings}" for name, settings in optimizers.items())
    path.write_text(SUITE.format(optimizers=lines))
    return path


def spaces(path: Path) -> dict[str, Any]:
    """Map each optimizer to the path and the bounds of its search."""
    found = {}
    for search in searches(load_suite(path)).searches:
        (dimension,) = search.dimensions
        assert len(dimension.values) == 7
        found[search.optimizer] = (dimension.name, dimension.log)
    return found


def test_by_default_the_search_spans_two_decades_around_the_optimizers_learning_rate(folder: Path) -> None:
    path = suite(
        folder,
        stated="{target: ./mine.py:Own, lr: 0.5}",
        own="{target: ./mine.py:Own, momentum: 0.9}",
        inside="{target: sam, base: {target: ./mine.py:Own}}",
        torch="{target: torch.optim:Adagrad}",
        registered="{target: adam}",
    )
    assert spaces(path) == {
        "stated": ("lr", (0.05, 5.0)),
        "own": ("lr", (0.025, 2.5)),
        "inside": ("base.lr", (0.025, 2.5)),
        "torch": ("lr", (0.001, 0.1)),
        "registered": ("lr", (0.0001, 0.01)),
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_registered_optimizer_is_tuned_around_its_default_or_skipped(name: str, folder: Path) -> None:
    path = suite(folder, one=f"{{target: {name}}}", other="{target: sgd, lr: 0.1}")
    rate = complete(name, {}).get("lr")
    left = [untuned.optimizer for untuned in searches(load_suite(path)).left]
    if rate is None:
        assert left == ["one"]
    else:
        bounds = (pytest.approx(rate / 10), pytest.approx(rate * 10))
        assert (spaces(path)["one"], left) == (("lr", bounds), [])


NOT_TUNED = {
    "{target: ./mine.py:NoDefault, lr: [0.1, 0.2]}": "the suite sweeps its hyper-parameters; to tune it, give each",
    "{target: ./mine.py:NoRate}": "it has no learning rate 'lr' with a value; add one, or a search space",
    "{target: ./mine.py:NullRate}": "it has no learning rate 'lr' with a value",
    "{target: ./mine.py:ZeroRate}": "its lr is 0.0; expected a number above 0",
    "{target: ./mine.py:TextRate}": "its lr is 'auto'; expected a number above 0",
    "{target: sam}": "the suite does not name its base; to tune its learning rate, write base: {target: sgd}",
    "{target: switch, at: 3}": "it contains 2 optimizers; give a search space in 'tune.optimizers', as in {first: ",
    "{target: sam, base: {target: ./mine.py:NoRate}}": "its base ./mine.py:NoRate: it has no learning rate 'lr'",
}


@pytest.mark.parametrize("settings", NOT_TUNED)
def test_the_reason_for_not_tuning_an_optimizer_is_reported(
    settings: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = suite(folder, mine=settings, sgd="{target: sgd, lr: 0.1}")
    assert main(["tune", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"optbench: not tuned: mine: {NOT_TUNED[settings]}"), said
    assert said.count("\n") == 1
    # If no other optimizer is tuned, the same reason follows the line that says there is nothing to choose.
    path = suite(folder, mine=settings)
    lines = refusal(capsys, folder, "tune", path, "--dry-run", lines=2).split("\n")
    assert lines[0].startswith("tune: nothing to choose in suite 'defaults': give a search space in 'tune.optimizers'")
    assert lines[1].startswith(f"not tuned: mine: {NOT_TUNED[settings]}")


def test_an_optimizer_not_named_in_the_search_is_reported_as_not_tuned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = suite(folder, sgd="{target: sgd, lr: 0.1}")
    path.write_text(path.read_text() + "tune: {optimizers: {sgd: {lr: [0.1, 0.2]}}}\n")
    assert main(["tune", str(path), "--optimizer", "mine=./mine.py:Own", "--dry-run"]) == 0
    assert capsys.readouterr().err == "optbench: not tuned: mine: 'tune.optimizers' does not name it\n"
    assert main(["tune", str(path), "--optimizer", "mine=./mine.py:Own", "--dry-run", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_reasons_that_differ_between_experiments_name_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = suite(folder, mine="{target: ./mine.py:Own}", other="{target: adam}")
    again = path.read_text().partition("  e:\n")[2].replace("\n    protocol", "\n    optimizers: OWN\n    protocol")
    path.write_text(
        path.read_text()
        + "  swept:\n"
        + again.replace("OWN", "{mine: {lr: [0.1, 0.2]}, other: {}}")
        + "  text:\n"
        + again.replace("OWN", "{mine: {lr: zero}, other: {}}")
    )
    assert main(["tune", str(path), "--dry-run"]) == 0
    assert [line.partition(": the")[0].partition(": its")[0] for line in capsys.readouterr().err.splitlines()] == [
        "optbench: not tuned: mine on swept",
        "optbench: not tuned: mine on text",
    ]


def test_a_plug_in_that_cannot_be_loaded_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = suite(folder, mine="{target: ./mine.py:Nobody}")
    assert "./mine.py:Nobody: ./mine.py has no 'Nobody'" in refusal(capsys, folder, "tune", path, "--dry-run")


@pytest.mark.usefixtures("_train_here")
def test_a_suite_tuned_by_default_has_the_chosen_values_and_refuses_its_tuning_seeds(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = suite(folder, mine="{target: ./mine.py:Own}", sgd="{target: sgd, lr: 0.1}")
    assert main(["tune", str(path), "--name", "t", "-o", "tuned.yaml", "--quiet"]) == 0
    assert sorted(set(pd.read_parquet("runs/t/trials.parquet")["seed"])) == [1000, 1001]
    tuned = load_suite(folder / "tuned.yaml")
    assert tuned.tune is not None
    assert tuned.tune.seeds == [1000, 1001]
    assert 0.025 <= tuned.optimizers["mine"].hyperparameters["lr"] <= 2.5
    # A learning rate that the suite did not give is added to the optimizer.
    assert (tuned.experiments["e"].tuning or {})["mine"].chosen == tuned.optimizers["mine"].hyperparameters
    said = refusal(capsys, folder, "run", "tuned.yaml", "--seeds", "0,1001")
    assert said.startswith("--set seeds=[0, 1001]: seed 1001 is in 'tune.seeds' and in 'seeds'")
    assert main(["run", "tuned.yaml", "--seeds", "0,1", "--dry-run"]) == 0
    # After another tuning of one optimizer on other seeds, the tuning seeds of both are refused.
    words = ["tune", "tuned.yaml", "--optimizer", "sgd", "--seeds", "2000,2001", "--name", "u", "-o", "again.yaml"]
    assert main([*words, "--quiet"]) == 0
    again = load_suite(folder / "again.yaml").tune
    assert again is not None
    assert again.seeds == [1000, 1001, 2000, 2001]
