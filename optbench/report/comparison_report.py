"""The report on a comparison: verdicts, the underlying numbers, and CI gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from optbench.counting import count
from optbench.report.document import Block, Cell, Fold, Heading, Items, Paragraph, Report, Table, Tone, columns
from optbench.report.numbers import (
    NOT_LEARNT,
    decimals,
    dormant_line,
    estimate,
    fixed,
    losses,
    marked,
    name_with_arrow,
    p_value,
    signed,
    words,
)
from optbench.report.records import COMPARISON_COLUMNS, comparison_records
from optbench.stats.comparison import ArmComparison, Comparison, MetricComparison, Side
from optbench.stats.dormant import is_rank
from optbench.stats.gates import GateResult, JudgedGate
from optbench.stats.power import smallest_holm_p
from optbench.stats.signed_rank import smallest_p
from optbench.stats.verdict import Judgement, Verdict

TONES: Mapping[Verdict, Tone] = {Verdict.BETTER: "good", Verdict.WORSE: "bad", Verdict.NOT_COMPARABLE: "warning"}
GATE_TONES: Mapping[GateResult, Tone] = {
    GateResult.PASSED: "good",
    GateResult.FAILED: "bad",
    GateResult.INCONCLUSIVE: "warning",
}

MANY_PAIRS = 12
"""Number of pairs of arms above which exploratory metrics are left out, unless requested."""


def comparison_report(
    comparison: Comparison,
    gates: Sequence[JudgedGate] = (),
    metrics: Sequence[str] = (),
    *,
    everything: bool = False,
) -> Report:
    """Build the document on a comparison.

    metrics: the metrics to show; all of them if empty.
    everything: whether to show exploratory metrics in the same table as the primary ones. By default, they are in a
        separate, folded table, or omitted if there are more than `MANY_PAIRS` pairs.
    """
    blocks: list[Block] = [Paragraph(_sides(comparison))]
    if tuning := [s.results.run.id for s in (comparison.a, comparison.b) if s.results.split == "validation"]:
        said = f"accuracies of {' and '.join(dict.fromkeys(tuning))} are on validation data (tuning run)"
        blocks.append(Items((said,), "warning"))
    if comparison.remarks:
        blocks.append(Items(comparison.remarks, "warning"))
    blocks += _gates(gates)
    if len(comparison.pairs) > 1:
        blocks += _overview(comparison)
    many = len(comparison.pairs) > MANY_PAIRS and not metrics and not everything
    for pair in comparison.pairs:
        blocks += _pair(comparison, pair, metrics, primary_only=many, everything=everything)
    if many:
        said = f"With more than {MANY_PAIRS} pairs, only the primary metrics are shown here;"
        blocks.append(Paragraph(f"{said} --all, --metric, csv and json show the others.", "quiet"))
    blocks.append(Items(_LEGEND, "quiet"))
    blocks += comparison_records(comparison, gates, metrics)
    return Report("optbench compare", tuple(blocks), "optbench-comparison", COMPARISON_COLUMNS)


def arm_name(comparison: Comparison, pair: ArmComparison, side: str) -> str:
    """Return the name of an arm: `shampoo` in a comparison within one run, `shampoo in <run>` between runs."""
    arm = pair.a if side == "A" else pair.b
    same_run = comparison.a.results.run.path.resolve() == comparison.b.results.run.path.resolve()
    return arm.label if same_run else f"{arm.label} in {arm.results.run.id}"


def place(pair: ArmComparison) -> str:
    return f"{pair.a.experiment}, {pair.a.model}"


_LEGEND = (
    "A - B: Hodges-Lehmann estimate of the paired difference, with the 95% interval of the exact signed-rank test.",
    "Verdicts describe A relative to B: better or worse (higher or lower for neutral metrics); below margin: the "
    "difference is significant but smaller than the margin; equivalent: the 90% interval lies within the margin.",
    "Only the primary metrics have verdicts; their p is corrected by Holm's method over the primary metrics of one "
    "pair. All other metrics are exploratory.",
    "wins: seeds on which A is better (higher, for a neutral metric). d_z: mean over standard deviation of "
    "the differences. r: rank-biserial correlation.",
)


def _sides(comparison: Comparison) -> str:
    names = [
        f"{s.results.run.id}{f':{s.optimizer}' if s.optimizer else ''}{f'/{s.variant}' if s.variant else ''}"
        for s in (comparison.a, comparison.b)
    ]
    return f"A = {names[0]}, B = {names[1]}; every difference is A - B"


def _gates(gates: Sequence[JudgedGate]) -> Iterable[Block]:
    if not gates:
        return
    rows = []
    for judged in gates:
        found = judged.pair.metric(judged.gate.metric)
        digits = decimals(judged.gate.metric)
        result = found.result if found else None
        shown = estimate(result.difference, result.interval, digits) if result else "–"
        who = f"{place(judged.pair)}: {_who(judged.pair)}"
        cells = (Cell(judged.gate.text), Cell(who), Cell(shown), Cell(judged.result, GATE_TONES[judged.result]))
        rows.append((*cells, Cell(judged.reason)))
    titles = (*columns("gate", "where", "A - B [95%]", texts=2), *columns("result", "why", texts=2))
    yield Table("Gates", titles, tuple(rows), keys=1)


def _overview(comparison: Comparison) -> Iterable[Block]:
    judged = {m.metric.name: m.metric for pair in comparison.pairs for m in pair.metrics if m.judgement}
    titles = ("where", "A against B", *map(name_with_arrow, judged.values()))
    rows = []
    for pair in comparison.pairs:
        cells = [judged_cell(pair.metric(name), with_size=True) for name in judged]
        rows.append((Cell(place(pair)), Cell(_who(pair)), *cells))
    yield Table("Verdicts", columns(*titles, texts=len(titles)), tuple(rows), keys=2)


def _who(pair: ArmComparison) -> str:
    """Return the names of the two arms, each marked if it failed to learn a task; one name if both are the same."""
    labels = dict.fromkeys(marked(arm.label, arm.shortcoming) for arm in (pair.a, pair.b))
    return " against ".join(labels)


def judged_cell(found: MetricComparison | None, *, with_size: bool = False) -> Cell:
    """Return a cell with the verdict on a metric, or `exploratory` if the metric is not judged.

    with_size: whether to append the difference to the verdict; it is never appended to `not comparable`.
    """
    if found is None or found.judgement is None:
        return Cell("exploratory", "quiet")
    verdict = found.judgement.verdict
    text = str(verdict)
    if with_size and verdict is not Verdict.NOT_COMPARABLE:
        text += f" {signed(found.result.difference, decimals(found.metric.name))}"
    return Cell(text, TONES.get(verdict, "plain"))


def _pair(
    comparison: Comparison, pair: ArmComparison, metrics: Sequence[str], *, primary_only: bool, everything: bool
) -> Iterable[Block]:
    a, b = (arm_name(comparison, pair, side) for side in ("A", "B"))
    yield Heading(f"{place(pair)}: {a} against {b}", 2)
    yield Items(tuple(_header(pair)), "quiet")
    unlisted = pair.a.results.unlisted[pair.a.experiment] & pair.b.results.unlisted[pair.b.experiment]
    chosen = [found for found in pair.metrics if found.judgement is not None or not primary_only]
    listed = [found for found in chosen if found.judgement is not None or found.metric.name not in unlisted]
    empty = [found for found in listed if found.judgement is None and not found.has_values]
    shown = [found for found in listed if found not in empty]
    if metrics:
        shown, empty = [found for found in chosen if found.metric.name in metrics], []
    if warnings := [*_warnings(pair), *_dormant(pair, shown)]:
        yield Items(tuple(warnings), "warning")
    exploratory = [found for found in shown if found.judgement is None]
    folded = exploratory if len(exploratory) < len(shown) and not metrics and not everything else []
    caption = f"{place(pair)}: {a} (A) against {b} (B)"
    if shown:
        yield _table(caption, [found for found in shown if found not in folded])
    reasons = [
        f"{found.metric.name.replace('_', ' ')}: {found.judgement.verdict}: {found.judgement.reason}"
        for found in shown
        if found.judgement is not None and found.judgement.reason and not _said(pair, found.judgement)
    ]
    if reasons:
        yield Items(tuple(reasons))
    names = ", ".join(found.metric.name.replace("_", " ") for found in empty)
    no_value = (Paragraph(f"No value on either side: {names}.", "quiet"),) if empty else ()
    if folded:
        table = _table(f"{caption}, exploratory metrics", folded, judged=False)
        what = count(len(folded), "exploratory metric")
        instead = f"Not shown: {what}; --all shows them, as do markdown, html, latex, csv and json."
        yield Fold(f"Exploratory metrics: {caption}", (table, *no_value), instead=instead)
    else:
        yield from no_value
    if not metrics and (left_out := len(chosen) - len(shown) - len(empty)):
        what = count(left_out, "metric that is", "metrics that are")
        yield Paragraph(f"Not shown: {what} measured for readings of claims; --metric NAME shows one.", "quiet")


def _said(pair: ArmComparison, judgement: Judgement) -> bool:
    """Return whether the comparison's remark on too few seeds already explains a judgement."""
    return judgement.seeds_needed is not None and len(pair.seeds) < judgement.seeds_needed


