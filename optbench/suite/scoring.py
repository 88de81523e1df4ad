"""The entries of the accuracy matrix to measure: all, or few enough that the cost is linear in the number of tasks.

Legend: `T` tasks, counted from 1; row 0 is before training.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from optbench.errors import hint
from optbench.kinds import Whole
from optbench.suite.fields import Settings

MOST_SCORED_WHOLE = 20
"""Maximum number of tasks for which, by default, all tasks are scored after each task."""


class Every(Settings):
    """`{every: k}`: score as with `current`; before training and after tasks k, 2k, ..., also score tasks k, 2k, ..."""

    every: Annotated[Whole, Field(ge=1)]
    """The interval k, in tasks."""


def _one_of(value: Any) -> Any:
    """Validate a rule; raise a single error instead of one for each alternative of the union."""
    if value is None or isinstance(value, Every) or value in ("all", "current"):
        return value
    if isinstance(value, dict) and list(value) == ["every"]:
        k = value["every"]
        if isinstance(k, int | float) and not isinstance(k, bool) and k >= 1 and k == int(k):
            return value
        raise ValueError(f"expected a whole number of at least 1 as 'every', got {k!r}")
    raise ValueError(f"expected all, current or {{every: k}}, got {value!r}{hint(value, ('all', 'current'))}")


Rule = Literal["all", "current"] | Every
Score = Annotated[Rule | None, BeforeValidator(_one_of)]


def resolved(score: Rule | None, tasks: int) -> Rule:
    """Return the rule, with null replaced by the default for this number of tasks."""
    return score or ("all" if tasks <= MOST_SCORED_WHOLE else "current")


def scored_tasks(score: Rule | None, tasks: int, after_task: int) -> tuple[int, ...]:
    """Return the tasks (1..T, ascending) that are scored after `after_task` (0: before training).

    `current`: the task just learnt and the next one, whose loss before its first step shows whether training diverged.
    `{every: k}`: also the tasks k, 2k, ..., learnt or not, if `after_task` is a multiple of k, such as 0; `{every: 1}`
    is equivalent to `all`.
    """
    rule = resolved(score, tasks)
    if rule == "all":
        return tuple(range(1, tasks + 1))
    found = {after_task, after_task + 1}
    if isinstance(rule, Every) and after_task % rule.every == 0:
        found |= set(range(rule.every, tasks + 1, rule.every))
    return tuple(sorted(task for task in found if 1 <= task <= tasks))


def scoring(score: Rule | None, tasks: int) -> str | None:
    """Return a sentence that states which tasks are scored; None if all tasks are scored or there are at most two."""
    rule = resolved(score, tasks)
    if rule == "all" or tasks <= 2:
        return None
    why = f" (the default for more than {MOST_SCORED_WHOLE} tasks)" if score is None else ""
    also = f", and tasks {rule.every}, {2 * rule.every}, ... after each of them" if isinstance(rule, Every) else ""
    return f"Each task is scored just before and just after its training{also}{why}; metrics that need more are null."
