"""`optbench tune`, as users run it."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from optbench.cli import main
from optbench.errors import OptbenchError
from optbench.kinds import value_name
from optbench.plan import Trial
from optbench.store.tables import AccuracyRow, Row
from optbench.studies.tuning.tuner import Method, Tuner
from optbench.suite import dump_suite, load_suite
from tests.written_runs import trial_row, write_run

pytestmark = pytest.mark.usefixtures("_train_here")

PLANTED = '''
import math
import optbench
import torch

class Planted(torch.optim.SGD):
    """Gradient descent at .1 times a factor that is largest, 1, at the rate .0316."""

    def __init__(self, params, lr):
        super().__init__(params, lr=0.1 * math.exp(-2 * math.log(lr / 0.0316) ** 2))

@optbench.metric(of="accuracy", direction="lower", unit="%")
def mistakes(accuracy, percent=1.0):
    return percent * (1 - accuracy[-1].mean())

@optbench.metric(of="accuracy")
def last(accuracy):
    return accuracy[-1, -1]

@optbench.metric(of="weights", direction="lower")
def width(weights):
    return len(weights)
'''
SUITE = """\
# Planted: the best rate is .0316.
name: planted
seeds: 6
optimizers:
  planted: {target: "./planted.py:Planted", lr: 1.0}  # far off
experiments:
  e:
    tasks: {kind: permuted, count: 1}
    models: {net: {kind: mlp, hidden: [8]}}
    protocol: {batch_size: 32, max_epochs: 100, max_steps: 12, early_stopping: null, train_examples: 400,
               validation_examples: 400, test_examples: 100}
tune:
  learning_margin: null
  optimizers:
    planted: {lr: {log: [1.0e-3, 1.0], points: 7}}
