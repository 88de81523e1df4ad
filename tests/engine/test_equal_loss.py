"""`early_stopping: {on: train_loss, target: x}`: a task ends at the first evaluation at or below the target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from optbench import compare, read_run
from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.engine.task import SUBSET, training_subset
from optbench.stats.claims import ClaimVerdict, judge_claims
from optbench.stats.results import read_results
from optbench.store import read_run as read_stored
from optbench.store.tables import AccuracyRow, CurveRow
from optbench.suite import dump_suite, load_suite
from optbench.tasks import Examples
from tests.conftest import report, run_file, same_bits, small_suite, train_suite, trial_row
from tests.engine.test_interim import cut_and_whole
from tests.twin import train_twin

TARGET: dict[str, Any] = {"early_stopping": {"on": "train_loss", "target": 0.5}, "evaluate_every": 0.2, "max_epochs": 4}


def curves(result: TrialResult, task: int) -> list[CurveRow]:
    return [row for row in result.rows if isinstance(row, CurveRow) and row.task == task]


def test_a_task_ends_at_the_first_evaluation_at_or_below_the_target(mnist: Dataset) -> None:
    """The weights are those of that evaluation, members stop at different steps, and a plain loop agrees."""
    suite = small_suite({"opt": {"target": "sgd", "lr": [0.05, 0.2]}}, **TARGET)
    results = train_suite(suite, mnist)
    assert len({trial_row(result).steps for result in results}) > 2
    for result in results:
        lr = float(result.trial.hyperparameters["lr"])
        assert trial_row(result).tasks_above_target == 0
        assert trial_row(result).note is None
        for task in (1, 2):
            *before, last = (row.eval_loss for row in curves(result, task))
            assert before
            assert all(loss is not None and loss > 0.5 for loss in before)
            assert last is not None
            assert last <= 0.5
        assert trial_row(result).steps == sum(curves(result, task)[-1].step for task in (1, 2))

        def make(network: nn.Module, lr: float = lr) -> torch.optim.Optimizer:
            return torch.optim.SGD(network.parameters(), lr=lr)

        _, weights, matrix = train_twin(suite, mnist, result.trial.seed, make)
        assert result.weights is not None
        for name, weight in weights.items():
            torch.testing.assert_close(result.weights[name], weight, rtol=1e-4, atol=1e-5)
        rows = [row for row in result.rows if isinstance(row, AccuracyRow)]
        (validated,) = (row.validation_loss for row in rows if row.after_task == row.task == 2)
        assert validated != curves(result, 2)[-1].eval_loss, (
            "validation scores are of validation data whatever stops the task"
        )
        found = [[row.accuracy for row in rows if row.after_task == after] for after in range(3)]
        assert found == [pytest.approx(line, abs=0.011) for line in matrix]


def test_lock_step_and_resuming_do_not_change_results(mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": "adamw", "lr": [0.02, 2e-3, 1e-5]}}, seeds=2, **TARGET)
    results = train_suite(suite, mnist)
    assert {trial_row(result).tasks_above_target for result in results} == {0, 2}
    for i in (0, 3, 5):
        assert same_bits(train_suite(suite, mnist, only=i)[0], results[i])
    for _, whole, again in cut_and_whole(suite, mnist):
        assert all(map(same_bits, whole, again))


def test_the_training_loss_is_taken_on_a_fixed_subset_shared_by_all_trials() -> None:
    many = Examples(torch.arange(3 * SUBSET)[:, None], torch.arange(3 * SUBSET))
    drawn = training_subset(many, 7).targets
    assert len(drawn) == SUBSET
    assert torch.equal(drawn, drawn.unique()), "every example at most once and in order"
    assert torch.equal(drawn, training_subset(many, 7).targets)
    assert not torch.equal(drawn, training_subset(many, 8).targets)
    thirds = drawn.div(SUBSET, rounding_mode="floor").bincount()
    assert thirds.min() > SUBSET / 4, "all parts of the data are covered, since it may be sorted by class"
    few = Examples(many.inputs[:SUBSET], many.targets[:SUBSET])
    assert training_subset(few, 7) is few


def test_a_suite_with_a_target_survives_a_round_trip(tmp_path: Path) -> None:
    suite = small_suite({"opt": {"target": "sgd", "lr": 0.1}}, **TARGET)
    (tmp_path / "s.yaml").write_text(dump_suite(suite))
    assert load_suite(tmp_path / "s.yaml") == suite
    above = "extends: ./s.yaml\nexperiments: {small: {protocol: {early_stopping: {on: test, target: null}}}}\n"
    (tmp_path / "t.yaml").write_text(above)
    early = load_suite(tmp_path / "t.yaml").experiments["small"].protocol.early_stopping
    assert early is not None
    assert early.model_dump() == {"on": "test", "patience": 3}


# --- trials that never reach the target

SUITE = """
name: equal-loss
seeds: 7
optimizers:
  fast: {target: adam, lr: 0.01}
  slow: {target: adam, lr: [0.01, 3.0e-4]}
