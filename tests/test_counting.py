"""Counted nouns are singular for one, in all output of optbench."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import optbench.cli
from optbench.cli import main
from optbench.counting import count

PACKAGE = Path(optbench.cli.__file__).parents[1]


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (0, "trial", "0 trials"),
        (1, "trial", "1 trial"),
        (2, "more trial", "2 more trials"),
        (1, "process", "1 process"),
        (3, "process", "3 processes"),
        (2, "class", "2 classes"),
        (2, "entry", "2 entries"),
        (2, "day", "2 days"),
        (1.0, "epoch", "1 epoch"),
        (0.5, "epoch", "0.5 epochs"),
        (200_000, "variant", "200000 variants"),
    ],
)
def test_the_noun_agrees_with_its_number(number: float, noun: str, said: str) -> None:
    assert count(number, noun) == said


def test_irregular_plurals_can_be_given() -> None:
    assert count(1, "pair of solutions", "pairs of solutions") == "1 pair of solutions"
    assert count(2, "pair of solutions", "pairs of solutions") == "2 pairs of solutions"


NOUNS = (
    "trials?|cohorts?|tasks?|pairs?|nulls?|controls?|seeds?|settings?|epochs?|steps?|process(?:es)?|figures?|points?|"
    "variants?|solutions?|primary metrics?|more pairs?|more trials?|more reasons?|finished trials?|tuning seeds?"
)
ONE_OF_MANY = re.compile(rf"(?<![\w.,:/=\-])1 ({NOUNS})\b")
SUITE = """
name: single
seeds: 1
optimizers: {{sgd: {{target: sgd, lr: 0.1}}{other}}}
experiments:
  only:
    tasks: {{kind: permuted, count: {tasks}}}
    models: {{net: {{kind: mlp, hidden: [8]}}}}
    protocol: {{batch_size: 32, max_epochs: 1, max_steps: 1, early_stopping: {stopping}, train_examples: 200,
               validation_examples: 100, test_examples: 100}}
    metrics: []
{more}
"""


def written(folder: Path, *, tasks: int = 1, other: str = "", stopping: str = "null", more: str = "") -> str:
    path = folder / "single.yaml"
    path.write_text(SUITE.format(tasks=tasks, other=other, stopping=stopping, more=more))
    return str(path)


@pytest.mark.usefixtures("_train_here")
def test_a_run_of_one_trial_uses_the_singular(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    heard = ""

    def said(*words: str, code: int = 0) -> str:
        nonlocal heard
        assert main(list(words)) == code, capfd.readouterr().err
        out, err = capfd.readouterr()
        heard += " ".join((out + err).split()) + "\n"
        return out + err

    suite = written(tmp_path)
    assert "1 trial in 1 cohort" in said("run", suite, "--dry-run")
    assert "single: 1 trial on cpu, 1 process" in said("run", suite, "--name", "one", "--jobs", "1", "--device", "cpu")
    said("run", "--resume", "one", "--device", "cpu")
    said("run", "--resume", "one", "--dry-run")
    for form in ("terminal", "markdown", "html", "latex"):
        said("report", "one", "--format", form)
    said("report", "one", "--figures", "figures")
    said("list", "runs")
    said("list", "suites")

    controls = written(tmp_path, tasks=2, stopping="{patience: 1}", more="    pairs: {against: [sgd]}")
    assert "1 trial and 1 control in" in said("run", controls, "--dry-run")
    assert "1 null compared" in said("run", controls, "--name", "null", "--jobs", "1")
    said("report", "null")

    two = written(tmp_path, other=", adam: {target: adam}", more="    pairs: {against: [sgd], controls: []}")
    assert "1 pair of solutions" in said("run", two, "--dry-run")
    said("run", two, "--name", "two", "--jobs", "1")
    said("report", "two")
    assert "1 of 1 seed paired" in said("compare", "two:adam", "two:sgd")
    said("compare", "two:adam", "two:sgd", "--fail-on", "average_accuracy:-0.5", code=0)
    said("tune", two, "--seeds", "1", "--name", "tuned", "--quiet", "--set", "tune.optimizers.sgd.lr=[0.1,0.2]")
    said("report", "tuned")
    assert heard.count("1 seed") > 3

    wrong = [found[0] for found in ONE_OF_MANY.finditer(heard) if found[1].endswith("s") and found[1] != "process"]
    assert wrong == []
    assert not re.search(r"(?<![\d.])[02-9] (trial|cohort|task|pair|seed|setting|epoch|control)\b", heard)


def test_all_plurals_in_the_package_come_from_count() -> None:
    """No f-string has a conditional plural ending, or a number in front of a noun that `count` should write."""
    by_hand = re.compile(r"\} (trials|cohorts|seeds|settings|controls|nulls|epochs)\b")
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            text = ast.unparse(node)
            if by_hand.search(re.sub(r"\{[A-Z_]+\}", "MANY", text)) or re.search(r"'s' if|else 's'", text):
                found.append(f"{file.name}:{node.lineno}: {text}")
    assert found == []
