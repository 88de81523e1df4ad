"""Machine-readable records of plasticity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from optbench.metrics import METRICS
from optbench.report.document import Record
from optbench.report.records import KEYS, PAIR, SPLIT, spread_record
from optbench.report.spread import Spread
from optbench.store.online import ACCURACY
from optbench.studies.plasticity.statistics import BEFORE, RECORDED, LearntOnline

TASK = "task"
"""Column with the task of an online record (`pair_kind` is `online`); empty for windows of tasks."""
WINDOWS = {"first": "first_online_accuracy", "best": "best_online_accuracy", "late": "late_online_accuracy"}
"""Names of the online accuracies over the first, the best and the last w consecutive tasks."""


def online_records(found: Sequence[LearntOnline]) -> Iterator[Record]:
    """Yield one record per arm: values over windows of tasks, the networks' final state, and values on every task."""
    for learnt in found:
        yield {
            **_keys(learnt),
            "planned": len(learnt.arm.trials),
            "window": learnt.window,
            **{name: spread_record(Spread.of(getattr(learnt, key))) for key, name in WINDOWS.items()},
            **{column: spread_record(Spread.of(learnt.at_end(column))) for column in BEFORE},
            "tasks": [
                {TASK: task, **{column: spread_record(Spread.of(learnt.at(column, task))) for column in RECORDED}}
                for task in range(1, learnt.tasks + 1)
            ],
        }


def online_lines(found: Sequence[LearntOnline]) -> Iterator[Record]:
    """Yield, for each arm, one record per window of tasks, then one record per task and column."""
    for learnt in found:
        for key, name in WINDOWS.items():
            yield _line(learnt, name, None, getattr(learnt, key))
        for task in range(1, learnt.tasks + 1):
            for column in RECORDED:
                yield _line(learnt, column, task, learnt.at(column, task))


def _line(learnt: LearntOnline, metric: str, task: int | None, values: Iterable[float]) -> Record:
    accuracy = metric == ACCURACY or metric in WINDOWS.values()
    return {
        **_keys(learnt),
        PAIR[0]: "online",
        TASK: task,
        "planned": len(learnt.arm.trials),
        "metric": metric,
        "direction": METRICS[ACCURACY].direction if accuracy else "neutral",
        SPLIT: "training",
        **spread_record(Spread.of(values)),
    }


def _keys(learnt: LearntOnline) -> Record:
    arm = learnt.arm
    names = (arm.results.run.id, arm.experiment, arm.model, arm.optimizer, arm.variant)
    return dict(zip(KEYS, names, strict=True))
