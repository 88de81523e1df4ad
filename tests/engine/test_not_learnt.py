"""Networks that have not learnt their tasks are detected, noted and marked in every format, and never support a claim
silently."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.cli import main
from optbench.engine.learning import not_learnt as noted
from optbench.metrics.learning import (
    NotLearnt,
    loss_exploded,
    majority_share,
    no_better_than_guessing,
    start_losses,
    task_list,
)
from optbench.plan import Trial
from optbench.store.tables import AccuracyRow, CurveRow, Row
from tests.written_runs import results_of, rows_of, trial_row, write_run

pytestmark = pytest.mark.usefixtures("_train_here")

# --- definitions


@given(st.lists(st.integers(0, 400), min_size=2, max_size=10).filter(lambda counts: sum(counts) > 0), st.data())
def test_a_constant_prediction_never_beats_guessing(counts: list[int], data: st.DataObject) -> None:
    n = sum(counts)
    answer = data.draw(st.sampled_from(range(len(counts))))
    matrix = np.array([[0.0], [counts[answer] / n]])
    assert no_better_than_guessing(matrix, [majority_share(counts)], [n]).tolist() == [True]


@pytest.mark.parametrize(
    ("accuracy", "guess", "n", "flagged"),
    [
        # Three standard errors of a share of .1 over 100 examples are .09.
        (0.189, 0.1, 100, True),
        (0.191, 0.1, 100, False),
        (0.1135, 0.1135, 10_000, True),
        (0.12, 0.1, 10_000, False),
        (0.374, 0.5, 2_000, True),  # two classes of ten under one head
        (1.0, 1.0, 50, True),  # a single class: nothing to learn
        (1.0, 0.5, 50, False),
        (math.nan, 0.1, 100, False),
        (0.1, math.nan, 100, False),
    ],
)
def test_an_accuracy_must_exceed_guessing_by_three_standard_errors(
    accuracy: float, guess: float, n: int, flagged: bool
) -> None:
    assert bool(no_better_than_guessing([[0.5], [accuracy]], [guess], [n])[0]) is flagged


def test_random_predictions_count_as_guessing() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.binomial(1000, 0.1, size=(5000, 1)) / 1000
    matrices = np.stack([np.zeros_like(drawn), drawn], axis=1)
    flagged = no_better_than_guessing(matrices, np.full((5000, 1), 0.1), np.full((5000, 1), 1000))
    assert flagged.mean() > 0.997


def test_only_the_task_just_trained_on_counts() -> None:
    """A task that was forgotten later or known before does not count as not learnt."""
    matrix = [[0.1, 0.9, 0.1], [0.9, 0.1, 0.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.9]]
    assert no_better_than_guessing(matrix, [0.1] * 3, [1000] * 3).tolist() == [False, True, False]


def test_a_loss_above_ten_times_its_start_has_exploded() -> None:
    # Task 2 starts at 9, the loss after task 1; task 3 starts at .5, below the loss of the untrained network.
    loss = [[2.3, 2.3, 2.4], [0.1, 9.0, 3.0], [0.5, 0.1, 0.5], [1.0, 1.0, 0.1]]
    start = start_losses(loss)
    assert start.tolist() == [2.3, 9.0, 2.4]
    assert loss_exploded([4.5e30, 89.0, 23.0], start).tolist() == [True, False, False]
    assert loss_exploded([23.1, 90.1, math.nan], start).tolist() == [True, True, False]
    assert loss_exploded([1e9], start_losses([[math.nan], [math.nan]])).tolist() == [False]


def test_ranges_of_tasks_are_printed_in_words() -> None:
    assert [task_list(tasks) for tasks in ((2,), (1, 3, 4, 5), (1, 2))] == ["task 2", "tasks 1, 3-5", "tasks 1-2"]
    assert NotLearnt((1,), (2, 3)).notes == [
        "no better than guessing right after training (task 1)",
        "training loss above 10 times its initial value (tasks 2-3)",
    ]
    assert not NotLearnt()


# --- trained networks

TRAINED = """
name: rates
seeds: 2
optimizers:
  good: {target: adam, lr: 0.003}
  wild: {target: adam, lr: 30.0}
  slow: {target: sgd, lr: 1.0e-9}
