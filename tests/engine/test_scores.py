"""Scores of text in bits per byte: exact in known cases, independent of tokenisation, stored next to accuracy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optbench import Dataset, Split
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.evaluate import Evaluator
from optbench.engine.positions import MOST, sampled
from optbench.metrics import METRICS
from optbench.models import initialise
from optbench.store.tables import (
    AccuracyRow,
    CurveRow,
    EarlierRow,
    MetricRow,
    OnlineRow,
    SimilarityRow,
    TrialRow,
    arrow_table,
)
from optbench.store.values import in_bits, score_matrices, summary_table
from optbench.suite.protocol import Protocol
from optbench.tasks import Examples
from tests.conftest import same_bits, small_suite, train_suite
from tests.texts import GPT, TASKS, VOCABULARY, small_text, text_suite

CPU = torch.device("cpu")


def evaluator_of(
    dataset: Dataset, change: Callable[[dict[str, Tensor]], object] = lambda weights: None
) -> tuple[Evaluator, Tensor]:
    """Return an evaluator of a small transformer and its initial weights after `change`."""
    experiment = small_suite({"opt": {"target": "sgd"}}, model=GPT, tasks=TASKS).experiments["small"]
    blueprint = Blueprint.of(experiment, "net", dataset)
    weights = initialise(blueprint.network, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    change(weights)
    evaluator = Evaluator(blueprint, Normaliser.of(dataset, Protocol(), CPU), token_bytes=dataset.token_bytes)
    return evaluator, blueprint.layout.pack(weights)


def bytes_dataset(size: int = 3, length: int = 50) -> Dataset:
    draws = torch.Generator().manual_seed(1)
    halves = []
    for _ in range(2):
        tokens = torch.randint(0, 128, (size, length + 1), generator=draws)
        halves.append(Split(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
    return Dataset("bytes", halves[0], halves[1], 128, token_bytes=torch.ones(128, dtype=torch.int64))


@pytest.mark.parametrize("together", [False, True])
def test_a_uniform_model_has_exactly_seven_bits_per_byte_of_ascii(together: bool) -> None:
    dataset = bytes_dataset()
    evaluator, row = evaluator_of(dataset, lambda weights: weights["head.weight"].zero_())
    evaluator._batched = together
    examples = Examples(dataset.test.inputs, dataset.test.targets)
    for score in (evaluator.read(row, examples), *evaluator.score([row, row], [examples, examples])):
        assert score.bits_per_byte == math.log2(128) == 7
        assert score.bytes == 150
        assert score.loss == pytest.approx(math.log(128), abs=1e-12)


def test_bits_per_byte_do_not_depend_on_the_tokenisation() -> None:
    """Score `abab...` with a model of bytes with probability 1/2 for a and b, and with a model with a token `ab`."""
    length = 12
    of_bytes = torch.arange(2 * length + 1)[None] % 2  # a b a b ...; 0 is a
    of_pairs = torch.tensor([[2] * (length + 1)])  # ab ab ...; the vocabulary is a, b, ab
    found = {}
    for name, tokens, sizes, chances in (
        ("bytes", of_bytes, [1, 1], [0.5, 0.5]),
        # An equivalent model: the pair has the product of the probabilities of its bytes, 1/4.
        ("pairs", of_pairs, [1, 1, 2], [0.375, 0.375, 0.25]),
    ):
        half = Split(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        dataset = Dataset(name, half, half, len(sizes), token_bytes=torch.tensor(sizes))

        def put(weights: dict[str, Tensor], chances: list[float] = chances) -> None:
            weights["norm.weight"].zero_()
            weights["norm.bias"].copy_(torch.eye(16)[0])
            weights["head.weight"].zero_()[:, 0] = torch.tensor(chances).log()

        evaluator, row = evaluator_of(dataset, put)
        found[name] = evaluator.read(row, Examples(half.inputs, half.targets))
    assert found["bytes"].bytes == found["pairs"].bytes == 2 * length
    assert found["bytes"].examples == 2 * found["pairs"].examples, "pairs give half as many tokens"
    assert found["bytes"].bits_per_byte == pytest.approx(1, abs=1e-7)
    assert found["pairs"].bits_per_byte == pytest.approx(1, abs=1e-7)
    assert found["pairs"].loss == pytest.approx(2 * math.log(2), abs=1e-6), "the loss per token is twice as large"


def test_bits_are_divided_by_the_bytes_of_the_tokens() -> None:
    dataset = small_text()
    evaluator, row = evaluator_of(dataset)
    examples = Examples(dataset.test.inputs, dataset.test.targets)
    score = evaluator.read(row, examples, with_logits=True)
    assert score.logits is not None
    chances = score.logits.double().softmax(1)[torch.arange(len(score.targets)), score.targets]
    assert dataset.token_bytes is not None
    expected = -chances.log2().sum() / dataset.token_bytes[score.targets].sum()
    assert score.bits_per_byte == pytest.approx(expected.item(), abs=1e-12)
    assert score.accuracy == (score.logits.argmax(1) == score.targets).double().mean()


@pytest.mark.usefixtures("one_thread")
def test_a_trial_on_text_stores_bits_per_byte_and_accuracy() -> None:
    text = small_text()
    chosen = text_suite({"target": "adamw", "lr": 1e-2})
    result = train_suite(chosen, text)[0]
    rows = [row for row in result.rows if isinstance(row, AccuracyRow)]
    assert len(rows) == 3 * 2
    for row in rows:
        assert row.bits_per_byte is not None
        assert row.validation_bits_per_byte is not None
        assert row.accuracy is not None
        assert row.loss is not None
        assert row.bits_per_byte == pytest.approx(row.loss / math.log(2) / mean_bytes(text), rel=0.05)
    start, learnt = (next(r for r in rows if (r.after_task, r.task) == place) for place in ((0, 1), (1, 1)))
    assert start.bits_per_byte == pytest.approx(math.log2(VOCABULARY) / mean_bytes(text), rel=0.05)
    assert learnt.bits_per_byte < start.bits_per_byte - 0.3
    curve = [row for row in result.rows if isinstance(row, CurveRow)]
    assert all(row.eval_bits_per_byte is not None for row in curve)
    assert curve[-1].eval_bits_per_byte < curve[0].eval_bits_per_byte
    # Only metrics that need classes are undefined, with a note.
    measured = [row for row in result.rows if isinstance(row, MetricRow) and row.after_task == 2]
    undefined = {row.metric: row.note for row in measured if row.value is None}
    assert undefined == dict.fromkeys(
        ("class_cosine_mean", "pairwise_class_cosine"), "expected classes, got the tokens of a text"
    )
    assert not [row for row in result.rows if isinstance(row, SimilarityRow)]
    ranks = [row.value for row in measured if row.metric == "effective_rank"]
    assert all(value is not None and 1 < value <= 16 for value in ranks)


@pytest.mark.usefixtures("one_thread")
def test_earlier_tasks_are_scored_during_training_on_request() -> None:
    text, adamw = small_text(), {"target": "adamw", "lr": 1e-2}
    asked = train_suite(text_suite(adamw, follow_earlier=True, early_stopping=False), text)
    rows = [row for row in asked[0].rows if isinstance(row, EarlierRow)]
    curve = [row for row in asked[0].rows if isinstance(row, CurveRow) and row.task == 2]
    assert [(row.task, row.step, row.earlier_task) for row in rows] == [(2, row.step, 1) for row in curve]
    assert len(rows) == 4
    end = next(r for r in asked[0].rows if isinstance(r, AccuracyRow) and (r.after_task, r.task) == (2, 1))
    assert rows[-1].bits_per_byte == end.validation_bits_per_byte, "the last evaluation is of the final weights"
    assert rows[-1].accuracy == end.validation_accuracy
    assert len({row.bits_per_byte for row in rows}) == 4, "the score changes at every evaluation"
    for alone, member in zip(train_suite(text_suite(adamw, early_stopping=False), text), asked, strict=True):
        others = tuple(row for row in member.rows if not isinstance(row, EarlierRow))
        assert same_bits(dataclasses.replace(member, rows=others), alone), "measuring leaves the results unchanged"


def mean_bytes(text: Dataset) -> float:
    assert text.token_bytes is not None
    return text.token_bytes[text.test.targets].double().mean().item()


@pytest.mark.usefixtures("one_thread")
def test_continual_metrics_of_text_use_bits_per_byte() -> None:
    chosen = text_suite({"target": "adamw", "lr": 1e-2})
    results = train_suite(chosen, small_text())
    pairs = [(result.trial, row) for result in results for row in result.rows]
    tables = {
        row_type.table: arrow_table(row_type, [(trial, row) for trial, row in pairs if isinstance(row, row_type)])
        for row_type in (TrialRow, AccuracyRow, MetricRow, OnlineRow)
    }
    accuracy = tables["accuracy"]
    assert in_bits(accuracy) == {result.trial.id for result in results}
    for split in ("", "validation_"):
        matrices = score_matrices(accuracy, f"{split}accuracy")
        for result in results:
            for row in result.rows:
                if isinstance(row, AccuracyRow):
                    expected = getattr(row, f"{split}bits_per_byte")
                    assert matrices[result.trial.id][row.after_task, row.task - 1] == -expected
    summary = summary_table(tables, METRICS, [result.trial for result in results]).to_pylist()
    found = {row["metric"]: row["value"] for row in summary if row["trial"] == results[0].trial.id}
    matrix = score_matrices(accuracy)[results[0].trial.id]
    assert found["average_accuracy"] == pytest.approx(matrix[-1].mean())
    assert found["forgetting"] == pytest.approx(matrix[1, 0] - matrix[2, 0])
    assert found["learning_accuracy"] == pytest.approx((matrix[1, 0] + matrix[2, 1]) / 2)
    assert found["forward_transfer"] == pytest.approx(matrix[1, 1] - matrix[0, 1])


def test_features_of_long_texts_are_taken_at_random_positions() -> None:
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 5, (100, 101), generator=draws)
    half = Split(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    dataset = Dataset("long", half, half, 5, token_bytes=torch.ones(5, dtype=torch.int64))
    evaluator, row = evaluator_of(dataset)
    examples = Examples(half.inputs, half.targets)
    at = sampled(examples, suite_seed=3)
    assert at is not None
    assert torch.equal(at, sampled(Examples(half.targets, half.inputs), 3))  # type: ignore[arg-type]
    assert not torch.equal(at, sampled(examples, 4))  # type: ignore[arg-type]
    assert at.unique(sorted=True).equal(at)
    assert len(at) == MOST < examples.targets.numel()
    assert at.double().mean().item() == pytest.approx(5000, rel=0.02), "positions come from the whole text"
    some, every = (evaluator.read(row, examples, with_logits=True, at=where) for where in (at, None))
    assert torch.equal(some.features, every.features[at])
    assert torch.equal(some.targets, every.targets[at])
    assert some.logits is not None
    assert every.logits is not None
    assert torch.equal(some.logits, every.logits[at])
    assert (some.loss, some.correct, some.examples, some.bits) == (every.loss, every.correct, 10_000, every.bits)
    few = Examples(half.inputs[:81], half.targets[:81])
    assert sampled(few, 3) is None
    assert sampled(Examples(torch.zeros(9000, 2), torch.zeros(9000, dtype=torch.int64)), 3) is None
