"""Valid settings that have no effect are reported before training."""

from pathlib import Path

import pytest

from optbench.cli import main


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (["evaluate_every=4"], True),
        (["evaluate_every=3"], False),
        (["evaluate_every=4", "early_stopping=null"], False),
        (["max_epochs=0.5"], False),  # the default interval is not the user's choice
    ],
)
def test_an_evaluation_interval_longer_than_the_task_is_reported(
    settings: list[str], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for setting in settings for part in ("--set", f"experiments.digit-pairs.protocol.{setting}")]
    sets = ["--set", "experiments.digit-pairs.protocol.max_epochs=3", *sets]
    early = ["--set", "experiments.digit-pairs.protocol.early_stopping={on: validation}"]
    assert main(["run", "continual", "--dry-run", "--experiment", "digit-pairs", *early, *sets]) == 0
    message = (
        f"warning: --set experiments.digit-pairs.protocol.{settings[0]}: "
        "experiments.digit-pairs.protocol.evaluate_every: expected at most max_epochs (3), got 4 epochs; "
        "early stopping has no effect"
    )
    assert (message in " ".join(capsys.readouterr().out.split())) == warned


SUITE = """\
name: two
seeds: 2
optimizers: {sgd: {target: sgd}, adam: {target: adam}, lion: {target: lion}}
experiments:
  one: &one
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [10]}, wide: {kind: mlp}}
    optimizers: [sgd, adam, lion]
  two: {<<: *one, models: {small: {kind: mlp, hidden: [10]}}, optimizers: [sgd]}
claims:
  a: {experiment: one, metric: forgetting, left: sgd, right: adam, expect: lower}
  b: {experiment: one, metric: forgetting, left: lion, right: adam, expect: lower}
  c: {experiment: one, metric: forgetting, left: sgd, right: 0, expect: lower, models: [wide]}
  d: {experiment: two, metric: forgetting, left: sgd, right: 0, expect: lower}
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "two.yaml"
    file.write_text(SUITE, encoding="utf-8")
    return file


def warnings(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return the warnings of a dry run, except for those about the number of seeds."""
    assert main(["run", *words, "--dry-run"]) == 0
    lines = [line.removeprefix("warning: ") for line in capsys.readouterr().out.splitlines() if "warning: " in line]
    return [line for line in lines if "too few to show" not in line]


CHOICES: dict[str, list[str]] = {
    "": [],
    "--optimizer sgd --optimizer adam --optimizer lion": [
        "--optimizer: adam and lion: not used by two, so not trained there"
    ],
    "--optimizer sgd": ["--optimizer: 2 of 4 claims are left out, about what is not trained: adam (2) and lion (1)"],
    "--optimizer adam --optimizer lion": [
        "--optimizer: two is left out, without any of the given names",
        "--optimizer: 3 of 4 claims are left out, about what is not trained: sgd (2) and two (1)",
    ],
    "--optimizer adam --optimizer lion --experiment one": [
        "--optimizer: 2 of 3 claims are left out, about what is not trained: sgd (2)"
    ],
    "--experiment two": [],
    "--optimizer mine=sgd": [],
    "--model small": ["--model: 1 of 4 claims is left out, about what is not trained: wide (1)"],
    "--model small --model wide": ["--model: wide: not used by two, so not trained there"],
}


@pytest.mark.parametrize("options", CHOICES)
def test_what_a_choice_leaves_out_is_reported_unless_the_options_name_it(
    options: str, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warnings(capsys, str(suite), *options.split()) == CHOICES[options]


def test_an_optimizer_that_no_experiment_uses_is_reported(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = suite.with_name("own.yaml")
    used = "optimizers.mine: used by no experiment, so it is not trained; to use it, write "
    form = "experiments: {one: {optimizers: {mine: {}}}}"
    own.write_text("extends: two.yaml\noptimizers: {mine: {target: lamb}}\n", encoding="utf-8")
    assert warnings(capsys, str(own)) == [f"{own}:2:14: {used}{form}"]
    own.write_text(f"{own.read_text()}{form}\n", encoding="utf-8")
    assert not warnings(capsys, str(own)), "the form that the warning gives is valid"
    (said,) = warnings(capsys, str(suite), "--set", "optimizers.mine={target: lamb}")
    assert said == f"--set optimizers.mine={{target: lamb}}: {used}{form}"
    own.write_text("extends: two.yaml\nexperiments: {one: null}\n", encoding="utf-8")
    assert not any("used by no" in said for said in warnings(capsys, str(own))), "adam and lion are the base's"


def test_a_suite_seed_next_to_inherited_seeds_is_reported(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = suite.with_name("own.yaml")
    own.write_text("extends: two.yaml\nseed: 7\n", encoding="utf-8")
    what = "this changes all random numbers, not the seeds of the trials, which are set by 'seeds'"
    assert warnings(capsys, str(own)) == [f"{own}:2:1: seed: {what}"]
    own.write_text("extends: two.yaml\nseed: 7\nseeds: 3\n", encoding="utf-8")
    assert not warnings(capsys, str(own))
    suite.write_text(SUITE.replace("seeds: 2", "seed: 7"), encoding="utf-8")
    assert main(["run", str(suite)]) == 2
    assert capsys.readouterr().err == f"optbench: {suite}:2:1: expected the key 'seeds', got the key 'seed'\n"


@pytest.mark.usefixtures("_train_here")
def test_remarks_on_a_suite_and_a_choice_are_shown_before_training(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "{batch_size: 32, max_steps: 2, train_examples: 100, validation_examples: 100, test_examples: 100}"
    sets = [
        f"--set=experiments.two.protocol={small}",
        "--set=experiments.two.metrics=[]",
        "--set=optimizers.mine.target=sgd",
    ]
    train = ["--experiment", "two", "--optimizer", "sgd", "--optimizer", "adam", "--seeds", "1", "--device", "cpu"]
    assert main(["run", str(suite), *sets, *train, "--jobs", "1", "--name", "r"]) == 0
    said = capsys.readouterr().err
    assert "optbench: warning: --optimizer: adam: not used by two, so not trained there\n" in said
    assert said.index("optimizers.mine: used by no experiment") < said.index("1 trial")
    assert main(["run", "--resume", "r"]) == 0
    assert "used by no experiment" not in capsys.readouterr().err
