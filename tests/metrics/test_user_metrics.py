"""Users' metrics from the command line: measured, stored, reported and compared; wrong ones are refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from optbench.cli import main
from optbench.metrics import METRICS
from optbench.metrics.own import from_record, is_metric_record, metric_record
from optbench.store import read_run
from tests.refusals import refusal

pytestmark = pytest.mark.usefixtures("_train_here")

MINE = '''
import numpy as np, torch
import optbench

@optbench.metric(of="features", direction="higher", unit="px", margin=0.25, formula="mean distance of class means")
def margin(features, targets, power=1):
    means = torch.stack([features[targets == c].mean(0) for c in targets.unique()])
    return torch.pdist(means).mean() ** power

@optbench.metric(of="features")
def norm(features):
    value = features.norm(dim=1).mean()
    features.zero_()  # its own copy
    return value

@optbench.metric(of="accuracy", direction="lower")
def worst_drop(accuracy):
    """The largest loss of accuracy on a task.

    From its best to its end."""
    drop = (accuracy[1:].max(0) - accuracy[-1]).max()
    accuracy[:] = 0
    return drop

@optbench.metric(of="weights")
def largest(weights):
    value = max(w.abs().max() for w in weights.values())
    for w in weights.values():
        w.zero_()
    return value

@optbench.metric(of="logits", direction="higher")
def hits(logits, targets):
    return (logits.argmax(-1) == targets).double().mean()

@optbench.metric(of="model", direction="higher")
def hits_again(model, inputs, targets):
    assert not model.training
    value = (model(inputs).argmax(-1) == targets).double().mean().item()
    for p in model.parameters():
        p.data.zero_()
    return value

@optbench.metric(of="features")
def drawn(features):
    torch.set_default_dtype(torch.float64)
    return torch.rand(()).item() + np.random.rand()

@optbench.metric(of="features")
def undefined(features):
    return float("nan")
'''
OWN = ("margin", "norm", "worst_drop", "largest", "hits", "hits_again", "drawn", "undefined")
SUITE = """
name: own
seeds: 2
optimizers: {sgd: {target: sgd, lr: 0.1}, adam: {target: adam, lr: 0.003}}
experiments:
  e:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [6]}}
    protocol: {max_steps: 10, train_examples: 320, validation_examples: 64, test_examples: 100, batch_size: 32}
    metrics: METRICS
    primary: [PRIMARY]
claims:
  c: {experiment: e, metric: PRIMARY, left: adam, right: sgd, expect: higher}
