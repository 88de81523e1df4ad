"""The catalog of metrics: complete, consistent metadata, and measuring a trial by metric name."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench.errors import UsageError
from optbench.metrics import (
    DEFAULT_METRICS,
    METRICS,
    Measurement,
    rank,
    select,
    similarity,
    sparsity,
    take,
)
from optbench.metrics.measuring import Accuracy, Features, Weights
from optbench.suite.fields import is_name

torch.set_num_threads(1)

ACCURACY = np.array([[0.1, 0.1, 0.1], [0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.5, 0.7, 0.9]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trial() -> tuple[Tensor, Tensor]:
    return torch.relu(normal(200, 6)), torch.arange(200) % 3


def measure_accuracy(names: Iterable[str] | None, accuracy: np.ndarray) -> list[Measurement]:
    return take(select(names), Accuracy(accuracy))


def measure_features(names: Iterable[str] | None, features: Tensor, labels: Tensor) -> list[Measurement]:
    logits, cues = (torch.eye(3)[labels], labels) if labels.ndim == 1 else (None, None)
    return take(select(names), Features(features, labels, logits, cues=cues))


def measure_weights(names: Iterable[str] | None, weights: Mapping[str, Tensor]) -> list[Measurement]:
    return take(select(names), Weights(weights))


def by_name(measurements: list[Measurement], layer: str | None = None) -> dict[str, Measurement]:
    chosen = [m for m in measurements if m.layer == layer]
    found = {m.metric: m for m in chosen}
    assert len(found) == len(chosen), "a metric was measured twice"
    return found


def test_importing_the_catalog_does_not_import_torch() -> None:
    program = "import sys, optbench.metrics; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", METRICS)
def test_every_entry_is_complete(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert is_name(name), "a suite must be able to name the metric"
    assert metric.formula
    assert metric.source
    assert len(metric.formula.splitlines()) == 1
    assert metric.margin >= 0
    assert metric.arrow == {"higher": "↑", "lower": "↓", "neutral": "·"}[metric.direction]
    assert metric.default == (name in DEFAULT_METRICS)
    assert hash(metric) == hash(METRICS[name])
    function = metric.function()
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    assert [p.name for p in required if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in metric.arguments] == {
        "continual": ["accuracy"],
        "online": ["accuracy", *(["fresh"] if name == "against_fresh" else [])],
        "features": ["features"],
        "similarity": ["features"],
        "weights": ["weights"],
        "landscape": (["weights", "start"] if "distance" in name else ["loss", "weights"])
        + (["generator"] if name.startswith("hessian") else []),
        "cost": ["cost"],
        "pruning": ["sparsity", "accuracy"],
        "pair": ["pair"],
        "overlap": list(metric.reads),
        "logits": list(metric.reads),
        "model": list(metric.reads),
        "updates": ["points"],
        "collapse": ["collapse"],
        "transfer": ["probe"],
        "curve": ["curve"],
    }[metric.kind]


def test_only_accuracies_and_costs_have_a_direction() -> None:
    assert {m.name: m.direction for m in METRICS.values() if m.direction != "neutral"} == {
        "average_accuracy": "higher",
        "forgetting": "lower",
        "backward_transfer": "higher",
        "forward_transfer": "higher",
        "learning_accuracy": "higher",
        "last_task_accuracy": "higher",
        "earlier_tasks_accuracy": "higher",
        **{name: "higher" for name, metric in METRICS.items() if metric.kind in ("online", "pruning")},
        "worst_class_accuracy": "higher",
        "balanced_accuracy": "higher",
        "calibration_error": "lower",
        "cue_following": "lower",
        "corruption_accuracy": "higher",
        "transfer_accuracy": "higher",
        "steps_to_accuracy": "lower",
        **{f"quantised_drop_{bits}": "lower" for bits in (8, 4, 3)},
        "train_seconds": "lower",
        "milliseconds_per_step": "lower",
        "state_bytes_per_parameter": "lower",
    }


def test_unknown_names_are_refused_with_the_nearest() -> None:
    features, labels = trial()
    message = "unknown metric 'effectve_rank'; did you mean 'effective_rank'?"
    for measure in (
        lambda names: select(names),
        lambda names: measure_accuracy(names, ACCURACY),
        lambda names: measure_features(names, features, labels),
        lambda names: measure_weights(names, {"w": normal(2, 2)}),
    ):
        with pytest.raises(UsageError) as error:
            measure(["hoyer", "effectve_rank"])
        assert str(error.value).startswith(message)


def test_selection_keeps_the_requested_order_without_duplicates() -> None:
    assert [m.name for m in select(["hoyer", "forgetting", "hoyer"])] == ["hoyer", "forgetting"]
    assert [m.name for m in select(["hoyer", "forgetting"], "continual")] == ["forgetting"]
    assert [m.name for m in select(None)] == list(DEFAULT_METRICS)
    assert select([]) == ()


def test_every_metric_is_measured_by_exactly_one_function() -> None:
    features, labels = normal(200, 6), torch.arange(200) % 3
    # Metrics of cost, online accuracy, pruning, landscape, networks, collapse, updates, transfer, learning, overlap
    # and pairs are measured elsewhere.
    elsewhere = ("online", "cost", "pruning", "landscape", "model", "collapse", "updates", "overlap", "pair")
    elsewhere = (*elsewhere, "transfer", "curve")
    everything = [metric.name for metric in METRICS.values() if metric.kind not in elsewhere]
    measured = [
        *measure_accuracy(everything, ACCURACY),
        *measure_features(everything, features, labels),
        *[m for m in measure_weights(everything, {"w": normal(5, 4)}) if m.layer is None],
    ]
    assert sorted(m.metric for m in measured) == sorted(everything)
    assert all(m.value is not None and math.isfinite(m.value) for m in measured)
    assert not [m for m in measured if m.note], "well-behaved input gives no notes"


def test_measures_of_accuracy_equal_their_functions() -> None:
    found = by_name(measure_accuracy(None, ACCURACY))
    assert found["forgetting"].value == pytest.approx(0.275)
    assert found["average_accuracy"].value == pytest.approx(0.7)
    assert found.keys() == {m.name for m in METRICS.values() if m.kind == "continual"}


def test_metrics_over_pairs_of_tasks_are_null_for_one_task() -> None:
    found = by_name(measure_accuracy(None, np.array([[0.1], [0.9]])))
    assert found["forgetting"] == Measurement("forgetting", None, None, "expected at least 2 tasks, got 1")
    assert found["average_accuracy"] == Measurement("average_accuracy", None, 0.9, None)


def test_measures_of_features_equal_their_functions() -> None:
    features, labels = trial()
    found = by_name(measure_features(list(METRICS), features, labels))
    for name in ("effective_rank", "effective_rank_sv", "stable_rank", "participation_ratio", "srank", "pca99"):
        assert found[name].value == float(getattr(rank, name)(features))
    assert found["effective_rank_ratio"].value == pytest.approx(float(rank.effective_rank(features)) / 6)
    assert found["class_cosine_mean"].value == float(similarity.class_cosine_mean(features, labels))
    assert found["pairwise_class_cosine"].value == float(similarity.pairwise_class_cosine(features, labels))
    assert found["dormant_0.025"].value == float(sparsity.dormant(features, 0.025))
    assert found["dormant_0.1"].value == float(sparsity.dormant(features, 0.1))
    assert found["dead_share"].value == float(sparsity.dead_share(features))
    assert (found["features_n"].value, found["features_d"].value) == (200, 6)


def test_all_measures_of_rank_share_one_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    spectrum = rank.spectrum
    monkeypatch.setattr(rank, "spectrum", lambda features: made.append(1) or spectrum(features))
    measure_features(list(METRICS), *trial())
    assert made == [1]


def test_the_size_of_features_is_added_to_any_measure_of_features() -> None:
    features, labels = trial()
    assert set(by_name(measure_features(["dead_share"], features, labels))) == {
        "dead_share",
        "features_n",
        "features_d",
    }
    assert measure_features(["hoyer", "forgetting"], features, labels) == []


@pytest.mark.parametrize(
    "features",
    [torch.zeros(20, 3), torch.full((20, 3), math.nan), torch.full((20, 3), 0.1), torch.zeros(1, 3), torch.zeros(0, 3)],
    ids=["zero", "nan", "constant", "one", "none"],
)
def test_degenerate_features_give_null_or_zero_with_a_note(features: Tensor) -> None:
    measured = measure_features(list(METRICS), features, torch.arange(len(features)) % 2)
    for m in measured:
        if METRICS[m.metric].subject == "rank" and m.value in (None, 0.0) and not m.metric.startswith("features_"):
            assert m.note
        if m.value is None:
            assert m.note
    found = by_name(measured)
    assert (found["features_n"].value, found["features_d"].value) == features.shape


def test_all_zero_features_are_rank_zero() -> None:
    found = by_name(measure_features(list(METRICS), torch.zeros(50, 3), torch.arange(50) % 2))
    assert found["effective_rank"] == Measurement("effective_rank", None, 0.0, "all features are zero")
    assert found["dead_share"] == Measurement("dead_share", None, 1.0, None)
    assert found["dormant_0.1"] == Measurement("dormant_0.1", None, None, "all features are zero")
    assert found["class_cosine_mean"].value is None


def test_few_examples_give_a_value_and_a_note() -> None:
    found = by_name(measure_features(["effective_rank", "stable_rank"], normal(10, 4), torch.arange(10) % 2))
    assert found["effective_rank"].value is not None
    assert found["effective_rank"].note == "N = 10 < 10 d = 40: the rank is at most 4"


@pytest.mark.parametrize(("features", "labels"), [((4,), (4,)), ((2, 4, 3), (4,)), ((4, 3), (5,)), ((4, 3), (2, 4))])
def test_wrong_shapes_are_refused(features: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected features \(N, d\) and targets \(N,\), got"):
        measure_features(None, torch.zeros(features), torch.zeros(labels, dtype=torch.int64))


def test_weights_are_measured_by_layer_and_overall() -> None:
    weights = {"first": normal(4, 5), "conv": normal(2, 3, 2, 2, seed=1) * 100, "bias": torch.zeros(4)}
    weights["first"][0] = 0
    measured = measure_weights(list(METRICS), weights)
    assert {m.layer for m in measured} == {"first", "conv", None}
    together = torch.cat([weights["first"].flatten(), weights["conv"].flatten()])
    for name in ("hoyer", "gini", "kurtosis", "zero_share"):
        function = getattr(sparsity, name)
        assert by_name(measured, "first")[name].value == float(function(weights["first"].flatten()))
        assert by_name(measured, "conv")[name].value == float(function(weights["conv"].flatten()))
        assert by_name(measured)[name].value == float(function(together))


def test_near_zero_weights_are_relative_to_the_rms_of_their_layer() -> None:
    small, large = torch.full((2, 10), 1e-3), torch.full((3, 10), 1e3)
    large[0] = 1.0
    measured = measure_weights(["near_zero_share"], {"small": small, "large": large})
    assert by_name(measured, "small")["near_zero_share"].value == 0
    assert by_name(measured, "large")["near_zero_share"].value == pytest.approx(1 / 3)
    assert by_name(measured)["near_zero_share"].value == pytest.approx(10 / 50)


def test_undefined_weights_are_null_with_a_note() -> None:
    measured = measure_weights(None, {"dead": torch.zeros(3, 4), "alive": normal(3, 4), "none": torch.zeros(0, 4)})
    assert by_name(measured, "dead")["hoyer"] == Measurement("hoyer", "dead", None, "all weights are zero")
    assert by_name(measured, "dead")["zero_share"] == Measurement("zero_share", "dead", 1.0, None)
    assert by_name(measured, "none")["gini"] == Measurement("gini", "none", None, "no weights")
    assert by_name(measured)["near_zero_share"] == Measurement("near_zero_share", None, None, "undefined in dead")
    assert by_name(measured)["zero_share"].value == 0.5
    broken = measure_weights(None, {"w": torch.full((2, 2), math.inf)})
    assert all(m.value is None and m.note for m in broken)


def test_biases_are_not_measured_as_weights() -> None:
    assert measure_weights(None, {"bias": torch.ones(4), "gain": torch.ones(2)}) == []
    assert measure_weights(["forgetting"], {"w": torch.ones(2, 2)}) == []
