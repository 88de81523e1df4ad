"""Switching between optimizers: the ends equal the pure optimizers, and switching to itself changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.optimizers.make import maker
from optbench.optimizers.registry import complete, find
from tests.conftest import PAIRS, PERMUTED, same_bits, small_suite, train_suite, trial_row

PURE: dict[str, dict[str, Any]] = {
    "sgd": {"target": "sgd", "lr": 0.1, "momentum": 0.9},
    "adam": {"target": "adam", "lr": 2e-3},
    "adamw": {"target": "adamw", "lr": 2e-3, "weight_decay": 0.1},
    "rmsprop": {"target": "rmsprop", "lr": 1e-3},
    "shampoo": {"target": "shampoo", "lr": 0.1, "precondition_frequency": 10, "max_side": 128},
    "muon": {"target": "muon", "lr": 0.01},
    "lion": {"target": "lion", "lr": 5e-4},
    "soap": {"target": "soap", "lr": 3e-3, "max_precondition_dim": 128},
}
STEPS: dict[str, Any] = {"max_epochs": 1, "evaluate_every": 0.25, "early_stopping": None}
"""A protocol of 25 steps on each of two tasks."""


def solutions(optimizers: dict[str, dict[str, Any]], mnist: Dataset) -> dict[str, TrialResult]:
    found: dict[str, TrialResult] = {}
    for result in train_suite(small_suite(optimizers, seeds=1, **STEPS), mnist):
        assert trial_row(result).status == "ok", trial_row(result).error_message
        found[result.trial.optimizer] = result
    return found


def equal(a: TrialResult, b: TrialResult) -> bool:
    assert a.weights is not None
    assert b.weights is not None
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


@pytest.mark.parametrize("name", PURE)
def test_a_switch_to_itself_with_the_state_kept_does_not_change_a_bit(name: str, mnist: Dataset) -> None:
    # The pure optimizer trains in its elementwise or batched lane; the switch is within the first task or at its end.
    pure = PURE[name]
    switched = {"target": "switch", "first": pure, "then": pure, "state": "keep"}
    found = solutions({"pure": pure, "within": {**switched, "at": 13}, "edge": {**switched, "at": 25}}, mnist)
    assert equal(found["pure"], found["within"])
    assert equal(found["pure"], found["edge"])


@pytest.mark.parametrize("name", ["sgd", "adam", "shampoo", "muon"])
def test_the_ends_equal_the_pure_optimizers(name: str, mnist: Dataset) -> None:
    other = {"target": "adagrad", "lr": 0.02}
    both = {"target": "switch", "first": PURE[name], "then": other}
    found = solutions(
        {"pure": PURE[name], "other": other, "never": {**both, "at": 50}, "at-once": {**both, "at": 0}}
        | {"half": {**both, "at": 25}},
        mnist,
    )
    assert equal(found["pure"], found["never"])
    assert equal(found["other"], found["at-once"])
    assert not equal(found["half"], found["pure"])
    assert not equal(found["half"], found["other"])


def test_a_reset_drops_the_state(mnist: Dataset) -> None:
    pure = PURE["adam"]
    switched = {"target": "switch", "first": pure, "then": pure, "at": 13}
    plain = {"target": "sgd", "lr": 0.1}
    stateless = {"target": "switch", "first": plain, "then": plain, "at": 13}
    found = solutions({"pure": pure, "reset": switched, "plain": plain, "nothing": stateless}, mnist)
    assert not equal(found["pure"], found["reset"])
    assert equal(found["plain"], found["nothing"]), "plain SGD has no state to drop"


def test_a_kept_state_continues_under_the_settings_of_the_second() -> None:
    p, twin = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    first, then = {"target": "adam", "lr": 0.1}, {"target": "adam", "lr": 0.01, "betas": [0.5, 0.9]}
    settings = complete("switch", {"first": first, "then": then, "at": 3, "state": "keep"})
    switched = maker(find("switch"), settings)([p])
    plain = maker(find("adam"), complete("adam", {"lr": 0.1}))([twin])
    for step in range(8):
        if step == 3:
            plain.param_groups[0].update(lr=0.01, betas=[0.5, 0.9])
        for q in (p, twin):
            q.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) * (step + 1)
        switched.step()
        plain.step()
        assert torch.equal(p, twin), step


def test_a_switch_alone_equals_the_switch_in_a_cohort(mnist: Dataset) -> None:
    swept = {"target": "switch", "first": PURE["sgd"], "then": PURE["shampoo"], "at": [0, 7, 30, 100]}
    for tasks in (PERMUTED, PAIRS):
        suite = small_suite({"opt": swept}, tasks=tasks, seeds=2, max_epochs=1)
        together = train_suite(suite, mnist)
        for i in (1, 4):
            assert same_bits(train_suite(suite, mnist, only=i)[0], together[i])


def test_the_base_is_notified_of_tasks(mnist: Dataset) -> None:
    # Shampoo refreshes its roots at the start of a task, in its lane and inside a wrapper.
    pure = {**PURE["shampoo"], "precondition_frequency": 1000}
    never = {"target": "switch", "first": pure, "then": PURE["sgd"], "at": 50}
    found = solutions({"pure": pure, "never": never}, mnist)
    assert equal(found["pure"], found["never"])
