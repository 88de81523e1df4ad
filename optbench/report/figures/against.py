"""One metric against another for each value of a swept setting: do both metrics respond to the setting in the same way?

An experiment requests these figures by `figures: [{x: effective_rank, y: forgetting}]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from optbench.counting import grouped
from optbench.report.figures import style
from optbench.report.figures.drawing import MAX_WIDTH, Figure, Panel
from optbench.report.figures.placing import name_points
from optbench.report.figures.series import Group, Series, chunks, groups, mean
from optbench.report.figures.wording import MANY_NUMBERS, caption, metric_words
from optbench.stats.results import Results
from optbench.suite.variants import leaves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = MAX_WIDTH, 3.4
BESIDE = 0.75
"""Approximate space, in inches, for the ticks and names of the axes."""
MANY_VALUES = 10
"""Maximum number of means for which every mean on a line is labelled; on longer lines, only the ends are labelled."""
STEPS = 16
"""Number of sections into which a line between two means is divided. Labels avoid the points between the sections,
which are so close together that no label fits between them."""
AIR = 0.09
"""Margin for labels on either side of the data, as a fraction of the data's range."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Path:
    """The variants of one optimizer in one run.

    setting: the dotted path of the only number in which the variants differ. If there is no such number, `setting` is
    None, and no line joins the variants.
    points: the variants, each with the label of its mean, ordered by the setting or, if it is None, as in the suite.
    """

    series: Series
    setting: str | None
    points: tuple[tuple[str, Series], ...]

    def drawn(self, x: str, y: str) -> list[tuple[str, list[Point]]]:
        """Return the label of each point and the values (x, y) of its seeds.

        Seeds on which either metric is undefined are omitted, as are points left without seeds.
        """
        found = []
        for text, series in self.points:
            pairs = [(series.arm.value(x, trial.seed), series.arm.value(y, trial.seed)) for trial in series.trials]
            if defined := [pair for pair in pairs if all(map(math.isfinite, pair))]:
                found.append((text, defined))
        return found


