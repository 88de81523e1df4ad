"""Overlap of tasks: known cases, the nulls, and agreement with a complete training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from optbench.engine import Workspace
from optbench.engine.interim import Interim
from optbench.engine.train import CohortTraining, train
from optbench.metrics import METRICS
from optbench.metrics.overlap import (
    DIRECTIONS,
    Change,
    TaskFeatures,
    kept_cka,
    kept_cka_means,
    kept_overlap,
    overlap_chance,
    tasks_cka,
    tasks_overlap,
)
from optbench.metrics.similarity import linear_cka
from optbench.plan import cohorts, trials
from optbench.store.tables import MetricRow
from tests.conftest import same_bits, train_suite
from tests.texts import small_text, text_suite

WIDTH = 40


def normal(seed: int, rows: int = 2000, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def varying(axes: slice, seed: int = 0) -> Tensor:
    """Return features that vary only along some axes and lie far from the origin."""
    found = torch.full((2000, WIDTH), 5.0, dtype=torch.float64)
    found[:, axes] += normal(seed)[:, axes] * torch.linspace(1, 2, WIDTH)[axes]
    return found


def of(x: Tensor) -> TaskFeatures:
    return TaskFeatures(x, x)


def test_rotated_features_are_kept_for_cka_but_not_for_subspaces() -> None:
    before = varying(slice(0, 16))
    turned = torch.roll(before, 8, 1)  # along eight of the same axes and eight others
    same, moved = Change(of(before), of(before)), Change(of(before), of(turned))
    assert kept_cka([same]).value == pytest.approx(1)
    assert kept_overlap([same]).value == pytest.approx(1)
    assert kept_cka([moved]).value == pytest.approx(1), "CKA is invariant to rotations"
    assert kept_overlap([moved]).value == pytest.approx(0.5)
    assert kept_overlap([same, moved]).value == pytest.approx(0.75), "values are averaged over tasks"
    assert kept_cka_means([moved]).value == pytest.approx(1)


def test_the_null_of_kept_features_mismatches_examples() -> None:
    x = normal(0)
    change = Change(of(x), of(x @ normal(1, WIDTH)))
    found = kept_cka([change], broken=True).value
    assert found == pytest.approx(linear_cka(x, (x @ normal(1, WIDTH)).roll(1000, 0)).item())
    assert found < 0.1 < kept_cka([change]).value


def test_overlap_of_tasks_agrees_with_that_of_their_covariances() -> None:
    one, half, none = of(varying(slice(0, 16))), of(varying(slice(8, 24), 1)), of(varying(slice(20, 36), 2))
    assert tasks_overlap([one, none]).value == pytest.approx(0, abs=1e-12)
    assert tasks_cka([one, none]).value == pytest.approx(0, abs=1e-12)
    assert tasks_overlap([one, half]).value == pytest.approx(0.5)
    assert tasks_overlap([one, half, none]).value == pytest.approx((0.5 + 0 + 0.25) / 3)
    scaled = of(3 * one.places + 1)
    assert tasks_cka([one, scaled]).value == pytest.approx(1)
    for within in (tasks_overlap([one, none], within=True), tasks_cka([one, none], within=True)):
        assert within.value > 0.95, "two halves of one task"
    assert overlap_chance([one]).value == DIRECTIONS / WIDTH


def test_random_directions_overlap_by_chance() -> None:
    frames = [torch.linalg.qr(normal(100 + i, WIDTH)).Q[:, :16] for i in range(12)]
    draws = [TaskFeatures(normal(i, 500, 16) @ frame.mT) for i, frame in enumerate(frames)]
    assert tasks_overlap(draws).value == pytest.approx(overlap_chance(draws).value, abs=0.03)


def test_undefined_values_have_a_note() -> None:
    x, flat = normal(0), torch.ones(50, WIDTH, dtype=torch.float64)
    found = {
        kept_cka([]): "expected at least 2 tasks, got 1",
        tasks_overlap([of(x)]): "expected at least 2 tasks, got 1",
        kept_cka([Change(of(x[:50]), of(flat))]): "the features of a task do not vary",
        tasks_cka([of(x), of(flat)]): "the features of a task do not vary",
        kept_overlap([Change(of(x[:50]), of(flat))]): "the 16 leading directions of a task are not determined",
        tasks_overlap([of(x[:, :9])] * 2): "expected at least 16 features, got 9",
        overlap_chance([of(x[:, :9])]): "expected at least 16 features, got 9",
        kept_cka_means(
            [Change(TaskFeatures(x), TaskFeatures(x))]
        ): "expected sequences, got examples without positions",
    }
    for reading, note in found.items():
        assert math.isnan(reading.value)
        assert reading.note == note


OVERLAPS = [name for name, metric in METRICS.items() if metric.kind == "overlap"]


@pytest.mark.usefixtures("one_thread")
def test_a_training_measures_overlaps_of_networks_at_the_ends_of_tasks() -> None:
    text = small_text()
    metrics = ["kept_cka", "kept_cka_means", "kept_overlap", "tasks_cka", "tasks_overlap"]
    wanted = text_suite({"target": "adamw", "lr": 1e-2}, metrics=metrics)
    results = train_suite(wanted, text)
    rows = {(row.metric, row.task): row for row in results[0].rows if isinstance(row, MetricRow)}
    assert {name for name, _ in rows} >= set(OVERLAPS)
    assert rows["kept_cka", 1].value == rows["kept_cka", None].value, "of two tasks only the first can be kept"
    assert ("tasks_cka", 1) not in rows
    value = {name: rows[name, None].value for name in OVERLAPS}
    assert value["overlap_chance"] == 1
    assert 0 < value["kept_cka_null"] < value["kept_cka"] < 1
    workspace = Workspace.of(wanted.experiments["small"], text, wanted.seed, torch.device("cpu"))
    (cohort,) = cohorts(trials(wanted))
    training = CohortTraining(cohort, workspace, lambda progress: None, {})
    training.run(None)
    member = training.members[0]
    sequence = workspace.family.sequence(member.trial.seed)
    before, after = (training.evaluator.read(row, sequence.test(0)).features for row in member.ended)
    assert value["kept_cka"] == pytest.approx(linear_cka(before, after).item())
    means = (features.double().view(24, 12, -1).mean(1) for features in (before, after))
    assert value["kept_cka_means"] == pytest.approx(linear_cka(*means, debiased=True).item())
    other = training.evaluator.read(member.row, sequence.test(1)).features
    expected = tasks_cka([TaskFeatures(after), TaskFeatures(other)]).value
    assert value["tasks_cka"] == pytest.approx(expected)
    assert same_bits(train_suite(wanted, text, only=1)[0], results[1])


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_training_still_has_the_networks_of_earlier_tasks() -> None:
    text = small_text()
    suite = text_suite({"target": "adamw", "lr": 1e-2}, metrics=["kept_cka", "kept_overlap"])
    workspace = Workspace.of(suite.experiments["small"], text, suite.seed, torch.device("cpu"))
    (cohort,) = cohorts(trials(suite))
    kept: list[Interim] = []
    whole = train(cohort, workspace, lambda progress: None, lambda take: kept.extend(take()))
    begun = {trial: interim for interim in kept for trial in interim.trials}
    assert len(begun) == 2
    for one, other in zip(whole, train(cohort, workspace, lambda progress: None, begun=begun), strict=True):
        assert same_bits(one, other)
