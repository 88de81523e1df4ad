"""Text that all formats of the page share: the title, verdicts in one word, and notes."""

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
"""Verdicts in at most six letters; verdicts that are not listed here are short enough already."""


def title(found: Fingerprint) -> str:
    return f"Fingerprint of {found.name}"


def subtitle(found: Fingerprint) -> str:
    """Return a subtitle, e.g. `./mine.py:Mine, 10 seeds, compared with 25 optimizers`."""
    what = "" if found.entry.target == found.name else f"{found.entry.target}, "
    return f"{what}{count(found.seeds, 'seed')}, compared with {count(len(found.panel.entries), 'optimizer')}"


def own(found: Fingerprint) -> str:
    """Return the optimizer's legend entry, with a mention of intervals if there are any."""
    return f"{found.name}, 95% interval" if any(one.interval for one in found.standings) else found.name


def verdict(one: Judged) -> str:
    return SHORT.get(one.verdict, str(one.verdict))


def value(one: Standing) -> str:
    return fixed(one.centre, one.strip.digits)


def value_with_interval(one: Standing) -> str:
    """Format the value as `0.036 [0.031, 0.041]`, or return the reason why there is no value."""
    if one.centre is None:
        return one.obstacle
    return f"{value(one)} {interval(one.interval, one.strip.digits)}".strip()


def place(one: Standing) -> str:
    """Return how many of the panel's optimizers with a value are below this one, e.g. `18/25`."""
    return UNDEFINED if one.centre is None else f"{one.below}/{len(one.ticks)}"


def rates(found: Fingerprint) -> str:
    """Return sentences on the learning rate used on each experiment, and on the width of the optimum."""
    entry = found.entry
    known = {name: rate for name, values in entry.settings.items() if (rate := _rate(values)) is not None}
    said = ", ".join(f"{rate:g} on {name}" for name, rate in known.items())
    if not said:
        return "It has no learning rate."
    if entry.tuning is not None:
        how = f", tuned on {count(entry.tuning.seeds, 'seed')}"
    else:
        how = ", as given" if entry.width is None else ""
    optimum = ""
    if entry.width is not None:
        optimum = f" On permuted, learning accuracy is within 1% of its best over {entry.width} of learning rates."
    return f"Learning rates{how}: {said}.{optimum}"


def _rate(values: object) -> float | None:
    """Return the learning rate of an optimizer, or of its base; None if neither has one."""
    if not isinstance(values, dict):
        return None
    rate = values.get("lr")
    if isinstance(rate, int | float) and not isinstance(rate, bool):
        return float(rate)
    return _rate(values.get("base"))


def notes(found: Fingerprint) -> list[str]:
    """Return the notes that explain how to read the page."""
    dot = ", with its 95% interval over seeds" if any(one.interval for one in found.standings) else ""
    said = [
        f"Ticks: the optimizers of the panel, each with its best learning rates. Dot: this optimizer{dot}. Below: how "
        "many optimizers of the panel are below it, out of those with a value."
    ]
    if found.has_verdicts:
        said.append(
            "Verdicts: signed-rank tests over paired seeds, with Holm's correction over "
            f"{len(STRIPS)} strips. Equal: no difference above the margin. Open: these seeds do not show whether there "
            "is one."
        )
    else:
        said.append(
            f"No verdicts: {count(found.seeds, 'seed')} cannot show a difference over {len(STRIPS)} strips; "
            f"{found.seeds_for_verdicts} can."
        )
    said.append(
        "The networks are small and trained on MNIST: a difference shows what an optimizer does there, not at scale."
    )
    return said
