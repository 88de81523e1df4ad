"""The words under figures: how many seeds are shown, which are not and why, and the main numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence, Set

from optbench.counting import count, grouped
from optbench.metrics.score import UNIT, score_word
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series
from optbench.report.numbers import words
from optbench.stats.arms import Status

MANY_NUMBERS = 8
"""One sentence does not bear more of them."""
ENDS: tuple[tuple[Status, str], ...] = (("diverged", "diverged"), ("failed", "failed"), ("missing", "not finished"))


def caption(what: str, shown: Sequence[tuple[Group, Sequence[Series]]]) -> str:
    """`what` is shown, of how many seeds; then, of the same groups, what is not drawn and why.

    shown: the series that are drawn, with the group they come from.
    """
    several = len({group.model for group, _ in shown}) > 1
    everything = [series for _, drawn in shown for series in drawn]
    sentences = [what, f"{_capital(seeds(everything))}."]
    if gone := _gone([(series, group.model if several else "") for group, drawn in shown for series in drawn]):
        sentences.append(f"Not drawn: {'; '.join(gone)}.")
    if left_out := _left_out([group for group, _ in shown], {series.label for series in everything}):
        sentences.append(f"Left out: {left_out}.")
    return " ".join(sentences)


def group_figure(group: Group, kind: str, title: str, what: str, alt: str, panels: Iterable[Panel]) -> Figure:
    """The figure of this kind about a group, with what is said of every series that the group shows."""
    return Figure(
        name=group.figure_name(kind),
        title=f"{group.experiment}, {group.model}: {title}",
        caption=caption(what, [(group, group.shown)]),
        alt=alt,
        panels=tuple(panels),
    )


def score_of(series: Iterable[Series]) -> str:
    """What R holds of the experiment that is drawn: `accuracy`, or of text `-bits per byte`."""
    return score_word(any(one.arm.in_bits for one in series))


def metric_words(series: Iterable[Series], metric: str) -> str:
    """What a metric is called on an axis: `forgetting`, of text `forgetting (bits per byte)`."""
    known = next((one.arm.metrics.get(metric) for one in series if one.arm.in_bits), None)
    unit = f" ({known.unit})" if known and known.unit else ""
    return words(metric, known is not None) + unit


def accuracy(series: Iterable[Series]) -> str:
    """`Test accuracy`, `Validation accuracy` of tuning runs, and what a mixture of both has; of text bits per byte."""
    every = list(series)
    splits = {one.arm.results.split for one in every}
    score = f"{UNIT} with the sign turned" if any(one.arm.in_bits for one in every) else "accuracy"
    return f"{_capital(splits.pop())} {score}" if len(splits) == 1 else f"Test {score} (of a tuning run validation)"


def seeds(series: Sequence[Series]) -> str:
    """`10 seeds`, or `8 to 10 seeds` where some did not end well."""
    counts = sorted({len(one.trials) for one in series if one.trials})
    if not counts:
        return "no seed"
    most = count(counts[-1], "seed")
    return most if len(counts) == 1 else f"{counts[0]} to {most}"


def means(values: Iterable[tuple[str, float]], decimals: int = 3) -> str:
    """`sgd 0.931, adamw 0.923`: all of them where they are few, else the lowest and the highest."""
    defined = [(label, value) for label, value in values if math.isfinite(value)]
    if len(defined) > MANY_NUMBERS:
        low, high = (pick(defined, key=lambda pair: pair[1]) for pick in (min, max))
        return f"from {low[1]:.{decimals}f} ({low[0]}) to {high[1]:.{decimals}f} ({high[0]})"
    return ", ".join(f"{label} {value:.{decimals}f}" for label, value in defined)


def _gone(series: Sequence[tuple[Series, str]]) -> list[str]:
    """`2 of 10 seeds of adamw diverged`; series of which the same is to be said share a part."""
    found = grouped(
        ((f"{ended} of {count(len(one.arm.trials), 'seed')}", said), f"{one.label} at {model}" if model else one.label)
        for one, model in series
        for status, said in ENDS
        if (ended := one.arm.count(status))
    )
    return [
        f"{which} {'each ' if len(names) > 1 else ''}of {', '.join(names)} {said}"
        for (which, said), names in found.items()
    ]


def _left_out(groups: Sequence[Group], drawn: Set[str]) -> str:
    """The variants by name where they are few, else how many of each optimizer."""
    missing = {s.label: s for group in groups for s in group.left_out if s.label not in drawn}
    if len(missing) <= MANY_NUMBERS:
        return ", ".join(missing)
    left = Counter(series.arm.optimizer for series in missing.values())
    every = Counter(s.arm.optimizer for s in {s.label: s for group in groups for s in group.series}.values())
    return ", ".join(f"{out} of {count(every[name], 'variant')} of {name}" for name, out in left.items())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
