"""Figures of the distance between twins in weight space, by training step."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optbench.report.figures import style
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import MAX_SERIES, Group, Series, groups, mean, split
from optbench.report.figures.wording import caption, means
from optbench.stats.results import Results
from optbench.studies.twins.statistics import Moment, Twins
from optbench.studies.twins.statistics import twins as twins_of
from optbench.studies.twins.tables import accuracy, digits_of, place_text, task_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.2, 3.1
WIDE = 20
"""The distance axis is logarithmic if the largest distance is more than this many times the smallest positive one."""


@dataclass(frozen=True)
class DrawnTwins:
    """A pair of twins in a figure. series: the look and label of the pair's line. sides: the two optimizers' arms."""

    twins: Twins
    series: Series
    sides: tuple[Series, Series]

    @property
    def shared(self) -> list[Moment]:
        """Places at which every seed has a distance, ignoring seeds that have none at all."""
        return [place for place in self.twins.places if len(self.twins.at(place)) == len(self.twins.distances)]


def twins(results: Sequence[Results]) -> list[Figure]:
    """Return one figure for each experiment and model with twins, limiting the number of pairs per panel."""
    found = [pair for result in results for pair in twins_of(result) if any(map(pair.at, pair.places))]
    figures = []
    for group in groups(results) if found else ():
        here = [pair for pair in found if (pair.experiment, pair.model) == (group.experiment, group.model)]
        if here:
            figures.append(_figure(group, _pairs(here, group)))
    return figures


def _pairs(found: Sequence[Twins], group: Group) -> list[DrawnTwins]:
    known = {series.arm.key: series for series in group.series}
    met: Counter[int] = Counter()
    pairs = []
    for one in found:
        assert one.sides is not None
        first, second = (known[arm.key] for arm in one.sides)
        run = first.label.removeprefix(first.arm.label)
        look = replace(first, label=f"{one.label}{run}", turn=met[first.colour])
        met[first.colour] += 1
        pairs.append(DrawnTwins(one, look, (first, second)))
    return pairs


def _figure(group: Group, pairs: Sequence[DrawnTwins]) -> Figure:
    sides = tuple({side.label: side for pair in pairs for side in pair.sides}.values())
    tasks = task_count(pair.twins for pair in pairs)
    what = (
        f"Distance between the weights of twins during training on {group.experiment}, {group.model}, divided by the "
        "mean of their distances from the common start; a thin line is a seed, a thick line the mean while all seeds "
        f"are in training. {accuracy(pair.twins.size for pair in pairs)}"
    )
    ends = [(pair.series.label, pair.shared[-1], pair) for pair in pairs if pair.shared]
    numbers = [(f"{label} at {place_text(place, tasks)}", mean(pair.twins.at(place))) for label, place, pair in ends]
    told = means(numbers, digits_of([[value] for _, value in numbers])) or "no evaluation is shared by all seeds"
    values = [value for pair in pairs for distances in pair.twins.distances.values() for value in distances.values()]
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) > WIDE * min(positive)
    if wide and 0.0 in values:
        what += " A distance of 0 cannot be shown on the logarithmic axis."
    drawn = Group(group.experiment, group.model, sides)
    starts = _starts(pairs)
    return Figure(
        name=group.figure_name("twins"),
        title=f"{group.experiment}, {group.model}: twins",
        caption=caption(what, [(drawn, sides)]),
        alt=f"Mean distance between twins: {told}.",
        panels=tuple(_panel(part, starts, wide) for part in split(pairs, -(-len(pairs) // MAX_SERIES))),
    )


def _starts(pairs: Sequence[DrawnTwins]) -> Mapping[int, int]:
    """Return the step on the axis at which each task starts: the sum of the earlier tasks' maximum numbers of steps."""
    places = [place for pair in pairs for place in pair.twins.places]
    count = task_count(pair.twins for pair in pairs)
    longest = [max((step for task, step in places if task == i), default=0) for i in range(1, count + 1)]
    return dict(enumerate(itertools.accumulate(longest, initial=0), start=1))


def _panel(part: Sequence[DrawnTwins], starts: Mapping[int, int], wide: bool) -> Panel:
    series = [pair.series for pair in part]

    def draw(axes: Axes) -> None:
        if wide:
            style.log_axis(axes, "y")
        for task, start in starts.items():
            if 1 < task < len(starts):
                axes.axvline(start, color=style.INK, alpha=0.3, linewidth=0.6, linestyle="dotted", label="_task")
        for pair in part:
            shown = style.look(pair.series)
            curves = [
                [(starts[task] + step, _drawn(value, wide)) for (task, step), value in distances.items()]
                for distances in pair.twins.distances.values()
            ]
            style.draw_curves(axes, curves, shown)
            if shared := pair.shared:
                x = [starts[task] + step for task, step in shared]
                y = [_drawn(mean(pair.twins.at(place)), wide) for place in shared]
                style.draw_line(axes, x, y, shown, label="_mean")
        if not wide:
            axes.set_ylim(bottom=0)
        style.labels(axes, "step", "distance between twins")

    return Panel(draw, WIDTH, HEIGHT, series=series)


def _drawn(value: float, wide: bool) -> float:
    return math.nan if wide and value == 0 else value
