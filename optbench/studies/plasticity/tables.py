"""Plasticity in a run's report: first, best and last online accuracies, and the share kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from optbench.counting import grouped
from optbench.metrics import METRICS, Metric
from optbench.report.document import Block, Cell, Column, Heading, Items, Part, Table, columns, seeds_cell
from optbench.report.numbers import UNDEFINED, decimals, fixed, marked, words
from optbench.report.sparks import spark, thinned
from optbench.report.spread import Spread, SpreadText
from optbench.store.online import ACCURACY
from optbench.studies.plasticity.statistics import LearntOnline

TITLE = "Plasticity"
DERIVED = {
    "plasticity_kept": "share\nkept",
    "plasticity_slope": "slope per\n100 tasks",
    "against_fresh": "against\nfresh",
}
ENDING = {"dead": ("dead\nunits", 2), "effective_rank": ("effective\nrank", decimals("effective_rank"))}
MEANING = (
    "Online accuracy: accuracy on each training batch before its update, averaged over a task.",
    "Share kept: last divided by best; noise alone lowers it below 1, even for fresh networks, especially with few "
    "tasks. Slope: median slope over all pairs of tasks (Theil-Sen). Against fresh: last minus the value reached "
    "with a fresh network for every task and the same optimizer, tasks and seeds.",
    "Dead units, effective rank: measured on the features of up to 2,000 new inputs before the first update on each of "
    "the last tasks.",
)


@dataclass(frozen=True)
class _Measure:
    """One column of the table. values: for each arm, one value per seed."""

    title: str
    digits: int
    values: tuple[list[float], ...]

    @property
    def empty(self) -> bool:
        return not any(map(math.isfinite, itertools.chain(*self.values)))


def online_blocks(found: Sequence[LearntOnline], several: bool, spread_text: SpreadText) -> Iterator[Block]:
    """Yield a table for each experiment and model with recorded online accuracies."""
    if not found:
        return
    yield Heading(TITLE)
    for here in grouped((_place(learnt), learnt) for learnt in found).values():
        where = ", ".join(_place(here[0])[not several :])
        yield _table(here, where, spread_text)
        if chart := _chart(here, where):
            yield Part("chart", chart)
        if reasons := tuple(_undefined(here)):
            yield Items(reasons, "quiet")
    yield Items(MEANING, "quiet")


def _place(learnt: LearntOnline) -> tuple[str, str, str]:
    return learnt.arm.results.run.id, learnt.arm.experiment, learnt.arm.model


def _table(here: Sequence[LearntOnline], where: str, spread_text: SpreadText) -> Table:
    tasks = here[0].in_window
    arrow = METRICS[ACCURACY].arrow
    online = decimals(ACCURACY)
    measures = [
        _Measure(f"first\n{tasks} {arrow}", online, tuple(one.first for one in here)),
        _Measure(f"best\n{tasks} {arrow}", online, tuple(one.best for one in here)),
        _Measure(f"last\n{tasks} {arrow}", online, tuple(one.late for one in here)),
        *(
            _Measure(f"{title} {METRICS[name].arrow}", decimals(name), tuple(one.arm.values(name) for one in here))
            for name, title in DERIVED.items()
        ),
        *(
            _Measure(title, digits, tuple(one.at_end(column) for one in here))
            for column, (title, digits) in ENDING.items()
        ),
    ]
    shown = [measure for measure in measures if not measure.empty]
    rows = []
    for i, one in enumerate(here):
        cells = [Cell(spread_text(Spread.of(measure.values[i]), measure.digits)) for measure in shown]
        rows.append((*_head(one), *cells))
    titles = columns("\noptimizer", "\ntrials", *(measure.title for measure in shown), texts=1)
    return Table(f"{where}: online accuracy over {here[0].tasks} tasks", titles, tuple(rows), keys=2)


def _head(one: LearntOnline) -> tuple[Cell, Cell]:
    name = Cell(marked(one.arm.label, one.arm.shortcoming))
    return name, seeds_cell(one.arm.count("ok"), len(one.arm.trials))


def _chart(here: Sequence[LearntOnline], where: str) -> Table | None:
    """Return a table of sparklines on a common scale: means over seeds and, for many tasks, over sections of tasks.

    Return None if there is only one task, or no arm has an ok trial.
    """
    lines = {one.arm.key: _points(one) for one in here if len(one.windows)}
    if not lines or here[0].tasks < 2:
        return None
    low, high = (pick(itertools.chain(*lines.values())) for pick in (min, max))
    ends = (fixed(low, 2), fixed(high, 2))
    rows = []
    for one in here:
        line = lines.get(one.arm.key)
        rows.append((_head(one)[0], Cell(spark(line, low, high if high > low else low + 1) if line else UNDEFINED)))
    caption = f"{where}: online accuracy over the tasks, from {' to '.join(ends)}"
    return Table(caption, (*columns("optimizer", texts=1), Column("task by task", numeric=False)), tuple(rows))


def _points(one: LearntOnline) -> Sequence[float]:
    return thinned(one.recorded[ACCURACY].mean(axis=0).tolist())


def _undefined(here: Sequence[LearntOnline]) -> Iterable[str]:
    """Yield sentences on why metrics are undefined.

    A sentence names the arms that it applies to, unless it applies to all of several arms with `ok` trials.
    """
    reasons: dict[tuple[str, str], list[str]] = {}
    for name in DERIVED:
        for one in here:
            for reason in dict.fromkeys(_reasons(one, METRICS[name])):
                reasons.setdefault((words(name), reason), []).append(one.arm.label)
    everyone = sum(one.arm.count("ok") > 0 for one in here)
    for (name, reason), labels in reasons.items():
        who = "" if len(labels) == everyone > 1 else f" of {', '.join(labels)}"
        yield f"{name[:1].upper()}{name[1:]}{who} is undefined: {reason}."


def _reasons(one: LearntOnline, metric: Metric) -> Iterator[str]:
    for seed, trial in one.arm.trials.items():
        if one.arm.status(seed) == "ok" and math.isnan(one.arm.value(metric.name, seed)):
            yield one.arm.results.undefined(metric.name, trial.id) or "no reason recorded"
