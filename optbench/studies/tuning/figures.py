"""Figures of swept settings: learning and forgetting by learning rate, and properties of solutions by other settings.

A plot of forgetting against learning accuracy shows which settings forget little only because they learn little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optbench.counting import grouped
from optbench.kinds import value_name
from optbench.report.figures import style
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.placing import name_points
from optbench.report.figures.series import Group, Series, chunks, groups, mean
from optbench.report.figures.wording import accuracy, caption, means, score_of
from optbench.stats.results import Results
from optbench.studies.switching.statistics import steps_setting
from optbench.studies.tuning.statistics import tunings
from optbench.suite.variants import leaves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_POINTS = 3
RATES = ("lr", "learning_rate")
MANY_VALUES = 10
"""Maximum number of labels on one axis, or next to the points of one panel, for legibility."""
RING = "_chosen"
"""Label of the matplotlib artist that draws a ring around the chosen setting."""

ONLINE = "online_accuracy"
LEARNING = {
    ONLINE: "online accuracy",
    "learning_accuracy": "learning accuracy",
    "average_accuracy": "accuracy at the end",
    "forgetting": "forgetting",
}
PARTS = {"last_task_accuracy": "last task at the end", "earlier_tasks_accuracy": "earlier tasks at the end"}
"""The parts of the final accuracy, which alone means little if tasks have different classes."""
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
    """One optimizer over the values of one hyper-parameter.

    series: the look of the optimizer's points and line.
    points: pairs of value and arm, by ascending value.
    chosen: the variant that a tuning run chose for the optimizer, which may belong to another sweep; None if there is
        none.
    joined: whether all other hyper-parameters are equal, so that a line through the points is meaningful.
    """

    hyperparameter: str
    series: Series
    points: tuple[tuple[float, Series], ...]
    chosen: str | None = None
    joined: bool = True

    def drawn(self, metric: str) -> list[tuple[float, list[float]]]:
        """Return each value at which the metric was measured, with the metric's values over seeds."""
        return [(value, found) for value, arm in self.points if (found := arm.values(metric))]

    def ring(self, metric: str) -> tuple[float, float] | None:
        """Return the hyper-parameter's chosen value and the metric's mean there; None if either is missing."""
        found = [(value, arm.values(metric)) for value, arm in self.points if arm.arm.variant == self.chosen]
        return (found[0][0], mean(found[0][1])) if found and found[0][1] else None