def _header(pair: ArmComparison) -> Iterable[str]:
    yield f"{len(pair.seeds)} of {count(pair.planned, 'seed')} paired" + (
        "" if pair.same_start is None else f"; initial weights {'match' if pair.same_start else 'differ'}"
    )
    tuning = [arm.tuning for arm in (pair.a, pair.b)]
    if None in tuning:
        yield "tuning budgets: not stated for " + " and ".join(
            dict.fromkeys(arm.label for arm in (pair.a, pair.b) if arm.tuning is None)
        )
    else:
        costs = [f"{count(cost.settings, 'setting')} × {count(cost.seeds, 'seed')}" for cost in tuning if cost]
        yield (
            f"tuning budgets: equal, {costs[0]}"
            if costs[0] == costs[1]
            else (f"tuning budgets differ: A {costs[0]}, B {costs[1]}")
        )
    n = len(pair.seeds)
    least = f"smallest two-sided p for {count(n, 'pair')}: {p_value(smallest_p(n))}"
    if m := pair.family:
        least += (
            f"; smallest p after Holm's correction over {count(m, 'primary metric')}: {p_value(smallest_holm_p(n, m))}"
        )
    yield least


def _warnings(pair: ArmComparison) -> Iterable[str]:
    for side, arm in (("A", pair.a), ("B", pair.b)):
        if lost := losses(arm.counts):
            yield f"{side} ({arm.label}), of {count(len(arm.trials), 'trial')}: {lost}"
        if said := arm.learning_warning:
            yield f"{NOT_LEARNT} {side} ({arm.label}): {said}"
    if (learns_less := pair.retains_by_learning_less) is not None:
        yield _learns_less(pair, learns_less)


