"""The choice of accuracies to measure: worked examples, and the rules that a suite can give."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from optbench.suite.protocol import Protocol
from optbench.suite.scoring import Every, Rule, scored_tasks, scoring


@pytest.mark.parametrize(
    ("rule", "tasks", "expected"),
    [
        ("all", 2, [(1, 2), (1, 2), (1, 2)]),
        ("current", 4, [(1,), (1, 2), (2, 3), (3, 4), (4,)]),
        (Every(every=2), 5, [(1, 2, 4), (1, 2), (2, 3, 4), (3, 4), (2, 4, 5), (5,)]),
        (Every(every=3), 4, [(1, 3), (1, 2), (2, 3), (3, 4), (4,)]),
    ],
)
def test_scored_tasks_agree_with_worked_examples(rule: Rule, tasks: int, expected: list[tuple[int, ...]]) -> None:
    assert [scored_tasks(rule, tasks, after) for after in range(tasks + 1)] == expected


def test_scoring_every_1_task_is_scoring_all() -> None:
    for after in range(31):
        assert scored_tasks(Every(every=1), 30, after) == scored_tasks("all", 30, after)


@pytest.mark.parametrize("tasks", [1, 20, 21, 500])
def test_by_default_all_of_up_to_twenty_tasks_are_scored_and_else_the_current_one(tasks: int) -> None:
    meant: Rule = "all" if tasks <= 20 else "current"
    assert all(scored_tasks(None, tasks, after) == scored_tasks(meant, tasks, after) for after in (0, 1, tasks))
    assert (scoring(None, tasks) is None) == (tasks <= 20)


def test_scoring_the_current_task_is_linear_in_tasks() -> None:
    assert sum(len(scored_tasks("current", 500, after)) for after in range(501)) == 1000


def test_a_rule_survives_a_round_trip() -> None:
    for written in (None, "all", "current", {"every": 7}):
        protocol = Protocol.model_validate({"score": written})
        assert protocol.model_dump(mode="json")["score"] == written
        assert Protocol.model_validate(protocol.model_dump(mode="json")) == protocol


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("curent", r"expected all, current or \{every: k\}, got 'curent'; did you mean 'current'\?"),
        ({"each": 3}, r"expected all, current or \{every: k\}, got \{'each': 3\}"),
        ({"every": 0}, "expected a whole number of at least 1 as 'every', got 0"),
        ({"every": True}, "expected a whole number of at least 1 as 'every', got True"),
        (5, "got 5"),
    ],
)
def test_an_invalid_rule_gives_one_error(written: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        Protocol.model_validate({"score": written})
    assert len(caught.value.errors()) == 1
