"""What a swept setting does: learning and forgetting against the learning rate, properties against any other one.

Who learns too slowly to forget shows where learning accuracy and forgetting are drawn against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optbench.report.figures import style
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.placing import place_labels
from optbench.report.figures.series import Group, Series, chunks, groups, mean
from optbench.report.figures.wording import caption, means
from optbench.stats.results import Results
from optbench.stats.switching import steps_setting
from optbench.suite.schema import ClassIncremental

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_POINTS = 3
RATES = ("lr", "learning_rate")

LEARNING = {
    "learning_accuracy": "learning accuracy",
    "average_accuracy": "accuracy at the end",
    "forgetting": "forgetting",
}
PARTS = {"last_task_accuracy": "last task at the end", "earlier_tasks_accuracy": "earlier tasks at the end"}
"""Where tasks have classes of their own, the accuracy at the end says little without its two parts."""
PROPERTIES = {
    "average_accuracy": "accuracy at the end",
    "forgetting": "forgetting",
    "effective_rank": "effective rank of the features",
}
UNITS = {"effective_rank": "dimensions", "forgetting": "loss of accuracy"}

WIDTH, HEIGHT = 3.2, 2.6
SCATTER_WIDTH, SCATTER_HEIGHT = 3.6, 3.0


@dataclass(frozen=True)
class Sweep:
    """One optimizer over the values of one hyper-parameter, all else equal.

    series: how it looks. points: value and arm, by ascending value.
    """

    hyperparameter: str
    series: Series
    points: tuple[tuple[float, Series], ...]

    def drawn(self, metric: str) -> list[tuple[float, list[float]]]:
        """Value -> the metric of every seed, where there is any."""
        return [(value, found) for value, arm in self.points if (found := arm.values(metric))]


def learning_rates(results: Sequence[Results]) -> list[Figure]:
    """One figure per experiment and model whose optimizers were swept over their learning rate."""
    figures = []
    for group in groups(results):
        for name, found in _by_hyperparameter(group).items():
            if is_rate(name):
                classes = isinstance(found[0].series.arm.settings.tasks, ClassIncremental)
                figures += _figure(group, name, found, {**LEARNING, **(PARTS if classes else {})}, "sweep")
    return figures


def settings(results: Sequence[Results]) -> list[Figure]:
    """One figure per experiment, model and swept setting that is no learning rate."""
    return [
        figure
        for group in groups(results)
        for name, found in _by_hyperparameter(group).items()
        if not is_rate(name)
        for figure in _figure(group, name, found, PROPERTIES, "setting")
    ]


def is_rate(hyperparameter: str) -> bool:
    return hyperparameter in RATES or hyperparameter.endswith("_lr")


def sweeps(group: Group) -> list[Sweep]:
    """Optimizers with at least `MIN_POINTS` variants that differ in exactly one number, by run.

    Not in the step of a switch, which has a figure of its own.
    """
    by_optimizer: dict[tuple[str, str], list[Series]] = {}
    for series in group.series:
        run = series.label.removeprefix(series.arm.label)
        by_optimizer.setdefault((series.arm.optimizer, run), []).append(series)
    found: list[Sweep] = []
    for (optimizer, run), variants in by_optimizer.items():
        given = [next(iter(series.arm.trials.values())).hyperparameters for series in variants]
        differing = [key for key in given[0] if any(other.get(key) != given[0][key] for other in given)]
        if len(variants) < MIN_POINTS or len(differing) != 1 or differing == [steps_setting(variants[0].arm)]:
            continue
        values = [setting[differing[0]] for setting in given]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            continue
        turn = sum(sweep.series.colour == variants[0].colour for sweep in found)
        look = replace(variants[0], label=f"{optimizer}{run}", turn=turn)
        points = sorted(zip(map(float, values), variants, strict=True), key=lambda point: point[0])
        found.append(Sweep(differing[0], look, tuple(points)))
    return found


def _by_hyperparameter(group: Group) -> dict[str, list[Sweep]]:
    found: dict[str, list[Sweep]] = {}
    for sweep in sweeps(group):
        found.setdefault(sweep.hyperparameter, []).append(sweep)
    return found


def _figure(group: Group, name: str, found: Sequence[Sweep], metrics: dict[str, str], kind: str) -> list[Figure]:
    taken = {metric: title for metric, title in metrics.items() if any(sweep.drawn(metric) for sweep in found)}
    panels = [_curve(metric, title, name, part) for metric, title in taken.items() for part in _parts(found, metric)]
    both = [sweep for sweep in found if _against(sweep)] if is_rate(name) else []
    panels += [_scatter(sweep, both) for sweep in both]
    if not panels:
        return []
    what = (
        f"{_listing(list(taken.values()))} against {name} on {group.experiment}, {group.model}; a dot is a seed, a "
        "line goes through the means."
    )
    if both:
        what += " Of forgetting against learning accuracy, bottom right is best, and bottom left has little to forget."
    swept = Group(group.experiment, group.model, tuple(arm for sweep in found for _, arm in sweep.points))
    best = [
        (f"{sweep.series.label} at {style.short(value)}", mean(values))
        for sweep in found
        for value, values in _best(sweep)
    ]
    return [
        Figure(
            name=f"{kind}_{group.place}_{name}",
            title=f"{group.experiment}, {group.model}: {'learning and forgetting by ' if both else 'by '}{name}",
            caption=caption(what, [(swept, swept.series)]),
            alt=f"Highest mean accuracy at the end by {name}: {means(best)}." if best else f"{what}",
            panels=tuple(panels),
        )
    ]


def _best(sweep: Sweep) -> list[tuple[float, list[float]]]:
    drawn = sweep.drawn("average_accuracy")
    return [max(drawn, key=lambda point: mean(point[1]))] if drawn else []


def _parts(found: Sequence[Sweep], metric: str) -> list[list[Sweep]]:
    drawn = {sweep.series.label: sweep for sweep in found if sweep.drawn(metric)}
    return [[drawn[s.label] for s in part] for part in chunks([sweep.series for sweep in drawn.values()])]


def _curve(metric: str, title: str, name: str, part: Sequence[Sweep]) -> Panel:
    shown_series = [sweep.series for sweep in part]

    def draw(axes: Axes) -> None:
        every = sorted({value for sweep in part for value, _ in sweep.drawn(metric)})
        style.value_axis(axes, "x", every, room=5)
        for sweep in part:
            shown, drawn = style.look(sweep.series), sweep.drawn(metric)
            style.draw_means(axes, [value for value, _ in drawn], [mean(values) for _, values in drawn], shown)
            x = [value for value, values in drawn for _ in values]
            style.draw_seeds(axes, x, [one for _, values in drawn for one in values], shown)
        style.labels(axes, name, UNITS.get(metric, "accuracy"))
        style.header(axes, WIDTH, title, shown_series)

    return Panel(draw, WIDTH, HEIGHT + style.legend_height(WIDTH, shown_series))


def _against(sweep: Sweep) -> list[tuple[float, list[tuple[float, float]]]]:
    """Value -> learning accuracy and forgetting of every seed that has both."""
    found = []
    for value, series in sweep.points:
        pairs = [[series.arm.value(m, t.seed) for m in ("learning_accuracy", "forgetting")] for t in series.trials]
        defined = [(learnt, forgotten) for learnt, forgotten in pairs if math.isfinite(learnt + forgotten)]
        if defined:
            found.append((value, defined))
    return found


def _scatter(sweep: Sweep, every: Sequence[Sweep]) -> Panel:
    """One optimizer; the axes are the same for all of them."""

    def draw(axes: Axes) -> None:
        points = [point for other in every for _, pairs in _against(other) for point in pairs]
        limits = [_limits([point[i] for point in points]) for i in (0, 1)]
        axes.set(xlim=limits[0], ylim=limits[1])
        shown, found = style.look(sweep.series), _against(sweep)
        centres = [(mean([p[0] for p in pairs]), mean([p[1] for p in pairs])) for _, pairs in found]
        xs, ys = [x for x, _ in centres], [y for _, y in centres]
        axes.plot(xs, ys, color=shown.colour, linewidth=0.9, alpha=0.6, label="_path")
        for _, pairs in found:
            style.draw_seeds(axes, [x for x, _ in pairs], [y for _, y in pairs], shown)
        axes.plot(xs, ys, linestyle="none", **{**shown.marks, "markersize": 7.5, "markeredgecolor": style.INK})
        texts = [style.short(value) for value, _ in found]
        size = ((SCATTER_WIDTH - 0.75) * 72, (SCATTER_HEIGHT - 0.75) * 72)
        for text, centre, offset in zip(texts, centres, place_labels(centres, texts, limits, size), strict=True):
            leader = {"arrowstyle": "-", "linewidth": 0.6, "color": style.INK, "shrinkA": 0, "shrinkB": 3}
            axes.annotate(
                text,
                centre,
                offset,
                textcoords="offset points",
                arrowprops=leader,
                ha="center",
                va="center",
                fontsize=8,
            )
        style.labels(axes, "learning accuracy", "forgetting")
        style.header(axes, SCATTER_WIDTH, f"{sweep.series.label}, {sweep.hyperparameter} beside each mean")

    return Panel(draw, SCATTER_WIDTH, SCATTER_HEIGHT)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """With air on either side, in which labels can stand."""
    air = 0.12 * (max(values) - min(values)) or 0.01
    return min(values) - air, max(values) + air


def _listing(names: Sequence[str]) -> str:
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return text[:1].upper() + text[1:]
