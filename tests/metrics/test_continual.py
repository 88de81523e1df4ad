"""Continual metrics: a worked example, plain loops, and properties implied by their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optbench.metrics import continual

Matrix = NDArray[np.float64]
ALL = [
    continual.average_accuracy,
    continual.forgetting,
    continual.backward_transfer,
    continual.forward_transfer,
    continual.learning_accuracy,
]
OVER_PAIRS = [continual.forgetting, continual.backward_transfer, continual.forward_transfer]
EXAMPLE = np.array([[0.1, 0.1, 0.1], [0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.5, 0.7, 0.9]])


def by_loops(name: str, r: Matrix) -> float:
    """Compute the formulas literally, with tasks counted from 1."""
    tasks = r.shape[1]

    def at(row: int, task: int) -> float:
        return float(r[row, task - 1])

    match name:
        case "average_accuracy":
            terms = [at(tasks, j) for j in range(1, tasks + 1)]
        case "learning_accuracy":
            terms = [at(j, j) for j in range(1, tasks + 1)]
        case "forgetting":
            terms = [max(at(row, j) for row in range(j, tasks)) - at(tasks, j) for j in range(1, tasks)]
        case "backward_transfer":
            terms = [at(tasks, j) - at(j, j) for j in range(1, tasks)]
        case "forward_transfer":
            terms = [at(j - 1, j) - at(0, j) for j in range(2, tasks + 1)]
        case _:
            raise AssertionError(name)
    return sum(terms) / len(terms)


@st.composite
def matrices(draw: st.DrawFn, smallest: int = 2) -> Matrix:
    """Draw accuracies (seeds, T+1, T)."""
    tasks = draw(st.integers(smallest, 6))
    seeds = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, 101, (seeds, tasks + 1, tasks)) / 100


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (continual.average_accuracy, 0.7),
        (continual.forgetting, 0.275),
        (continual.backward_transfer, -0.25),
        (continual.forward_transfer, 0.1),
        (continual.learning_accuracy, 2.6 / 3),
    ],
)
def test_metrics_agree_with_a_worked_example(metric: Callable[[Matrix], Matrix], expected: float) -> None:
    assert float(metric(EXAMPLE)) == pytest.approx(expected, abs=1e-12)


def test_forgetting_ignores_the_final_row_and_rows_before_the_task() -> None:
    accuracy = np.array([[0.99, 0.0], [0.5, 0.0], [0.7, 0.9]])
    assert float(continual.forgetting(accuracy)) == pytest.approx(-0.2)


@settings(deadline=None, max_examples=60)
@given(matrices())
def test_metrics_agree_with_plain_loops(accuracy: Matrix) -> None:
    for metric in ALL:
        expected = [by_loops(metric.__name__, matrix) for matrix in accuracy]
        np.testing.assert_allclose(metric(accuracy), expected, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(matrices(), st.randoms(use_true_random=False))
def test_permuting_seeds_permutes_results(accuracy: Matrix, random: object) -> None:
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(accuracy))  # type: ignore[attr-defined]
    for metric in ALL:
        np.testing.assert_array_equal(metric(accuracy[order]), metric(accuracy)[order])


@settings(deadline=None, max_examples=40)
@given(matrices())
def test_without_changes_after_the_first_task_nothing_is_forgotten(accuracy: Matrix) -> None:
    frozen = np.concatenate([accuracy[:, :1], np.repeat(accuracy[:, 1:2], accuracy.shape[-1], axis=1)], axis=1)
    assert not continual.forgetting(frozen).any()
    assert not continual.backward_transfer(frozen).any()
    np.testing.assert_allclose(continual.learning_accuracy(frozen), continual.average_accuracy(frozen))


@settings(deadline=None, max_examples=40)
@given(matrices())
def test_forgetting_is_at_least_the_negative_of_backward_transfer(accuracy: Matrix) -> None:
    """The best accuracy since learning a task is at least the accuracy right after it."""
    assert (continual.forgetting(accuracy) + continual.backward_transfer(accuracy) >= -1e-12).all()


@settings(deadline=None, max_examples=40)
@given(matrices())
def test_scaling_accuracies_scales_every_metric(accuracy: Matrix) -> None:
    for metric in ALL:
        np.testing.assert_allclose(metric(accuracy * 100), metric(accuracy) * 100, atol=1e-9)


@pytest.mark.parametrize("metric", ALL)
def test_metrics_are_batched_over_leading_axes(metric: Callable[[Matrix], Matrix]) -> None:
    accuracy = np.random.default_rng(0).random((2, 3, 5, 4))
    together = metric(accuracy)
    assert together.shape == (2, 3)
    assert together.dtype == np.float64
    for index in np.ndindex(2, 3):
        assert together[index] == metric(accuracy[index])


def test_for_one_task_only_means_over_tasks_are_defined() -> None:
    accuracy = np.array([[0.1], [0.9]])
    assert float(continual.average_accuracy(accuracy)) == 0.9
    assert float(continual.learning_accuracy(accuracy)) == 0.9
    for metric in OVER_PAIRS:
        assert np.isnan(metric(accuracy))
    assert continual.note(accuracy, over_pairs=False) is None
    assert continual.note(accuracy, over_pairs=True) == "expected at least 2 tasks, got 1"


NEEDS: dict[str, continual.Needs] = {
    "average_accuracy": "last row",
    "forgetting": "since learnt",
    "backward_transfer": "last row",
    "forward_transfer": "before",
    "learning_accuracy": "learnt",
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", ALL)
def test_a_non_finite_entry_makes_only_its_seed_nan(metric: Callable[[Matrix], Matrix], bad: float) -> None:
    """NaN off the diagonal is an unscored accuracy, which matters only to metrics that need it."""
    for row, column in np.ndindex(4, 3):
        accuracy = np.stack([EXAMPLE, EXAMPLE])
        accuracy[0, row, column] = bad
        values = metric(accuracy)
        # The metric needs the entry if changing it changes the value.
        other = EXAMPLE.copy()
        other[row, column] = 9.0
        lower = EXAMPLE.copy()
        lower[row, column] = -9.0
        read = metric(other) != metric(EXAMPLE) or metric(lower) != metric(EXAMPLE)
        cut_short = bool(np.isinf(bad)) or row == column + 1
        assert np.isnan(values[0]) == (read or cut_short)
        assert values[1] == metric(EXAMPLE)
        note = continual.note(accuracy[0], over_pairs=False, needs=NEEDS[metric.__name__])
        reason = continual.NOT_SCORED if read else None
        assert note == ("the accuracy matrix has non-finite entries" if cut_short else reason)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 4), (1, 0), (2, 5, 3)])
@pytest.mark.parametrize("metric", ALL)
def test_a_wrong_shape_is_refused(metric: Callable[[Matrix], Matrix], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected accuracy of shape \(\.\.\., T\+1, T\)"):
        metric(np.zeros(shape))
