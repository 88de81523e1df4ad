"""What every form of the page says in the same words: title, verdicts in a word, notes."""

from __future__ import annotations

from optbench.counting import count
from optbench.report.numbers import UNDEFINED, fixed, interval
from optbench.stats.verdict import Verdict
from optbench.studies.fingerprint.standing import Fingerprint, Judged, Standing
from optbench.studies.fingerprint.strips import STRIPS

SHORT = {
    Verdict.EQUIVALENT: "equal",
    Verdict.BELOW_MARGIN: "equal",
    Verdict.NO_EVIDENCE: "open",
    Verdict.NOT_COMPARABLE: UNDEFINED,
}
"""Verdicts in one word of at most six letters; the others are one already."""


def title(found: Fingerprint) -> str:
    return f"Fingerprint of {found.name}"


def subtitle(found: Fingerprint) -> str:
    """`./mine.py:Mine, 10 seeds, beside 25 optimizers`."""
    what = "" if found.entry.target == found.name else f"{found.entry.target}, "
    return f"{what}{count(found.seeds, 'seed')}, beside {count(len(found.panel.entries), 'optimizer')}"


def verdict(one: Judged) -> str:
    return SHORT.get(one.verdict, str(one.verdict))


def value(one: Standing) -> str:
    return fixed(one.centre, one.strip.digits)


def value_with_interval(one: Standing) -> str:
    """`0.036 [0.031, 0.041]`, or why there is none."""
    if one.centre is None:
        return one.obstacle
    return f"{value(one)} {interval(one.interval, one.strip.digits)}".strip()


def place(one: Standing) -> str:
    """`18/25`: how many of the panel lie below it."""
    return UNDEFINED if one.centre is None else f"{one.below}/{len(one.ticks)}"


def rates(found: Fingerprint) -> str:
    """Which learning rate it had on each experiment, and how wide the optimum is."""
    entry = found.entry
    known = {name: rate for name, values in entry.settings.items() if (rate := _rate(values)) is not None}
    said = ", ".join(f"{rate:g} on {name}" for name, rate in known.items())
    if entry.width is None:
        return f"Learning rates, as given: {said}." if said else "It has no learning rate."
    return f"Learning rates: {said}. On permuted it learns within 1% of its best over {entry.width}."


def _rate(values: object) -> float | None:
    """The rate of an optimizer, or of the one inside it."""
    if not isinstance(values, dict):
        return None
    rate = values.get("lr")
    if isinstance(rate, int | float) and not isinstance(rate, bool):
        return float(rate)
    return _rate(values.get("base"))


def notes(found: Fingerprint) -> list[str]:
    """What a reader needs to read the page."""
    dot = ", with its 95% interval over seeds" if any(one.interval for one in found.standings) else ""
    said = [
        f"Ticks: the panel, each at its own best learning rates. Dot: this optimizer{dot}. Below: how many of those of "
        "the panel that have a value lie below it."
    ]
    if found.has_verdicts:
        said.append(
            "Verdicts: signed-rank tests over paired seeds, Holm's correction over "
            f"{len(STRIPS)} strips; equal: no difference worth a word; open: these seeds settle nothing."
        )
    else:
        said.append(
            f"No verdicts: {count(found.seeds, 'seed')} cannot show a difference over {len(STRIPS)} strips; "
            f"that takes {found.seeds_for_verdicts}."
        )
    said.append(
        "Small networks on MNIST: a difference here says what an optimizer does there, not what it does at scale."
    )
    return said