experiments:
  permuted:
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [16]}}
    metrics: [average_accuracy, effective_rank]
    checkpoints: false
    protocol:
      {max_epochs: 4, batch_size: 32, train_examples: 600, validation_examples: 100, test_examples: 100,
       early_stopping: {on: train_loss, target: 0.6}, evaluate_every: 0.25}
claims:
  higher: {experiment: permuted, metric: average_accuracy, left: fast, right: slow, expect: higher}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Path:
    return run_file(tmp_path_factory.mktemp("trained"), SUITE)


def test_trials_above_the_target_have_a_note(trained: Path) -> None:
    table = pd.read_parquet(trained / "trials.parquet").set_index(["optimizer", "variant"])
    assert set(table.status) == {"ok"}
    slow = table.loc["slow", "lr=0.0003"]
    assert set(slow.tasks_above_target) == {2}
    assert set(slow.note) == {"ended above the target training loss (tasks 1-2)"}
    assert set(table.loc["fast"].tasks_above_target) == {0}


def test_reports_and_comparisons_state_that_trials_above_the_target_are_left_out(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = " ".join(report(trained, "markdown", capsys).split())
    assert "A task ends at the first training loss of 0.6 or less, after at most 4 epochs." in shown
    assert "slow lr=0.0003: 0 of 7; 7 above the target training loss: excluded from the means." in shown
    assert "slow lr=0.0003: 7 of its trials: ended above the target training loss (tasks 1-2)." in shown
    assert (
        "claim 1, small, slow lr=0.0003: 7 of 7 trials above the target training loss; their seeds are left out"
        in shown
    )
    records = json.loads(report(trained, "json", capsys))
    rows = {(row["variant"], row["above_target"], row["ok"], row["n"]) for row in records["results"]}
    assert rows == {("default", 0, 7, 7), ("lr=0.01", 0, 7, 7), ("lr=0.0003", 7, 0, 0)}

    run = read_run(trained)
    assert set(run.values().query("variant == 'lr=0.0003'").status) == {"above_target"}
    assert set(compare(run, "fast", "slow/lr=0.01").pairs) == {7}
    capsys.readouterr()
    assert main(["compare", f"{trained}:fast", f"{trained}:slow"]) == 0
    compared = " ".join(capsys.readouterr().out.split())
    assert "0 of 7 seeds paired" in compared
    assert "B (slow lr=0.0003), of 7 trials: 7 above the target training loss" in compared
    for form in ("terminal", "json"):
        capsys.readouterr()
        assert main(["compare", f"{trained}:fast", f"{trained}:slow/lr=0.0003", "--format", form]) == 4
    assert "no seed has finished on both sides at or below the target training loss" in capsys.readouterr().err


def test_claims_are_not_judged_on_trials_above_the_target(trained: Path) -> None:
    (claim,) = judge_claims(read_results(read_stored(trained)))
    by_variant = {part.right.variant: part for part in claim.parts if not isinstance(part.right, float)}
    assert by_variant["lr=0.0003"].result.pairs == 0
    assert by_variant["lr=0.0003"].verdict is ClaimVerdict.NOT_COMPARABLE
    assert by_variant["lr=0.01"].result.n == 7


def test_the_run_command_warns_of_trials_above_the_target(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--resume", str(trained), "--device", "cpu", "--jobs", "1", "--quiet"]
    assert main(words) == 0
    assert "7 trials ended a task above the target training loss" in capsys.readouterr().err