def learning_rates(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment and model with learning rate sweeps."""
    figures = []
    for group in groups(results):
        for name, found in _by_hyperparameter(group).items():
            if is_rate(name):
                classes = found[0].series.arm.tasks.disjoint
                figures += _figure(group, name, found, {**LEARNING, **(PARTS if classes else {})}, "sweep")
    return figures


def settings(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment, model and swept setting other than the learning rate."""
    return [
        figure
        for group in groups(results)
        for name, found in _by_hyperparameter(group).items()
        if not is_rate(name)
        for figure in _figure(group, name, found, PROPERTIES, "setting")
    ]


def is_rate(hyperparameter: str) -> bool:
    """Return whether a hyper-parameter, given by its dotted path, is a learning rate of an optimizer or of its base."""
    name = hyperparameter.rpartition(".")[2]
    return name in RATES or name.endswith("_lr")


def sweeps(group: Group) -> list[Sweep]:
    """Return the sweeps of each optimizer and run.

    A sweep consists of at least `MIN_POINTS` variants that differ in exactly one number.

    The variants of a tuning run may differ in more than the learning rate. Those that differ only in the learning rate
    then form a sweep. If there are too few of them, as with random draws, all variants form one sweep, whose points are
    not joined by a line. Sweeps over the step of a switch are excluded, because they have a separate figure.
    """
    by_optimizer = grouped(
        ((series.arm.optimizer, series.label.removeprefix(series.arm.label)), series) for series in group.series
    )
    chosen = {
        (tuned.optimizer, run): tuned.chosen.variant
        for run, results in {run: series[0].arm.results for (_, run), series in by_optimizer.items()}.items()
        for tuned in tunings(results)
        if tuned.experiment == group.experiment and tuned.chosen is not None
    }
    found: list[Sweep] = []
    for (optimizer, run), variants in by_optimizer.items():
        for sweep in _sweeps(variants):
            turn = sum(other.series.colour == variants[0].colour for other in found)
            look = replace(sweep.series, label=f"{optimizer}{sweep.series.label}{run}", turn=turn)
            found.append(replace(sweep, series=look, chosen=chosen.get((optimizer, run))))
    return found


def _sweeps(variants: Sequence[Series]) -> list[Sweep]:
    """Return the sweeps of one optimizer in one run, labelled by the settings that distinguish the sweeps."""
    given = [_settings(series) for series in variants]
    differing = [key for key in given[0] if any(other.get(key) != given[0][key] for other in given)]
    if len(variants) < MIN_POINTS or differing == [steps_setting(variants[0].arm)]:
        return []
    rates = [key for key in differing if is_rate(key)]
    tuning = variants[0].arm.results.split == "validation"
    candidates = rates if tuning and len(differing) > 1 else differing
    if len(candidates) != 1:
        return []
    swept = candidates[0]
    if not all(isinstance(one.get(swept), int | float) and not isinstance(one[swept], bool) for one in given):
        return []
    alike: dict[str, list[tuple[float, Series]]] = {}
    for setting, series in zip(given, variants, strict=True):
        rest = [f" {key}={value_name(setting[key])}" for key in differing if key != swept and key in setting]
        alike.setdefault("".join(rest), []).append((float(setting[swept]), series))
    joined = all(len(points) >= MIN_POINTS for points in alike.values())
    parts = alike if joined else {"": [point for points in alike.values() for point in points]}
    return [
        Sweep(swept, replace(points[0][1], label=rest), tuple(sorted(points, key=lambda p: p[0])), joined=joined)
        for rest, points in parts.items()
    ]


def _settings(series: Series) -> Mapping[str, Any]:
    """Return an arm's hyper-parameters by dotted path, including those of inner optimizers."""
    given = next(iter(series.arm.trials.values())).hyperparameters
    return {".".join(path): value for path, value in leaves(given).items()}


def _by_hyperparameter(group: Group) -> dict[str, list[Sweep]]:
    return grouped((sweep.hyperparameter, sweep) for sweep in sweeps(group))


def _figure(group: Group, name: str, found: Sequence[Sweep], metrics: dict[str, str], kind: str) -> list[Figure]:
    text = any(sweep.series.arm.in_bits for sweep in found)
    taken = {
        metric: title.replace("accuracy", "score") if text else title
        for metric, title in metrics.items()
        if any(sweep.drawn(metric) for sweep in found)
    }
    panels = [_curve(metric, title, name, part) for metric, title in taken.items() for part in _parts(found, metric)]
    both = [sweep for sweep in found if _against(sweep)] if is_rate(name) else []
    panels += [_scatter(sweep, both) for sweep in both]
    if not panels:
        return []
    what = (
        f"{_listing(list(taken.values()))} against {name} on {group.experiment}, {group.model}; a dot is a seed"
        f"{', and a line joins the means' if any(sweep.joined for sweep in found) else ''}."
    )
    chosen = [
        f"{sweep.series.label} at {style.short(value)}"
        for sweep in found
        for value, arm in sweep.points
        if arm.arm.variant == sweep.chosen
    ]
    if any(sweep.series.arm.results.split == "validation" for sweep in found):
        what += f" {accuracy(sweep.series for sweep in found)}"
        what += "; a ring is the setting that tuning chooses." if chosen else "."
    if both:
        learning = "score" if text else "accuracy"
        what += (
            f" In the plot of forgetting against learning {learning}, the best settings are at the bottom right; those "
            "at the bottom left have little to forget."
        )
    swept = Group(group.experiment, group.model, tuple(arm for sweep in found for _, arm in sweep.points))
    best = []
    for sweep in found:
        if drawn := [(value, mean(values)) for value, values in sweep.drawn("average_accuracy")]:
            value, highest = max(drawn, key=lambda point: point[1])
            best.append((f"{sweep.series.label} at {style.short(value)}", highest))
    return [
        Figure(
            name=group.figure_name(kind, name),
            title=f"{group.experiment}, {group.model}: {'learning and forgetting by ' if both else 'by '}{name}",
            caption=caption(what, [(swept, swept.series)]),
            alt=(
                f"Highest mean {score_of(sweep.series for sweep in found)} at the end by {name}: {means(best)}."
                if best
                else f"{what}"
            )
            + (f" Chosen: {', '.join(chosen)}." if chosen else ""),
            panels=tuple(panels),
        )
    ]


def _parts(found: Sequence[Sweep], metric: str) -> list[list[Sweep]]:
    drawn = {sweep.series.label: sweep for sweep in found if sweep.drawn(metric)}
    return [[drawn[s.label] for s in part] for part in chunks([sweep.series for sweep in drawn.values()])]


def _curve(metric: str, title: str, name: str, part: Sequence[Sweep]) -> Panel:
    def draw(axes: Axes) -> None:
        every = sorted({value for sweep in part for value, _ in sweep.drawn(metric)})
        _axis_of_values(axes, every)
        for sweep in part:
            shown, drawn = style.look(sweep.series), sweep.drawn(metric)
            if sweep.joined:
                style.draw_means(axes, [value for value, _ in drawn], [mean(values) for _, values in drawn], shown)
            x = [value for value, values in drawn for _ in values]
            style.draw_seeds(axes, x, [one for _, values in drawn for one in values], shown)
            _draw_ring(axes, sweep.ring(metric))
        arm, score = part[0].series.arm, score_of(sweep.series for sweep in part)
        unit = arm.metrics[metric].unit if arm.in_bits and metric == "forgetting" else UNITS.get(metric)
        if metric == ONLINE:
            unit = "accuracy"
        style.labels(axes, name, unit or (f"validation {score}" if arm.results.split == "validation" else score))

    series = [sweep.series for sweep in part]
    return Panel(draw, WIDTH, HEIGHT, title, series, lines=all(sweep.joined for sweep in part))


def _axis_of_values(axes: Axes, values: Sequence[float]) -> None:
    """Use the values as ticks or, if they are many and span at least two decades, a logarithmic axis."""
    if len(values) > MANY_VALUES and values[-1] >= 100 * values[0] > 0:
        style.log_axis(axes, "x")
    else:
        style.value_axis(axes, "x", values, room=5)


def _draw_ring(axes: Axes, place: tuple[float, float] | None) -> None:
    if place is not None:
        axes.plot(*([at] for at in place), "o", markersize=12, markerfacecolor="none", color=style.INK, label=RING)


def _against(sweep: Sweep) -> list[tuple[float, list[tuple[float, float]]]]:
    """Return each value of the hyper-parameter with a (learning accuracy, forgetting) pair for each seed with both."""
    found = []
    for value, series in sweep.points:
        pairs = [[series.arm.value(m, t.seed) for m in ("learning_accuracy", "forgetting")] for t in series.trials]
        defined = [(learnt, forgotten) for learnt, forgotten in pairs if math.isfinite(learnt + forgotten)]
        if defined:
            found.append((value, defined))
    return found


def _scatter(sweep: Sweep, drawn: Sequence[Sweep]) -> Panel:
    """Return the panel of one sweep; the panels of all `drawn` sweeps have the same axis limits."""

    def draw(axes: Axes) -> None:
        points = [point for other in drawn for _, pairs in _against(other) for point in pairs]
        limits = [_limits([point[i] for point in points]) for i in (0, 1)]
        axes.set(xlim=limits[0], ylim=limits[1])
        shown, found = style.look(sweep.series), _against(sweep)
        centres = [(mean([p[0] for p in pairs]), mean([p[1] for p in pairs])) for _, pairs in found]
        xs, ys = [x for x, _ in centres], [y for _, y in centres]
        if sweep.joined:
            axes.plot(xs, ys, color=shown.colour, linewidth=0.9, alpha=0.6, label="_path")
        for _, pairs in found:
            style.draw_seeds(axes, [x for x, _ in pairs], [y for _, y in pairs], shown)
        style.draw_centres(axes, centres, shown)
        learnt, forgotten = sweep.ring("learning_accuracy"), sweep.ring("forgetting")
        at_value = learnt[0] if learnt else None
        _draw_ring(axes, (learnt[1], forgotten[1]) if learnt and forgotten else None)
        every = len(found) <= MANY_VALUES
        named = [i for i, (value, _) in enumerate(found) if every or i in (0, len(found) - 1) or value == at_value]
        centres, texts = [centres[i] for i in named], [style.short(float(f"{found[i][0]:.3g}")) for i in named]
        size = ((SCATTER_WIDTH - 0.75) * 72, (SCATTER_HEIGHT - 0.75) * 72)
        name_points(axes, centres, texts, limits, size)
        learning = "learning score" if sweep.series.arm.in_bits else "learning accuracy"
        style.labels(axes, learning, "forgetting")

    which = "each mean" if len(_against(sweep)) <= MANY_VALUES else "some means"
    title = f"{sweep.series.label}, {sweep.hyperparameter} next to {which}"
    return Panel(draw, SCATTER_WIDTH, SCATTER_HEIGHT, title)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits with margins for labels."""
    air = 0.12 * (max(values) - min(values)) or 0.01
    return min(values) - air, max(values) + air


def _listing(names: Sequence[str]) -> str:
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return text[:1].upper() + text[1:]