"""
ALL = f"[default, {', '.join(f'./mine.py:{name}' for name in OWN)}]"


def written(folder: Path, metrics: str = ALL, primary: str = "margin", code: str = MINE) -> Path:
    (folder / "mine.py").write_text(code, encoding="utf-8")
    suite = folder / "s.yaml"
    suite.write_text(SUITE.replace("METRICS", metrics).replace("PRIMARY", primary), encoding="utf-8")
    return suite


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Path:
    folder = tmp_path_factory.mktemp("own")
    suite = written(folder)
    assert main(["run", str(suite), "--runs-dir", str(folder), "--name", "a", "--quiet"]) == 0
    return folder / "a"


def final(run: Path, metric: str) -> pd.Series:
    """Return the values of trials by id, read from the Parquet tables."""
    table = pd.read_parquet(run / "metrics.parquet")
    chosen = table[(table.metric == metric) & (table.after_task == 2) & table.task.isna()]
    return chosen[chosen.layer.isna() | (chosen.layer == "features")].set_index("trial").value


def accuracies(run: Path) -> dict[str, np.ndarray]:
    table = pd.read_parquet(run / "accuracy.parquet").sort_values(["after_task", "task"])
    return {trial: rows.accuracy.to_numpy().reshape(3, 2) for trial, rows in table.groupby("trial")}


def test_a_metric_of_the_accuracy_matrix_agrees_with_the_stored_matrices(run: Path) -> None:
    found = final(run, "worst_drop")
    for trial, matrix in accuracies(run).items():
        assert found[trial] == (matrix[1:].max(0) - matrix[-1]).max()


def test_a_metric_of_weights_agrees_with_checkpoints_by_layer_and_overall(run: Path) -> None:
    found, table = final(run, "largest"), pd.read_parquet(run / "metrics.parquet")
    for trial, place in pd.read_parquet(run / "trials.parquet").set_index("trial").checkpoint.items():
        largest = {name: np.abs(w).max() for name, w in load_file(run / place).items() if w.ndim > 1}
        rows = table[(table.metric == "largest") & (table.trial == trial) & (table.after_task == 2)]
        assert rows[rows.layer.notna()].set_index("layer").value.to_dict() == pytest.approx(largest)
        assert found[trial] == pytest.approx(max(largest.values()))


def test_metrics_of_logits_and_of_the_model_agree_with_the_accuracies(run: Path) -> None:
    """Metrics get a copy of the network; otherwise `hits_again` would have zeroed it before the second task."""
    for trial, matrix in accuracies(run).items():
        assert final(run, "hits")[trial] == pytest.approx(matrix[-1].mean())
        assert final(run, "hits_again")[trial] == pytest.approx(matrix[-1].mean())


def test_a_metric_that_modifies_its_arguments_does_not_affect_others(run: Path, tmp_path: Path) -> None:
    alone = written(tmp_path, "[default]", "forgetting")
    assert main(["run", str(alone), "--runs-dir", str(tmp_path), "--name", "b", "--quiet"]) == 0
    for name in ("accuracy", "metrics", "spectra", "similarity", "curves"):
        ours, theirs = (pd.read_parquet(path / f"{name}.parquet") for path in (run, tmp_path / "b"))
        if name == "metrics":
            ours = ours[~ours.metric.isin(OWN)].reset_index(drop=True)
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_random_draws_of_a_metric_belong_to_the_trial(run: Path, tmp_path: Path) -> None:
    alone = written(tmp_path, '["./mine.py:drawn"]', "drawn")
    assert main(["run", str(alone), "--runs-dir", str(tmp_path), "--name", "b", "--quiet", "--optimizer", "adam"]) == 0
    found = final(tmp_path / "b", "drawn")
    assert found.to_dict() == {trial: value for trial, value in final(run, "drawn").items() if "adam" in trial}
    assert found.nunique() == 2, "seeds have different draws"


def test_a_metric_of_features_is_measured_and_nan_is_noted(run: Path) -> None:
    table = pd.read_parquet(run / "metrics.parquet")
    assert (final(run, "margin") > 0).all()
    assert (final(run, "norm") > 0).all()
    rows = table[table.metric == "undefined"]
    assert rows.value.isna().all()
    assert set(rows.note) == {"the function returned nan"}


def test_the_record_describes_users_metrics_and_reading_needs_neither_file_nor_torch(run: Path) -> None:
    record = {entry["name"]: entry for entry in json.loads((run / "run.json").read_text())["metrics"]}
    assert tuple(record) == OWN
    described = {key: record["margin"][key] for key in ("of", "direction", "unit", "margin", "formula", "target")}
    assert described == {
        "of": "features",
        "direction": "higher",
        "unit": "px",
        "margin": 0.25,
        "formula": "mean distance of class means",
        "target": "./mine.py:margin",
    }
    assert record["worst_drop"]["formula"] == "The largest loss of accuracy on a task."
    assert set(pd.read_parquet(run / "trials.parquet").source_hash) == {record["margin"]["source_hash"]}
    assert (run / "plugins" / "mine.py").read_text() == MINE
    hidden = run.parent / "mine.py"
    hidden.rename(hidden.with_suffix(".away"))
    try:
        program = (
            "import sys; from optbench.cli import main; "
            f"assert main(['report', {str(run)!r}]) == 0; print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    finally:
        hidden.with_suffix(".away").rename(hidden)
    assert done.stdout.split()[-1] == "False"
    assert "margin (px) ↑" in done.stdout
    assert "adam higher than that of sgd" in done.stdout


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex", "csv", "json"])
def test_every_format_shows_users_metrics(run: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--format", form, "-o", "-"]) == 0
    shown = capsys.readouterr().out
    assert "margin" in shown
    assert "worst" in shown


def test_compare_gives_verdicts_and_gates_on_users_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [f"{run}:sgd", f"{run}:adam", "--format", "json", "--metric", "margin"]
    assert main(["compare", *sides, "--fail-on", "margin:+0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    (judged,) = found["results"]
    medians = final(run, "margin").groupby(lambda trial: "adam" in trial).median()
    assert (judged["metric"], judged["direction"], judged["primary"]) == ("margin", "higher", True)
    assert (judged["median_a"], judged["median_b"]) == pytest.approx((medians[False], medians[True]))
    assert [gate["result"] for gate in found["gates"]] == ["inconclusive"]
    assert main(["compare", *sides, "--fail-on", "margine:+0.1"]) == 2
    assert "unknown metric 'margine'; did you mean 'margin'?" in capsys.readouterr().err


def test_a_metric_with_changed_code_is_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = written(tmp_path, code=MINE.replace("** power", "** 2"))
    assert main(["run", str(suite), "--runs-dir", str(tmp_path), "--name", "b", "--quiet"]) == 0
    main(["compare", str(run), str(tmp_path / "b")])
    assert "'margin' is a different metric in each run" in capsys.readouterr().err


WRONG = """
import optbench, sys
def unmarked(features): return 1.0
@optbench.metric(of="features")
def margin(features): return 1.0
@optbench.metric(of="features")
def raises(features): raise ValueError("boom")
@optbench.metric(of="features")
def shaped(features): return features.mean(0)
@optbench.metric(of="features")
def text(features): return "1"
@optbench.metric(of="weights")
def takes_two(weights, targets): return 1.0
@optbench.metric(of="features")
def forgetting(features): return 1.0
@optbench.metric(of="features")
def ends(features): sys.exit(3)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "unmarked",
            "s.yaml:10:15: experiments.e.metrics.0: ./mine.py:unmarked: expected a function marked with",
        ),
        (
            "margine",
            "s.yaml:10:15: experiments.e.metrics.0: ./mine.py:margine: ./mine.py has no 'margine'; did you mean ",
        ),
        ("takes_two", "./mine.py:takes_two: expected a function of (weights), got (weights, targets); settings"),
        ("forgetting", "./mine.py:forgetting: 'forgetting' is the name of a registered metric"),
        ("raises", "./mine.py:raises: raised ValueError: boom (in a test call before training)"),
        ("shaped", "./mine.py:shaped: raised TypeError: expected one number, got Tensor of shape (32,)"),
        ("text", "./mine.py:text: raised TypeError: expected one number, got str"),
        ("ends", "./mine.py:ends: raised ProgramEndError: it ends the program with exit(3)"),
    ],
)
def test_wrong_metrics_are_refused_before_training(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = written(tmp_path, f'["./mine.py:{name}"]', "forgetting", WRONG)
    words = ("run", str(suite), "--runs-dir", str(tmp_path / "runs"))
    refused = refusal(capsys, tmp_path, *words)
    assert said in refused
    assert refusal(capsys, tmp_path, *words, "--dry-run") == refused, "a dry run tries metrics, too"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_a_dry_run_says_which_metrics_were_tried(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = written(tmp_path, '[default, "./mine.py:margin", {kind: "./mine.py:margin", power: 2}]')
    suite.write_text(suite.read_text().replace("    tasks:", f"    dataset: {dataset}\n    tasks:"), encoding="utf-8")
    assert main(["run", str(suite), "--dry-run", "--data-dir", str(tmp_path / "no data")]) == 0
    missing = "; not tried, since the data are missing"  # MNIST is part of the package
    tried = "; tried on random numbers and untrained networks" if dataset == "mnist" else missing
    assert f"\nMetrics\n  e: margin, margin power=2{tried}\n" in capsys.readouterr().out


THIRD = """
import torch
import optbench

def digits():
    half = optbench.Split(torch.rand(420, 1, 4, 4), torch.arange(420) % 4)
    return optbench.Dataset("digits", half, half, 4)

class Drift:
    def __init__(self, data, seed, count: int = 2):
        self.data, self.names = data, [f"drift {i}" for i in range(count)]
    def examples(self, trial_seed, task, part):
        return self.data[part].inputs, self.data[part].targets

@optbench.metric(of="accuracy")
def third(accuracy):
    return accuracy[-1, 2]

@optbench.metric(of="features")
def norm(features):
    return features.norm()
"""


def third(folder: Path, tasks: str, count: int, metrics: str = "[./mine.py:third, ./mine.py:norm]") -> Path:
    """Write a suite with a dataset of the user's, whose number of classes is unknown until it is loaded."""
    suite = written(folder, metrics, "third", THIRD)
    with_data = suite.read_text().replace("    tasks:", "    dataset: ./mine.py:digits\n    tasks:")
    suite.write_text(with_data.replace("{kind: permuted, count: 2}", f"{{kind: {tasks}, count: {count}}}"))
    return suite


def test_a_dry_run_tries_metrics_of_accuracies_on_as_many_tasks_as_the_suite_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(third(tmp_path, "permuted", count=5)), "--dry-run"]) == 0
    tried = "\nMetrics\n  e: third, norm; tried on random numbers and untrained networks\n"
    assert tried in capsys.readouterr().out
    words = ("run", third(tmp_path, "permuted", count=2), "--runs-dir", tmp_path / "runs")
    refused = refusal(capsys, tmp_path, *words)
    assert "./mine.py:third: raised IndexError: index 2 is out of bounds for axis 1 with size 2" in refused
    assert refusal(capsys, tmp_path, *words, "--dry-run") == refused


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("[./mine.py:third, ./mine.py:norm]", "  e: norm; tried on random numbers and untrained networks\n"),
        ("[./mine.py:third]", ""),
    ],
)
def test_a_dry_run_does_not_try_metrics_of_accuracies_if_the_number_of_tasks_is_unknown(
    metrics: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(third(tmp_path, "./mine.py:Drift", 5, metrics)), "--dry-run"]) == 0
    untried = "  e: third; not tried, since the number of tasks is unknown\n"
    assert f"\nMetrics\n{said}{untried}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('of="featurs"', "of: expected one of features, logits, weights, accuracy, model, got 'featurs'"),
        ('of="features", direction="up"', "direction: expected one of higher, lower, neutral, got 'up'"),
        ('of="features", margin=-1', "margin: expected a finite number of at least 0, got -1"),
    ],
)
def test_wrong_decorators_are_refused(line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"import optbench\n@optbench.metric({line})\ndef margin(features): return 1.0\n"
    suite = written(tmp_path, '["./mine.py:margin"]', code=code)
    assert said in refusal(capsys, tmp_path, "run", str(suite), "--runs-dir", str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("metrics", "primary", "said"),
    [
        ("[defaul]", "forgetting", "experiments.e.metrics.0: unknown metric 'defaul'; did you mean 'default'?"),
        ('["./mine.py:margin"]', "margn", "experiments.e.primary: unknown metric 'margn'; did you mean 'margin'?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_name(
    metrics: str, primary: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = written(tmp_path, metrics, primary)
    assert said in refusal(capsys, tmp_path, "run", suite, "--runs-dir", tmp_path / "runs", lines=2)


@pytest.mark.parametrize("second", ["./other.py:margin", "{kind: ./other.py:margin, factor: 2}"])
def test_two_metrics_with_the_same_name_are_refused(
    second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = written(tmp_path, f"[./mine.py:margin, {second}]")
    code = MINE.replace("def margin(features, targets", "def margin(features, targets, *, factor: int = 1")
    (tmp_path / "other.py").write_text(code, encoding="utf-8")
    said = refusal(capsys, tmp_path, "run", str(suite), "--runs-dir", str(tmp_path / "runs"))
    assert "./other.py:margin: has the same name as ./mine.py:margin" in said


def test_a_metric_that_raises_during_training_is_noted_without_failing_the_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = MINE.replace("means = torch.stack", 'assert len(features) != 200, "two hundred"\n    means = torch.stack')
    suite = written(tmp_path, '[effective_rank, "./mine.py:margin"]', code=code)
    assert main(["run", str(suite), "--runs-dir", str(tmp_path), "--name", "a", "--quiet"]) == 3
    shown = capsys.readouterr()
    assert "warning: metric margin raised AssertionError: two hundred: undefined in 4 trials" in shown.err
    assert "2 of its trials: margin raised AssertionError: two hundred" in " ".join(shown.out.split())
    assert set(pd.read_parquet(tmp_path / "a" / "trials.parquet").status) == {"ok"}
    assert final(tmp_path / "a", "margin").isna().all()
    assert final(tmp_path / "a", "effective_rank").notna().all()


def test_a_changed_file_is_refused_on_resumption(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run.parent / "mine.py"
    whole = read_run(run).table("trials")
    statuses = pa.array(["failed", *whole["status"].to_pylist()[1:]])
    place = whole.column_names.index("status")
    pq.write_table(whole.set_column(place, whole.schema.field("status"), statuses), run / "trials.parquet")
    file.write_text(MINE.replace("px", "mm"), encoding="utf-8")
    said = refusal(capsys, run.parent, "run", "--resume", str(run), "--runs-dir", str(run.parent))
    assert f"{file} has changed since the run was made" in said
    file.write_text(MINE, encoding="utf-8")
    assert main(["run", "--resume", str(run), "--runs-dir", str(run.parent), "--quiet"]) == 0


def test_a_tuning_run_measures_accuracy_metrics_on_validation_data(tmp_path: Path) -> None:
    suite = written(tmp_path, '["./mine.py:worst_drop"]', "worst_drop")
    words = ["run", str(suite), "--runs-dir", str(tmp_path), "--name", "t", "--quiet", "--set", "stage=tune"]
    assert main(words) == 0
    table = pd.read_parquet(tmp_path / "t" / "accuracy.parquet").sort_values(["after_task", "task"])
    for trial, rows in table.groupby("trial"):
        matrix = rows.validation_accuracy.to_numpy().reshape(3, 2)
        assert final(tmp_path / "t", "worst_drop")[trial] == (matrix[1:].max(0) - matrix[-1]).max()


@pytest.mark.parametrize(
    "wrong",
    [{"of": "all"}, {"direction": None}, {"margin": "1"}, {"margin": -1}, {"unit": 3}, {"name": None}, {"target": 1}],
    ids=str,
)
def test_an_invalid_description_of_a_metric_is_recognised(wrong: dict[str, object]) -> None:
    right = metric_record(dataclasses.replace(METRICS["hoyer"], name="mine", target="./mine.py:mine"))
    assert is_metric_record(right)
    assert metric_record(from_record(right)) == right
    assert not is_metric_record({**right, **wrong})
    assert not is_metric_record([right])