experiments:
  permuted:
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [16]}}
    protocol:
      {max_steps: 20, batch_size: 32, train_examples: 1000, validation_examples: 200, test_examples: 500,
       early_stopping: null, evaluate_every: 0.2}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "s.yaml").write_text(TRAINED)
    runs = folder / "runs"
    assert main(["run", str(folder / "s.yaml"), "--runs-dir", str(runs), "--name", "made", "--quiet"]) == 0
    return runs / "made"


GUESSED = "no better than guessing right after training (tasks 1-2)"
EXPLODED = "training loss above 10 times its initial value (task 1)"


def test_a_network_that_learnt_nothing_has_status_ok_and_a_note(trained: Path) -> None:
    table = pd.read_parquet(trained / "trials.parquet")
    assert set(table.status) == {"ok"}
    notes = {name: set(group.note.fillna("")) for name, group in table.groupby("optimizer")}
    assert notes["good"] == {""}
    assert notes["slow"] == {GUESSED}
    assert all(note.endswith(EXPLODED) for note in notes["wild"])


def test_the_accuracy_of_guessing_is_the_share_of_the_most_frequent_class(trained: Path) -> None:
    table = pd.read_parquet(trained / "accuracy.parquet")
    # Only pixels are permuted, so all tasks have the same share.
    (share,) = set(table.majority)
    assert 0.1 < share < 0.15
    assert (share * 500) == pytest.approx(round(share * 500))


def test_reports_and_notes_agree_on_what_was_not_learnt(trained: Path) -> None:
    results = results_of(trained)
    for trial in results.trials:
        derived = results.not_learnt.get(trial.id, NotLearnt())
        assert "; ".join(derived.notes) == (results.rows[trial.id].note or "")
        assert bool(derived) == (trial.optimizer != "good")


def test_a_run_without_notes_and_shares_is_judged_in_the_same_way(trained: Path, tmp_path: Path) -> None:
    """Earlier versions did not store the shares; guessing among ten classes then has accuracy .1."""
    old = tmp_path / "old"
    old.mkdir()
    for file in trained.iterdir():
        if file.is_file():
            (old / file.name).write_bytes(file.read_bytes())
    accuracy, trials = (pq.read_table(old / f"{name}.parquet") for name in ("accuracy", "trials"))
    pq.write_table(accuracy.drop_columns(["majority"]), old / "accuracy.parquet")
    at = trials.column_names.index("note")
    without = trials.set_column(at, trials.field("note"), pa.nulls(len(trials), pa.string()))
    pq.write_table(without, old / "trials.parquet")
    assert results_of(old).not_learnt == results_of(trained).not_learnt


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex"])
def test_every_format_marks_trials_that_have_not_learnt(
    form: str, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["report", str(trained), "--format", form]) == 0
    mark = r"\textdagger{}" if form == "latex" else "†"
    shown = re.sub(r"[\s~]+", " ", capsys.readouterr().out)
    assert f"slow {mark}" in shown
    assert f"wild {mark}" in shown
    assert f"good {mark}" not in shown
    assert f"{mark} slow: 2 of 2 trials: {GUESSED}" in shown
    assert shown.count(EXPLODED) == 1, "shown once, not again as a note of the trials"