"""
GRID = "sgd: {lr: [1.0e-4, 2.15e-4, 4.64e-4]}"
COST = {
    "settings": 7,
    "seeds": 2,
    "space": {"lr": {"log": [0.001, 1.0], "points": 7}},
    "chosen": {"lr": 0.0316},
}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "planted.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen_rate(path: Path) -> float:
    rate = load_suite(path).optimizers["planted"].hyperparameters["lr"]
    assert isinstance(rate, float)
    return rate


@pytest.fixture(scope="module")
def tuned(_train_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which `planted` was tuned once, as run `t`."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "planted.py").write_text(PLANTED)
    (folder / "planted.yaml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["tune", "planted.yaml", "--name", "t", "-o", "tuned.yaml", "--quiet"]) == 0
    return folder


def test_tune_finds_the_planted_optimum_and_writes_it(tuned: Path) -> None:
    assert chosen_rate(tuned / "tuned.yaml") == 0.0316
    text = (tuned / "tuned.yaml").read_text()
    assert text.startswith("# Hyper-parameters chosen by optbench tune:\n#   optbench")
    assert yaml.safe_load(text) == {
        "extends": "./planted.yaml",
        "optimizers": {"planted": {"lr": 0.0316}},
        "experiments": {"e": {"tuning": {"planted": COST}}},
        "tune": {"seeds": [1000, 1001]},
    }
    assert "  planted: {lr: 0.0316}\n" in text
    # The run has self-contained copies of both files.
    assert (tuned / "runs/t/tuned.yaml").read_text() == text.replace("./planted.yaml", "source.yaml")
    assert load_suite(tuned / "runs/t/tuned.yaml") == load_suite(tuned / "tuned.yaml")
    trials = pd.read_parquet(tuned / "runs/t/trials.parquet")
    assert set(trials["stage"]) == {"tune"}
    assert sorted(set(trials["seed"])) == [1000, 1001]
    assert len(trials) == 14
    cost = (load_suite(tuned / "tuned.yaml").experiments["e"].tuning or {})["planted"]
    assert (cost.settings, cost.seeds, cost.edge) == (7, 2, [])
    assert (cost.space, cost.chosen) == ({"lr": {"log": [0.001, 1.0], "points": 7}}, {"lr": 0.0316})


def test_the_fastest_setting_is_chosen_by_the_steps_to_an_accuracy(planted: Path) -> None:
    speed = ["--set", "tune.metric={kind: steps_to_accuracy, accuracy: 0.2}"]
    often = ["--set", "experiments.e.protocol.evaluate_every=0.0834"]  # after each of the 12 steps in an epoch
    assert main(["tune", "planted.yaml", "--name", "t", *speed, *often]) == 0
    curves = pd.read_parquet("runs/t/curves.parquet")
    reached = curves[curves.eval_accuracy >= 0.2].groupby(["variant", "seed"]).step.min()
    trials = pd.MultiIndex.from_frame(curves[["variant", "seed"]].drop_duplicates())
    steps = reached.reindex(trials).fillna(curves.step.max()).groupby("variant").mean()
    assert len(set(steps)) > 1, "the settings differ in speed"
    assert f"lr={chosen_rate(planted / 'runs/t/tuned.yaml')}" == steps.idxmin()


def test_the_parzen_estimator_finds_the_planted_optimum(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "planted.yaml", "--name", "t", "--sampler", "tpe", "--trials", "8"]) == 0
    assert "Tuned suite: runs/t/tuned.yaml" in capsys.readouterr().out
    tried = {name.removeprefix("lr=") for name in pd.read_parquet("runs/t/trials.parquet")["variant"]}
    assert len(tried) == 8
    # The expected choice is the tried learning rate nearest to the planted one.
    nearest = min(map(float, tried), key=lambda rate: abs(math.log(rate / 0.0316)))
    assert chosen_rate(planted / "runs/t/tuned.yaml") == nearest


def test_an_optimum_beyond_the_edge_gives_a_warning_and_is_found_by_widening(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = ["--set", "tune.optimizers.planted.lr=[0.0015, 0.0032, 0.0068]"]
    assert main(["tune", "planted.yaml", "--name", "narrow", *narrow]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "lr 0.0068 is the largest value in its grid" in shown
    tuning = load_suite(planted / "runs/narrow/tuned.yaml").experiments["e"].tuning
    assert tuning is not None
    assert tuning["planted"].edge == ["lr"]
    assert main(["tune", "planted.yaml", "--name", "wide", "--widen", *narrow]) == 0
    assert "is the largest value in its grid" not in " ".join(capsys.readouterr().out.split())
    assert 0.02 < chosen_rate(planted / "runs/wide/tuned.yaml") < 0.05
    # Widening the finished narrow tuning leads to the same choice, and resuming again keeps it.
    assert main(["tune", "--resume", "narrow", "--widen", "--quiet"]) == 0
    wide, narrow_too = (load_suite(planted / f"runs/{name}/tuned.yaml").experiments for name in ("wide", "narrow"))
    assert narrow_too["e"].tuning == wide["e"].tuning
    assert main(["tune", "--resume", "narrow", "--quiet"]) == 0
    assert load_suite(planted / "runs/narrow/tuned.yaml").experiments["e"].tuning == wide["e"].tuning


OLDER = {"grid": "1e-4 2.15e-4 4.64e-4", "added": "4.65e-5 2.16e-5 1e-5 4.66e-6 2.17e-6 1.01e-6 4.7e-7 2.19e-7"}
"""Learning rates, best last, as an earlier version tried them. It extended a grid by the ratio of its rounded values,
whereas the same grid is now extended to 4.64e-5 2.15e-5 1e-5 4.64e-6 2.15e-6 1e-6 4.64e-7 2.15e-7."""


def older_run(folder: Path) -> list[str]:
    """Write a tuning run of an earlier version as run `older`; return the learning rates, in the order tried."""
    suite = load_suite(folder / "made.yaml")
    tuner = Tuner.of(suite, Method(widen=True))
    rates = [float(rate) for rate in " ".join(OLDER.values()).split()]
    tuner.tried["e", "sgd"] = [{("lr",): rate} for rate in rates]
    worst = {f"lr={value_name(rate)}": rate for rate in rates}

    def rows(trial: Trial) -> list[Row]:
        accuracy = 0.9 - worst[trial.variant]
        return [trial_row(), *(AccuracyRow(after, 1, 0.1, None, 9, accuracy, None) for after in (0, 1))]

    words = {"optimizers": [], "experiments": [], "settings": [], "sampler": "grid", "trials": None, "widen": True}
    record = {"file": "made.yaml", "command": "optbench tune made.yaml --widen", "seeds": None, **words}
    path = write_run(folder, dump_suite(tuner.tuning_suite), rows, name="older", tune=record)
    shutil.copy(folder / "made.yaml", path / "source.yaml")
    return list(worst)


def test_resuming_a_run_of_an_earlier_version_keeps_its_settings(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SUITE.replace('planted: {target: "./planted.py:Planted", lr: 1.0}', "sgd: {target: sgd, lr: 0.1}")
    Path("made.yaml").write_text(text.replace("planted: {lr: {log: [1.0e-3, 1.0], points: 7}}", GRID))
    tried = older_run(planted)
    before = pd.read_parquet("runs/older/trials.parquet")
    assert main(["tune", "--resume", "older", "--quiet", "--force"]) == 0
    after = pd.read_parquet("runs/older/trials.parquet")
    assert set(before.trial) <= set(after.trial)
    capsys.readouterr()
    assert main(["report", "older", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tunings"]
    assert [setting["variant"] for setting in found["settings"]][: len(tried)] == tried
    assert len(found["settings"]) == len(tried) + 2, "the last round that widening allows is new"
    assert {"planned": 2, "ok": 2}.items() <= found["settings"][len(tried) - 1].items()


def test_resuming_a_finished_tuning_writes_the_same_file_without_training(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for place in ("planted.yaml", "runs/t/tuned.yaml"):
        Path(place).unlink()
    assert main(["tune", "--resume", "t"]) == 0
    assert "done" not in capsys.readouterr().err
    assert Path("runs/t/tuned.yaml").read_text() == (tuned / "runs/t/tuned.yaml").read_text()
    # If the tuned suite is gone, a copy elsewhere extends the copy kept by the run.
    assert main(["tune", "--resume", "t", "-o", "sub.yaml", "--quiet"]) == 0
    assert yaml.safe_load(Path("sub.yaml").read_text())["extends"] == "./runs/t/source.yaml"
    assert load_suite(Path("sub.yaml")).optimizers["planted"].target == "./runs/t/plugins/planted.py:Planted"
    assert chosen_rate(Path("sub.yaml")) == 0.0316


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["planted.yaml", "--seeds", "0,1000"], r"planted.yaml: seed 0 is one of the suite's own"),
        (["planted.yaml", "--set", "tune.seeds=[3]"], r"seed 3 is in 'tune.seeds' and in 'seeds'"),
        (["planted.yaml", "--trials", "5"], r"--trials: expected --sampler random or tpe, got grid"),
        (["planted.yaml", "--sampler", "tpe", "--widen"], r"--widen: expected --sampler grid, got tpe"),
        (["planted.yaml", "--sampler", "tpee"], r"--sampler: unknown sampler 'tpee'; did you mean 'tpe'\?"),
        (["planted.yaml", "-o", "planted.py"], r"--output planted.py: this file exists"),
        (["planted.yaml", "--set", "tune.metric=effective_rank"], r"tune.metric: expected a metric of accuracies"),
        (
            [
                "planted.yaml",
                "--set",
                "tune.metric=steps_to_accuracy",
                "--set",
                "experiments.e.protocol.early_stopping={on: test}",
            ],
            r"tune.metric: steps_to_accuracy is measured on test data in e, which has early_stopping: {on: test}",
        ),
        (["planted.yaml", "--set", "tune.metric=plasticity_kept"], r"a metric of accuracies .*, got plasticity_kept"),
        (["planted.yaml", "--set", "tune.metric=./planted.py:width"], r"tune.metric: expected a metric of accuracies"),
        (
            ["planted.yaml", "--set", "tune.metric=./planted.py:last"],
            r"tune.metric: expected a metric with a preferred",
        ),
        (["planted.yaml", "--set", "tune.metric=./planted.py:lst"], r"tune.metric: .*no 'lst'; did you mean 'last'\?"),
        (["planted.yaml", "--set", "tune.optimizers.sgd.lr=[1, 2]"], r"tune.optimizers: unknown optimizer 'sgd'"),
        (["planted.yaml", "--resume", "x"], r"no run 'x'"),
        ([], r"tune: expected a SUITE"),
    ],
)
def test_an_invalid_tuning_is_refused_in_one_line_with_exit_2(
    planted: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["tune", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1
    assert not (planted / "runs").exists()


def test_a_resumed_tuning_takes_no_other_options(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tuned)
    assert main(["tune", "planted.yaml", "--resume", "t"]) == 2
    assert "SUITE and --resume: a resumed tuning run keeps its options" in capsys.readouterr().err
    assert main(["tune", "--resume", "t", "--trials", "5"]) == 2
    assert "--trials and --resume" in capsys.readouterr().err


def test_a_run_that_is_not_a_tuning_cannot_be_resumed_by_tune(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tuned / "runs/t", tmp_path / "runs/r")
    (tmp_path / "runs/r/source.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--resume", "r"]) == 2
    assert "expected a tuning run; other runs are resumed by optbench run --resume" in capsys.readouterr().err


def test_an_evaluation_on_tuning_seeds_is_refused(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = SUITE.replace("tune:\n", "tune:\n  seeds: [1000, 1001]\n")
    (planted / "planted.yaml").write_text(fixed)
    assert main(["run", "planted.yaml", "--seeds", "0,1001"]) == 2
    assert "seed 1001 is in 'tune.seeds' and in 'seeds'" in capsys.readouterr().err


def test_a_dry_run_shows_the_settings_and_trains_nothing(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "planted.yaml", "--dry-run"]) == 0
    assert "planted-tune: 14 trials in 1 cohort" in capsys.readouterr().out
    (planted / "planted.py").write_text("raise SystemExit('executed')")
    assert main(["tune", "planted.yaml", "--dry-run"]) == 2
    assert "cannot import planted.py: it ends the program" in capsys.readouterr().err
    assert not (planted / "runs").exists()


def test_an_optimizer_added_on_the_command_line_is_tuned(planted: Path) -> None:
    words = ["--optimizer", "mine=./planted.py:Planted", "--set", "optimizers.mine.lr=0.01"]
    words += ["--set", "optimizers.mine.elementwise=true"]
    space = ["--set", "tune.optimizers.mine.lr={log: [0.001, 1.0], points: 7}"]
    assert main(["tune", "planted.yaml", "--name", "t", "--quiet", *words, *space]) == 0
    tuned = load_suite(planted / "runs/t/tuned.yaml")
    assert tuned.optimizers["mine"].target == "./planted.py:Planted"
    assert tuned.optimizers["mine"].hyperparameters == {"lr": 0.0316, "elementwise": True}
    assert (tuned.experiments["e"].tuning or {}).keys() == {"mine", "planted"}


def test_changes_from_the_command_line_are_in_the_tuned_suite(planted: Path) -> None:
    """The suite extends one in another folder, and the output is in a third folder."""
    for folder in ("lab", "out"):
        Path(folder).mkdir()
    Path("lab/own.yaml").write_text("extends: ../planted.yaml\nname: own\nseeds: 4\n")
    words = ["--set", "experiments.e.protocol.max_steps=10", "--set", "optimizers.sgd={target: sgd, lr: 0.5}"]
    words += ["--optimizer", "planted", "--optimizer", "third=./planted.py:Planted", "--set", "optimizers.third.lr=9"]
    assert main(["tune", "lab/own.yaml", "--name", "t", "-o", "out/tuned.yaml", "--quiet", *words]) == 0
    meant = {
        "optimizers": {
            "planted": {"lr": 0.0316},
            "sgd": {"target": "sgd", "lr": 0.5},
            "third": {"target": "../planted.py:Planted", "lr": 9},
        },
        "experiments": {"e": {"protocol": {"max_steps": 10}, "tuning": {"planted": COST}}},
        "tune": {"seeds": [1000, 1001]},
    }
    assert yaml.safe_load(Path("out/tuned.yaml").read_text()) == {"extends": "../lab/own.yaml", **meant}
    suite = load_suite(Path("out/tuned.yaml"))
    assert (suite.name, suite.seeds) == ("own", [0, 1, 2, 3])
    assert {name: o.target for name, o in suite.optimizers.items()} == {
        "planted": "../planted.py:Planted",
        "sgd": "sgd",
        "third": "../planted.py:Planted",
    }
    assert "extends" not in yaml.safe_load(Path("runs/t/source.yaml").read_text())
    assert chosen_rate(Path("runs/t/tuned.yaml")) == 0.0316
    assert main(["run", "out/tuned.yaml", "--dry-run"]) == 0


def test_the_suite_of_a_run_is_tuned_with_the_code_of_the_run(planted: Path) -> None:
    assert main(["run", "planted.yaml", "--name", "r", "--seeds", "1", "--quiet"]) == 0
    Path("planted.py").write_text("raise SystemExit('another state')")
    assert main(["tune", "runs/r/suite.yaml", "--name", "t", "-o", "tuned.yaml", "--quiet"]) == 0
    tuned = load_suite(Path("tuned.yaml"))
    assert tuned.optimizers["planted"].target == "./runs/r/plugins/planted.py:Planted"
    assert chosen_rate(Path("tuned.yaml")) == chosen_rate(Path("runs/t/tuned.yaml")) == 0.0316


def test_a_users_metric_is_tuned_on_validation_data(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "metric: {kind: ./planted.py:mistakes, percent: 100}"
    Path("planted.yaml").write_text(SUITE.replace("learning_margin", f"{rule}\n  learning_margin"))
    assert main(["run", "planted.yaml", "--dry-run"]) == 0
    assert main(["tune", "planted.yaml", "--name", "t", "-o", "tuned.yaml", "--quiet"]) == 0
    assert chosen_rate(Path("tuned.yaml")) == 0.0316
    accuracy = pd.read_parquet("runs/t/accuracy.parquet")
    wrong = 100 * (1 - accuracy[accuracy.after_task == 1].set_index("trial").validation_accuracy)
    found = pd.read_parquet("runs/t/metrics.parquet").set_index("trial")
    assert set(found.metric) == {"mistakes percent=100"}
    pd.testing.assert_series_equal(found.value, wrong, check_names=False, check_index=False)
    Path("planted.py").unlink()
    capsys.readouterr()
    assert main(["report", "t"]) == 0
    assert "the lowest mistakes percent=100" in " ".join(capsys.readouterr().out.split())
    assert main(["report", "t", "--format", "json", "-o", "-"]) == 0
    assert '"metric": "mistakes percent=100"' in capsys.readouterr().out


def test_a_metric_of_the_rule_must_exist(planted: Path) -> None:
    with pytest.raises(OptbenchError, match="unknown metric"):
        load_suite(planted / "planted.yaml", ["tune.metric=accuracee"])
