"""The number of trainings in a piece: enough for a minute of work, fewer at the end, each handed out exactly once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.execution.messages import Divide, Finished, Train, Unit, halved
from optbench.execution.schedule import MOST_ON_CPU, Plan, make_plan, spread
from optbench.execution.sizes import MINUTE, MOST_SHORT, Pace, Sizes
from optbench.plan import Cohort, Trial
from optbench.store.tables import TrialRow
from tests.conftest import small_suite

ALONE = 0.2
"""Relative extra time of a training alone, compared with its share of a large cohort."""


def planned(seeds: int, **optimizers: dict[str, Any]) -> Plan:
    return make_plan(small_suite(optimizers or {"sgd": {"target": "sgd", "lr": [0.1, 0.2]}}, seeds=seeds))


def answer(cohort: Cohort, seconds: float, parameters: int = 100, status: str = "ok") -> Finished:
    """Return the message of a worker that has trained a cohort in this many seconds."""
    share = seconds / len(cohort.trainings)
    row = TrialRow(status, None, None, 1, 1, parameters, "cpu", "{}", "0", share / 2, 0, 0, None, 0, None, None, None)
    row.__dict__["evaluation_seconds"] = share / 2
    return Finished(cohort, tuple((trial, row) for trial in cohort.trials), ())


def begun(plan: Plan, jobs: int) -> tuple[Sizes, list[Unit]]:
    """Return the sizes for a plan, and the stack of waiting pieces, of which the last is next."""
    units = [Train(piece, {}) for piece in spread(plan, jobs, MOST_ON_CPU)]
    return Sizes(plan, units, jobs, Pace()), [*reversed(units)]


def simulated(
    plan: Plan, jobs: int, each: Callable[[Trial], float], *, overhead: float = 0.0, fixed: bool = False
) -> tuple[list[tuple[float, Cohort]], float]:
    """Return the cohorts with their start times, and the time at which all workers are free, in seconds.

    each: returns the seconds that a training takes. overhead: extra seconds for each cohort.
    fixed: whether to hand out the pieces as first cut.
    """
    sizes, waiting = begun(plan, jobs)
    free = [(0.0, worker) for worker in range(jobs)]
    ends: list[tuple[float, int, Finished]] = []
    given: list[tuple[float, Cohort]] = []
    while waiting or ends:
        # A cohort that ends first is processed before another piece is handed out.
        if ends and (not waiting or not free or ends[0][0] <= free[0][0]):
            at, worker, event = heapq.heappop(ends)
            sizes.finished(event)
            heapq.heappush(free, (at, worker))
            continue
        at, worker = heapq.heappop(free)
        unit = waiting.pop() if fixed else sizes.take(waiting, len(waiting) - 1)
        assert isinstance(unit, Train)
        count = len(unit.cohort.trainings)
        seconds = sum(each(equal[0]) for equal in unit.cohort.trainings) * (1 + ALONE / count)
        given.append((at, unit.cohort))
        heapq.heappush(ends, (at + seconds + overhead, worker, answer(unit.cohort, seconds)))
    return given, max(at for at, _ in free)


def counts(given: Sequence[tuple[float, Cohort]]) -> list[int]:
    return [len(cohort.trainings) for _, cohort in given]


def test_short_trainings_are_combined_into_a_minute_of_work() -> None:
    given, _ = simulated(planned(400), 2, lambda trial: 2.0)
    later = [count for at, count in zip([at for at, _ in given], counts(given), strict=True) if at]
    assert len(later) > 10
    assert sum(24 <= count <= 30 for count in later) >= len(later) - 4, "about 28, except for the last ones"
    assert max(counts(given)) * 2.0 <= MINUTE


def test_the_shortest_trainings_are_combined_up_to_a_number_that_fits_in_memory() -> None:
    given, _ = simulated(planned(400), 2, lambda trial: 0.01)
    assert MOST_SHORT - 8 < max(counts(given)) <= MOST_SHORT


@pytest.mark.parametrize(("parameters", "most"), [(1_000_000, 16), (4_000_000, MOST_ON_CPU)])
def test_trainings_of_large_models_are_combined_up_to_a_number_that_fits_in_memory(parameters: int, most: int) -> None:
    sizes, waiting = begun(planned(200), 2)
    first = sizes.take(waiting, len(waiting) - 1)
    assert isinstance(first, Train)
    sizes.finished(answer(first.cohort, 1.0, parameters))
    second = sizes.take(waiting, len(waiting) - 1)
    assert isinstance(second, Train)
    assert 0.75 * most <= len(second.cohort.trainings) <= most


def test_long_trainings_keep_the_benefit_of_lock_step_until_few_are_left() -> None:
    """Pieces longer than a minute have as many trainings as lock-step speeds up; the last pieces become smaller."""
    given, _ = simulated(planned(100), 4, lambda trial: 600.0)
    found = counts(given)
    assert found[:20] == [MOST_ON_CPU] * 20 or min(found[:20]) >= MOST_ON_CPU - 1
    assert found[-1] == 1
    assert max(found) <= MOST_ON_CPU


def test_pieces_are_not_cut_far_below_a_minute_of_work() -> None:
    given, _ = simulated(planned(60), 3, lambda trial: 15.0)
    assert min(counts(given)) >= 2, "two pieces for the last three or four trainings"


def test_a_kind_that_takes_longer_than_expected_is_cut_smaller() -> None:
    plan = planned(200, sgd={"target": "sgd"}, adam={"target": "adam"})
    given, _ = simulated(plan, 2, lambda trial: {"sgd": 1.0, "adam": 6.0}[trial.optimizer])
    by_kind = {name: [len(c.trainings) for at, c in given if at and c.optimizer == name] for name in ("sgd", "adam")}
    assert max(by_kind["adam"]) <= MINUTE / 6, "even before the first adam training has finished"
    assert max(by_kind["sgd"]) > 2 * max(by_kind["adam"])


def test_durations_measured_in_one_plan_are_used_in_the_next() -> None:
    pace, plan = Pace(), planned(100)
    units = [Train(piece, {}) for piece in spread(plan, 2, MOST_ON_CPU)]
    Sizes(plan, units, 2, pace).finished(answer(units[0].cohort, 0.1))
    first = Sizes(plan, units, 2, pace).take([*reversed(units)], len(units) - 1)
    assert isinstance(first, Train)
    assert len(first.cohort.trainings) > MOST_ON_CPU


def test_diverged_trainings_do_not_affect_estimates_for_others() -> None:
    sizes, waiting = begun(planned(100), 2)
    expected = [unit.id for unit in reversed(waiting)]
    sizes.finished(answer(waiting[-1].cohort, 0.1, status="diverged"))  # type: ignore[union-attr]
    assert [sizes.take(waiting, len(waiting) - 1).id for _ in expected] == expected


def test_halves_of_a_cohort_that_had_to_be_divided_are_not_joined_again() -> None:
    sizes, waiting = begun(planned(100), 2)
    unit = sizes.take(waiting, len(waiting) - 1)
    assert isinstance(unit, Train)
    sizes.finished(answer(unit.cohort, 0.1))
    for too_large in (False, True):
        halves = halved(Divide(unit, too_large), lambda cohort: {})
        waiting += reversed(halves)
        assert [sizes.take(waiting, len(waiting) - 1) for _ in halves] == halves


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.sampled_from([0.01, 3.0, 20.0, 500.0]), st.randoms())
def test_every_trial_is_handed_out_once_and_equal_trainings_stay_together(
    seeds: int, jobs: int, mean: float, random: Any
) -> None:
    names = {"a": {"target": "sgd", "lr": 0.1}, "b": {"target": "sgd", "lr": [0.1, 0.2]}, "c": {"target": "adam"}}
    plan = planned(seeds, **names)
    given, _ = simulated(plan, jobs, lambda trial: mean * random.uniform(0.2, 3.0))
    assert sorted(trial.id for _, cohort in given for trial in cohort.trials) == sorted(t.id for t in plan.trials)
    assert sum(counts(given)) == sum(len(cohort.trainings) for cohort in plan.cohorts)
    order = {trial.id: i for i, trial in enumerate(plan.trials)}
    for _, cohort in given:
        places = [order[trial.id] for trial in cohort.trials]
        assert places == sorted(places)
        assert cohort.optimizer == cohort.trials[0].optimizer


@pytest.mark.parametrize("jobs", [1, 2, 4, 16])
@pytest.mark.parametrize(("seconds", "overhead"), [(0.3, 0.02), (0.3, 0.5), (6.0, 0.1), (60.0, 0.5), (1800.0, 0.5)])
def test_workers_end_no_later_than_with_pieces_of_one_size(jobs: int, seconds: float, overhead: float) -> None:
    """Guided sizes take at most two percent longer than a fixed size, for trainings of any duration."""
    plan = planned(30, sgd={"target": "sgd", "lr": [0.1, 0.2]}, adam={"target": "adam"}, slow={"target": "shampoo"})
    factors = {"sgd": 1.0, "adam": 1.3, "slow": 3.0}

    def each(trial: Trial) -> float:
        return seconds * factors[trial.optimizer] * (0.6 + 0.8 * ((trial.seed * 7919) % 31) / 31)

    _, guided = simulated(plan, jobs, each, overhead=overhead)
    _, fixed = simulated(plan, jobs, each, overhead=overhead, fixed=True)
    assert guided <= fixed * 1.02


def test_the_longest_pieces_come_first_and_those_of_a_cohort_follow_one_another() -> None:
    plan = planned(30, sgd={"target": "sgd"}, slow={"target": "shampoo"}, adam={"target": "adam"})
    pieces = spread(plan, 3, MOST_ON_CPU)
    assert [name for name, _ in itertools.groupby(pieces, lambda piece: piece.optimizer)] == ["slow", "sgd", "adam"]


@pytest.mark.parametrize("count", [1, 5, 6, 9])
def test_cutting_a_cohort_gives_the_requested_number_of_trainings_and_the_rest(count: int) -> None:
    plan = planned(3, a={"target": "sgd", "lr": 0.1}, b={"target": "sgd", "lr": [0.1, 0.2]})
    (cohort,) = plan.cohorts
    first, *rest = cohort.cut(count)
    assert len(first.trainings) == min(count, 6)
    assert len(rest) == (count < 6)
    assert sorted(t.id for piece in (first, *rest) for t in piece.trials) == sorted(t.id for t in cohort.trials)
