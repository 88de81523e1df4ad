"""Training resumed at the end of a task, as if in another process, equals uninterrupted training exactly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from optbench.data import Dataset
from optbench.engine import TrialResult, Workspace, train
from optbench.engine.interim import Interim, loaded, saved
from optbench.optimizers.registry import OPTIMIZERS
from optbench.plan import Cohort, cohorts, trials
from optbench.suite import Suite
from tests.conftest import same_bits, small_suite, trial_row


def stored(interim: Interim) -> Interim:
    """Return an interim state after a round trip through JSON and bytes; rows are passed through."""
    return Interim.from_record(json.loads(json.dumps(interim.record())), interim.state, interim.rows)


def changed(interim: Interim, **state: Any) -> Interim:
    return dataclasses.replace(interim, state=saved({**loaded(interim.state, torch.device("cpu")), **state}))


def cut_and_whole(
    suite: Suite, mnist: Dataset, cut_after: int = 1
) -> list[tuple[Cohort, list[TrialResult], list[TrialResult]]]:
    """For every cohort, return its results, and its results when interrupted after a task and resumed."""
    found = []
    for cohort in cohorts(trials(suite)):
        kept: list[Interim] = []

        def write(interims: Sequence[Interim], kept: list[Interim] = kept) -> None:
            if interims[0].task == cut_after:
                kept += [stored(interim) for interim in interims]

        whole = train(cohort, setting_of(suite, mnist), lambda progress: None, lambda take, write=write: write(take()))
        assert kept, "no interim state was saved"
        begun = {trial: interim for interim in kept for trial in interim.trials}
        again = train(cohort, setting_of(suite, mnist), lambda progress: None, begun=begun)
        found.append((cohort, whole, again))
    return found


def setting_of(suite: Suite, mnist: Dataset) -> Workspace:
    return Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))


BASES: dict[str, dict[str, Any]] = {
    "l1": {"base": {"target": "adam"}},
    "powerpropagation": {"base": {"target": "sgd", "lr": 0.05, "momentum": 0.9}},
    "gradient-noise": {"base": {"target": "sgd", "lr": 0.05}},
    "switch": {"first": {"target": "sgd", "lr": 0.05}, "then": {"target": "adam"}, "at": 5},
}


STARTED_OVER = {"scalable-shampoo"}
"""Optimizers whose state contains objects from their package, which are not saved, so that their trials restart."""


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - STARTED_OVER))
def test_every_registered_optimizer_resumes_as_if_uninterrupted(name: str, mnist: Dataset) -> None:
    if OPTIMIZERS[name].source == "pytorch-optimizer":
        pytest.importorskip("pytorch_optimizer")
    suite = small_suite(
        {"it": {"target": name, **BASES.get(name, {})}},
        seeds=1 if OPTIMIZERS[name].lane == "per-member" else 2,
        train_examples=200,
        test_examples=100,
        validation_examples=50,
        max_epochs=1,
    )
    for _, whole, again in cut_and_whole(suite, mnist):
        assert all(map(same_bits, whole, again))


def test_resuming_from_a_wrong_state_changes_the_results(mnist: Dataset) -> None:
    """The comparison above can fail: without the momentum, or with the weights of another seed, results differ."""
    suite = small_suite({"it": {"target": "sgd", "lr": 0.05, "momentum": 0.9}}, seeds=2, train_examples=200)
    (cohort,) = cohorts(trials(suite))
    kept: list[Interim] = []
    whole = train(cohort, setting_of(suite, mnist), lambda progress: None, lambda take: kept.extend(take()))
    fresh = [changed(one, optimizer=None) for one in kept]
    weights = [loaded(one.state, torch.device("cpu"))["weights"] for one in kept]
    swapped = [changed(one, weights=other) for one, other in zip(kept, reversed(weights), strict=True)]
    for wrong in (fresh, swapped):
        begun = {trial: one for one in wrong for trial in one.trials}
        again = train(cohort, setting_of(suite, mnist), lambda progress: None, begun=begun)
        assert not any(map(same_bits, whole, again))


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_training_with_early_stopping_and_divergence_can_be_resumed(state: str, mnist: Dataset) -> None:
    rates = {"sgd": {"target": "sgd", "lr": [0.1, 1e30], "momentum": 0.9}, "free": {"target": "schedule-free"}}
    pytest.importorskip("pytorch_optimizer")
    suite = small_suite(
        rates, tasks={"kind": "permuted", "count": 4}, seeds=2, train_examples=400, optimizer_state=state
    )
    for cut_after in (1, 3):
        for cohort, whole, again in cut_and_whole(suite, mnist, cut_after):
            assert all(map(same_bits, whole, again))
            if cohort.optimizer == "sgd":
                assert sorted({trial_row(result).status for result in again}) == ["diverged", "ok"]


def test_members_saved_in_different_cohorts_resume_together(mnist: Dataset) -> None:
    """Interim states saved by two processes for the halves of a cohort are resumed in one cohort."""
    suite = small_suite({"it": {"target": "power-sgd", "lr": [0.01, 0.02]}}, seeds=2, train_examples=200)
    (cohort,) = cohorts(trials(suite))
    kept: list[Interim] = []
    for piece in cohort.split(2):
        train(
            piece,
            setting_of(suite, mnist),
            lambda progress: None,
            lambda take: kept.extend(map(stored, take())),
        )
    begun = {trial: one for one in kept for trial in one.trials}
    again = train(cohort, setting_of(suite, mnist), lambda progress: None, begun=begun)
    assert all(map(same_bits, train(cohort, setting_of(suite, mnist), lambda progress: None), again))
