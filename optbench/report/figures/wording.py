"""Captions of figures: the number of seeds, the seeds that are not shown and why, and the main numbers."""

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
"""Maximum number of values in a sentence."""
ENDS: tuple[tuple[Status, str], ...] = (
    ("diverged", "diverged"),
    ("failed", "failed"),
    ("above_target", "ended above the target training loss"),
    ("missing", "not finished"),
)
"""The states of trials that are not drawn, and their wording."""


def caption(what: str, shown: Sequence[tuple[Group, Sequence[Series]]]) -> str:
    """Return a caption: `what`, the number of seeds, and the trials and variants that are not drawn.

    shown: the drawn series, with their groups.
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
    """Return the figure of the given kind about a group, with a caption that covers every series shown."""
    return Figure(
        name=group.figure_name(kind),
        title=f"{group.experiment}, {group.model}: {title}",
        caption=caption(what, [(group, group.shown)]),
        alt=alt,
        panels=tuple(panels),
    )


def score_of(series: Iterable[Series]) -> str:
    """Return what the accuracy matrix holds, in words: `accuracy` or, for text, `-bits per byte`."""
    return score_word(any(one.arm.in_bits for one in series))


def metric_words(series: Iterable[Series], metric: str) -> str:
    """Return a metric's name as an axis label: `forgetting` or, for text, `forgetting (bits per byte)`."""
    known = next((one.arm.metrics.get(metric) for one in series if one.arm.in_bits), None)
    unit = f" ({known.unit})" if known and known.unit else ""
    return words(metric, known is not None) + unit


def accuracy(series: Iterable[Series]) -> str:
    """Return the name of scores: `Test accuracy`, or `Validation accuracy` if all series come from tuning runs.

    If only some do, the name mentions both splits. On text, scores are negative bits per byte.
    """
    every = list(series)
    splits = {one.arm.results.split for one in every}
    score = f"negative {UNIT}" if any(one.arm.in_bits for one in every) else "accuracy"
    return f"{_capital(splits.pop())} {score}" if len(splits) == 1 else f"Test {score} (validation in a tuning run)"


def seeds(series: Sequence[Series]) -> str:
    """Format the number of seeds drawn: `10 seeds`, or `8 to 10 seeds` if the series differ."""
    counts = sorted({len(one.trials) for one in series if one.trials})
    if not counts:
        return "no seed"
    most = count(counts[-1], "seed")
    return most if len(counts) == 1 else f"{counts[0]} to {most}"


def means(values: Iterable[tuple[str, float]], decimals: int = 3) -> str:
    """Format means, e.g. `sgd 0.931, adamw 0.923`. If there are many, include only the lowest and the highest."""
    defined = [(label, value) for label, value in values if math.isfinite(value)]
    if len(defined) > MANY_NUMBERS:
        low, high = (pick(defined, key=lambda pair: pair[1]) for pick in (min, max))
        return f"from {low[1]:.{decimals}f} ({low[0]}) to {high[1]:.{decimals}f} ({high[0]})"
    return ", ".join(f"{label} {value:.{decimals}f}" for label, value in defined)


def _gone(series: Sequence[tuple[Series, str]]) -> list[str]:
    """Describe trials that are not drawn, e.g. `2 of 10 seeds of adamw diverged`; merge series with equal counts."""
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
    """List the omitted variants by name if there are few; otherwise count them by optimizer."""
    missing = {s.label: s for group in groups for s in group.left_out if s.label not in drawn}
    if len(missing) <= MANY_NUMBERS:
        return ", ".join(missing)
    left = Counter(series.arm.optimizer for series in missing.values())
    every = Counter(s.arm.optimizer for s in {s.label: s for group in groups for s in group.series}.values())
    return ", ".join(f"{out} of {count(every[name], 'variant')} of {name}" for name, out in left.items())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