def against(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per model for each pair of metrics that an experiment requests."""
    return [
        figure
        for group in groups(results)
        for x, y in _asked(results, group.experiment)
        if (figure := _figure(group, x, y)) is not None
    ]


def _asked(results: Sequence[Results], experiment: str) -> list[tuple[str, str]]:
    experiments = [result.suite.experiments.get(experiment) for result in results]
    return list(dict.fromkeys((f.x, f.y) for found in experiments for f in (found.figures if found else None) or ()))


def _paths(group: Group) -> list[Path]:
    by_optimizer = grouped(
        ((series.arm.optimizer, series.label.removeprefix(series.arm.label)), series) for series in group.series
    )
    found: list[Path] = []
    for (optimizer, run), variants in by_optimizer.items():
        turn = sum(path.series.colour == variants[0].colour for path in found)
        series = replace(variants[0], label=f"{optimizer}{run}", turn=turn)
        given = [
            {
                ".".join(path): value
                for path, value in leaves(next(iter(one.arm.trials.values())).hyperparameters).items()
            }
            for one in variants
        ]
        differing = [key for key in given[0] if any(other.get(key) != given[0][key] for other in given)]
        values = [one.get(differing[0]) for one in given] if len(differing) == 1 else []
        numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(variants):
            order = sorted(zip(numbers, variants, strict=True), key=lambda pair: pair[0])
            points = tuple((style.short(value), one) for value, one in order)
            found.append(Path(series, differing[0], points))
        else:
            texts = ["" if one.arm.variant == "default" else one.arm.variant for one in variants]
            found.append(Path(series, None, tuple(zip(texts, variants, strict=True))))
    return found


def _figure(group: Group, x: str, y: str) -> Figure | None:
    found = {path.series.label: path for path in _paths(group) if path.drawn(x, y)}
    if not found:
        return None
    every = [point for path in found.values() for _, pairs in path.drawn(x, y) for point in pairs]
    limits = (_limits([at for at, _ in every]), _limits([at for _, at in every]))
    parts = [[found[s.label] for s in part] for part in chunks([path.series for path in found.values()])]
    settings = list(dict.fromkeys(path.setting for path in found.values() if path.setting))
    x_words, y_words = metric_words(group.series, x), metric_words(group.series, y)
    what = (
        f"{y_words} against {x_words} on {group.experiment}, {group.model}; dots are seeds and large markers are means"
    )
    if settings:
        what += f", and a line joins the means in the order of {' or '.join(settings)}, whose values are next to them"
    shown = replace(group, series=tuple(series for path in found.values() for _, series in path.points))
    return Figure(
        name=group.figure_name("against", y, x),
        title=f"{group.experiment}, {group.model}: {y_words} against {x_words}",
        caption=caption(f"{what[:1].upper()}{what[1:]}.", [(shown, shown.series)]),
        alt=f"Mean {x_words} and {y_words}: {_numbers(list(found.values()), x, y)}.",
        panels=tuple(_panel(part, x, y, limits) for part in parts),
    )


def _panel(part: Sequence[Path], x: str, y: str, limits: tuple[Point, Point]) -> Panel:
    def draw(axes: Axes) -> None:
        axes.set(xlim=limits[0], ylim=limits[1])
        named: list[tuple[Point, str, str]] = []
        others: list[Point] = []
        for path in part:
            shown, drawn = style.look(path.series), path.drawn(x, y)
            middles = [_middle(pairs) for _, pairs in drawn]
            if path.setting:
                style.draw_means(axes, [at for at, _ in middles], [at for _, at in middles], shown)
                others += [point for ends in pairwise(middles) for point in _between(*ends)]
            for _, pairs in drawn:
                style.draw_seeds(axes, [at for at, _ in pairs], [at for _, at in pairs], shown)
            style.draw_centres(axes, middles, shown)
            ends = (0, len(drawn) - 1)
            few = len(drawn) <= MANY_VALUES
            texts = [(i, text) for i, (text, _) in enumerate(drawn) if text and (few or i in ends)]
            named += [(middles[i], text, shown.colour) for i, text in texts]
            others += [pair for _, pairs in drawn for pair in pairs]
        series = [path.series for path in part]
        style.labels(axes, metric_words(series, x), metric_words(series, y))
        size = (72 * (WIDTH - BESIDE), 72 * (HEIGHT - BESIDE))
        if named:
            centres, texts_of, colours = zip(*named, strict=True)
            name_points(axes, centres, texts_of, limits, size, others, colours)

    return Panel(draw, WIDTH, HEIGHT, series=[path.series for path in part], lines=any(path.setting for path in part))


def _numbers(paths: Sequence[Path], x: str, y: str) -> str:
    """Describe the means at the ends of each line, and all means that are not on a line.

    Only the first `MANY_NUMBERS` means are described; the others are counted.
    """
    found = []
    for path in paths:
        drawn = path.drawn(x, y)
        for text, pairs in [drawn[0], drawn[-1]] if path.setting and len(drawn) > 1 else drawn:
            middle = _middle(pairs)
            found.append(f"{path.series.label}{' at ' * bool(text)}{text} {middle[0]:.3g} and {middle[1]:.3g}")
    left = f", and {len(found) - MANY_NUMBERS} more" if len(found) > MANY_NUMBERS else ""
    return "; ".join(found[:MANY_NUMBERS]) + left


def _middle(pairs: Sequence[Point]) -> Point:
    return mean([at for at, _ in pairs]), mean([at for _, at in pairs])


def _between(a: Point, b: Point) -> list[Point]:
    """Return evenly spaced points on the line between two means, for labels to avoid."""
    shares = [i / STEPS for i in range(1, STEPS)]
    return [(a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])) for share in shares]


def _limits(values: Sequence[float]) -> Point:
    air = AIR * (max(values) - min(values)) or 0.01
    return min(values) - air, max(values) + air
