"""Switched optimizers in a report: where their solutions lie between those of the pure arms, by k."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from optbench.counting import grouped
from optbench.report.document import Block, Cell, Heading, Items, Table, columns
from optbench.report.measures import TITLES
from optbench.report.numbers import UNDEFINED, decimals, fixed, interval, name_with_arrow, signed, words
from optbench.report.spread import SpreadText
from optbench.stats.bootstrap import RESAMPLES
from optbench.studies.switching.statistics import Estimate, Side, Switching, SwitchKind, SwitchPoint

TITLE = "Switching optimizers"
RHO_DIGITS = 2
BARRIER_DIGITS = 3
SIDES: tuple[Side, ...] = ("first", "then")
LETTERS: dict[Side, str] = {"first": "A", "then": "B"}

MEANINGS: dict[SwitchKind, str] = {
    "switch": "ρ(k) = (m_AB(k) - m_B) / (m_A - m_B), after k steps with A and all others with B: 0 where the solution "
    "is that of B alone, 1 where it is that of A alone; a ratio of means over the seeds of all three arms. It is "
    "undefined unless A and B differ: signed-rank p of at most .05, uncorrected; 5 seeds must all agree in sign, and "
    "fewer are not sufficient.",
    "control": "Control, a switch from an optimizer to itself: mean difference from that optimizer alone.",
    "noise": "Noise on the gradients of the first k steps: mean difference from the same optimizer without noise.",
}
INTERVALS = (
    f"[95% interval]: percentile bootstrap over seeds, {RESAMPLES} resamples; too narrow for few seeds (it covers 84% "
    "at 5 seeds and 92% at 10), and not used for verdicts."
)
BARRIER = "Barrier: loss barrier on the straight line to the solution of A or B alone, mean over seeds."


def switching_blocks(found: Sequence[Switching], several: bool, _: SpreadText) -> Iterable[Block]:
    """Yield a table for each sweep of k that has measurements, with the reasons for missing values, and a legend."""
    shown = [switching for switching in found if switching.metrics]
    if not shown:
        return
    yield Heading(TITLE)
    for switching in shown:
        yield _table(switching, several)
        if reasons := list(_reasons(switching)):
            yield Items(tuple(reasons), "quiet")
    kinds = {switching.kind for switching in shown}
    legend = [text for kind, text in MEANINGS.items() if kind in kinds]
    barriers = [BARRIER] if any(_sides(switching) for switching in shown) else []
    yield Items((*legend, INTERVALS, *barriers), "quiet")


def heading(switching: Switching) -> str:
    """Return a heading, e.g. `sgd (A), then adam (B), state reset`."""
    state = f", state {switching.state}" if switching.state else ""
    return {
        "switch": f"{switching.first} (A), then {switching.then} (B){state}",
        "control": f"{switching.then}, switched to itself{state}",
        "noise": f"{switching.then}, with noise in its first k steps",
    }[switching.kind]


def steps_text(point: SwitchPoint) -> str:
    """Format k as `16`, as `4000 (all)` if no trial took more than k steps, or as `all` if k is infinite."""
    return "all" if math.isinf(point.k) else f"{point.k}{' (all)' if point.whole else ''}"


def estimate_text(switching: Switching, estimate: Estimate, metric: str) -> str:
    """Format ρ, e.g. `0.43 [0.31, 0.55]`, or a difference, e.g. `+0.012 [0.004, 0.021]`; `–` if undefined."""
    if estimate.value is None:
        return UNDEFINED
    digits = RHO_DIGITS if switching.statistic == "rho" else decimals(metric)
    number = (fixed if switching.statistic == "rho" else signed)(estimate.value, digits)
    return f"{number} {interval(estimate.interval, digits)}".strip()


def _table(switching: Switching, several: bool) -> Table:
    sides = _sides(switching)
    titles = [_title(switching, metric) for metric in switching.metrics]
    titles += [f"barrier\nto {LETTERS[side] if switching.kind == 'switch' else 'it'}" for side in sides]
    rows = []
    for point in switching.points:
        estimates = [switching.estimate(point, metric) for metric in switching.metrics]
        cells = [
            Cell(estimate_text(switching, estimate, metric))
            for estimate, metric in zip(estimates, switching.metrics, strict=True)
        ]
        barriers = [Cell(_barrier_text(switching.barrier(point, side))) for side in sides]
        rows.append((Cell(steps_text(point)), _seeds(point, estimates), *cells, *barriers))
    experiment, model = switching.place
    place = ", ".join([*([switching.results.run.id] if several else []), experiment, model, switching.label])
    what = "ρ" if switching.statistic == "rho" else "difference"
    return Table(f"{place}: {heading(switching)}: {what} by k", columns("k", "seeds", *titles), tuple(rows), keys=2)


def _title(switching: Switching, metric: str) -> str:
    """Return the title of a column, with the metric's arrow for a difference; ρ has no preferred direction."""
    arm = switching.points[0].arm
    known = arm.metrics[metric]
    title = TITLES.get(metric, words(metric))
    if known.said:
        title = title.replace("accuracy", "score")
    if switching.statistic == "rho":
        return title
    return f"{title}{name_with_arrow(known).removeprefix(words(metric, arm.in_bits))}"


def _seeds(point: SwitchPoint, estimates: Sequence[Estimate]) -> Cell:
    """Return the number of seeds in a row's estimates, followed by the number of planned seeds if the two differ."""
    counts, planned = sorted({estimate.n for estimate in estimates}), len(point.arm.trials)
    if counts == [planned]:
        return Cell(str(planned))
    some = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Cell(f"{some} of {planned}", "warning")


def _barrier_text(estimate: Estimate | None) -> str:
    if estimate is None:
        return UNDEFINED
    return f"{fixed(estimate.value, BARRIER_DIGITS)} {interval(estimate.interval, BARRIER_DIGITS)}".strip()


def _sides(switching: Switching) -> list[Side]:
    """Return the sides with measured barriers; only `then` for a control, whose A and B are equal, and for noise."""
    return [
        side
        for side in (SIDES if switching.kind == "switch" else SIDES[1:])
        if any(switching.barrier(point, side) for point in switching.points)
    ]


def _reasons(switching: Switching) -> Iterable[str]:
    """Yield one sentence for each reason why values are missing."""
    steps = grouped(
        ((metric, reason), steps_text(point))
        for metric in switching.metrics
        for point in switching.points
        if (reason := switching.estimate(point, metric).reason)
    )
    in_bits = switching.points[0].arm.in_bits
    shared = grouped(((reason, tuple(ks)), words(metric, in_bits)) for (metric, reason), ks in steps.items())
    what = "ρ" if switching.statistic == "rho" else "difference"
    for (reason, where), metrics in shared.items():
        at = "" if len(where) == len(switching.points) else f" at k = {', '.join(where)}"
        yield f"no {what} for {', '.join(metrics)}{at}: {reason}"