def test_json_and_csv_count_trials_that_have_not_learnt(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trained), "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)["results"]
    assert main(["report", str(trained), "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for rows in (records, lines):
        counts = {row["optimizer"]: (int(row["guessed"]), int(row["exploded"])) for row in rows}
        assert counts["good"] == (0, 0)
        assert counts["slow"] == (2, 0)
        assert counts["wild"][1] == 2


def test_compare_marks_the_side_that_has_not_learnt(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [f"{trained}:good", f"{trained}:slow"]
    assert main(["compare", *sides, "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert f"† B (slow): 2 of 2 trials: {GUESSED}" in shown
    assert "† A" not in shown
    assert main(["compare", *sides, "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)["results"][0]
    assert [record[key] for key in ("guessed_a", "exploded_a", "guessed_b", "exploded_b")] == [0, 0, 2, 0]


# --- claims

CLAIMED = """
name: claimed
seeds: 8
optimizers: {sgd: {target: sgd, lr: 0.1}, adam: {target: adam, lr: [0.001, 0.1]}}
experiments:
  permuted:
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [10]}}
claims:
  forgets-less: {experiment: permuted, metric: forgetting, left: adam, right: sgd, expect: lower}
  both-learn: {experiment: permuted, metric: forgetting, left: sgd, right: 0.9, expect: lower}
"""
LOSS = 4.5e30


def claimed(trial: Trial) -> Sequence[Row]:
    """Return rows in which adam with lr=0.1 stays at chance, with a loss of 4.5e30 in task 2, and forgets nothing."""
    wobble = 0.001 * trial.seed
    if trial.optimizer == "adam" and trial.hyperparameters["lr"] == 0.1:
        matrix = [[0.1, 0.1], [0.1 + wobble, 0.1], [0.1, 0.1]]
    else:
        forgets = 0.3 + 4 * wobble if trial.optimizer == "sgd" else 0.1
        matrix = [[0.1, 0.1], [0.9, 0.1], [0.9 - forgets, 0.9]]
    rows = rows_of("ok", matrix, {}, init_hash=str(trial.seed))
    rows = [dataclasses.replace(row, loss=2.3, examples=1000) if isinstance(row, AccuracyRow) else row for row in rows]
    high = LOSS if matrix[2][1] == 0.1 else 2.0
    return [*rows, CurveRow(1, 10, 1.0, 2.2, 2.2, 0.1), CurveRow(2, 10, 1.0, high, 2.2, 0.1)]


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("claimed"), CLAIMED, claimed)


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex"])
def test_claims_supported_by_networks_that_learnt_nothing_are_marked(
    form: str, claims: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["report", str(claims), "--format", form]) == 0
    mark = r"\textdagger{}" if form == "latex" else "†"
    shown = re.sub(r"[\s~]+", " ", capsys.readouterr().out)
    assert f"supported (2 of 2) {mark}" in shown
    assert (
        f"{mark} claim 1, small, adam lr=0.1: 8 of 8 trials: {GUESSED}; "
        "8 of 8 trials: training loss above 10 times its initial value (task 2). "
        "What was not learnt cannot be forgotten."
    ) in shown
    assert shown.count("claim 1, small, adam lr=0.001") == 0
    assert "claim 2, small" not in shown


def test_json_counts_what_was_not_learnt_next_to_the_verdict(claims: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(claims), "--format", "json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["claims"]
    assert [part["verdict"] for part in first["parts"]] == ["supported", "supported"]
    assert [part["not_learnt"] for part in first["parts"]] == [
        {"left": None, "right": None},
        {"left": {"guessed": 8, "exploded": 8}, "right": None},
    ]
    assert second["parts"][0]["not_learnt"] == {"left": None, "right": None}


def test_a_condition_of_a_claim_can_exclude_networks_that_have_not_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "where: {learning_accuracy: {above: 0.8}}"
    suite = CLAIMED.replace("expect: lower}\n  both", f"expect: lower, {where}}}\n  both")
    path = write_run(tmp_path, suite, claimed)
    assert main(["report", str(path), "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert "supported (1 left out)" in shown
    assert "† claim" not in shown


@given(st.integers(1, 4), st.data())
def test_the_note_of_a_trial_agrees_with_a_plain_loop_over_its_rows(tasks: int, data: st.DataObject) -> None:
    def drawn(values: Sequence[float | None], count: int) -> list[float | None]:
        return data.draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))

    accuracies = drawn([0.1, 0.2, 0.9, None], (tasks + 1) * tasks)
    losses = drawn([0.5, 2.3, 30.0, 4.5e30, None], tasks)
    rows: list[Row] = [trial_row()]
    cells = iter(accuracies)
    for after in range(tasks + 1):
        rows += [AccuracyRow(after, j + 1, next(cells), 2.3, 100, None, None, 0.15) for j in range(tasks)]
    rows += [CurveRow(j + 1, 1, 1.0, loss, None, None) for j, loss in enumerate(losses)]
    diagonal = [accuracies[(j + 1) * tasks + j] for j in range(tasks)]
    bound = 0.15 + 3 * math.sqrt(0.15 * 0.85 / 100)
    assert noted(rows) == NotLearnt(
        tuple(j + 1 for j, value in enumerate(diagonal) if value is not None and value <= bound),
        tuple(j + 1 for j, loss in enumerate(losses) if loss is not None and loss > 23),
    )