def _learns_less(pair: ArmComparison, side: Side) -> str:
    """Return the remark on a side that forgets less than the other side and also learns less."""
    (less, first), (more, second) = sorted((("A", pair.a), ("B", pair.b)), key=lambda named: named[0] != side)
    learning = pair.metric("learning_accuracy")
    assert learning is not None
    name, digits = words("learning_accuracy", pair.a.in_bits), decimals("learning_accuracy")
    return (
        f"{less} ({first.label}) forgets less than {more} ({second.label}) but also learns less, and so has less to "
        f"forget: the difference in {name}, {signed(learning.result.difference, digits)}, exceeds the margin of "
        f"{learning.metric.margin:g}. docs/matched.md explains how to compare optimizers at equal learning."
    )


def _dormant(pair: ArmComparison, shown: Sequence[MetricComparison]) -> Iterable[str]:
    """Return the remark on networks with many dormant units, or nothing if no metric in `shown` is a rank."""
    sides = (("A", pair.a), ("B", pair.b))
    named = [f"{side} ({arm.label}), {said}" for side, arm in sides if (said := arm.many_dormant)]
    return [dormant_line(named)] if named and any(is_rank(found.metric.name) for found in shown) else []


def _table(caption: str, shown: Sequence[MetricComparison], *, judged: bool = True) -> Table:
    """Return the table of metrics; if `judged`, include columns for the verdicts and for p after Holm's correction."""
    numeric = (
        "A\nmedian",
        "B\nmedian",
        "A - B\n[95% interval]",
        "p",
        *(("Holm p",) if judged else ()),
        "n",
        "diverged\nA, B",
        "wins",
        "d_z",
        "r",
    )
    rows = []
    for found in shown:
        result, digits = found.result, decimals(found.metric.name)
        wins = "" if result.wins is None else f"{round(result.wins * result.n)} of {result.n}"
        cells = (
            fixed(result.median_a, digits),
            fixed(result.median_b, digits),
            estimate(result.difference, result.interval, digits),
            p_value(result.p),
            *((p_value(found.judgement.holm_p) if found.judgement else "",) if judged else ()),
            str(result.n) if result.n == result.pairs else f"{result.n} of {result.pairs}",
            f"{result.diverged_a}, {result.diverged_b}",
            wins,
            signed(result.d_z, 2),
            signed(result.rank_biserial, 2),
        )
        verdict = (judged_cell(found),) if judged else ()
        rows.append((Cell(name_with_arrow(found.metric)), *verdict, *map(Cell, cells)))
    texts = ("metric", "verdict") if judged else ("metric",)
    return Table(caption, columns(*texts, *numeric, texts=len(texts)), tuple(rows), keys=1)
