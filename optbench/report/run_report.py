"""The report on runs: tables over seeds, accuracy matrices, claims, and provenance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from functools import partial

import numpy as np

from optbench.counting import count, grouped
from optbench.report import document as doc
from optbench.report.claims import claim_blocks
from optbench.report.layout import one_line
from optbench.report.measures import LEGENDS, OF_TEXT, TITLES, TOPICS, Measure, named_legend
from optbench.report.numbers import (
    NOT_LEARNT,
    NOT_OK,
    UNDEFINED,
    decimals,
    dormant_line,
    fixed,
    interval,
    losses,
    marked,
    name_with_arrow,
    words,
)
from optbench.report.primary import primary_blocks
from optbench.report.records import report_records, result_columns
from optbench.report.sparks import bar, spark, thinned
from optbench.report.spread import SpreadText, Statistic, spread_text
from optbench.report.summary import RunSummary, Section, Summary, SummaryRow
from optbench.stats.dormant import is_rank

FORGETTING = "forgetting"
SWEPT = ("learning_accuracy", "average_accuracy", FORGETTING)
FEWEST_SWEPT = 3
"""Minimum number of settings for which a sweep is drawn as bars."""
BAR = 10
"""Width of a bar from 0 to 1, in characters."""
MANY_SETTINGS = 30
"""Number of settings above which a terminal shows only the choices of a tuning run and the reasons for them."""
FOLDED = "markdown, html, csv and json show all of them"
MANY_TASKS = 6
"""Number of tasks above which one sparkline shows the final accuracies, instead of one sparkline per task."""
MOST_TASKS = 20
"""Maximum number of tasks for which a report includes accuracy matrices; accuracy.parquet has all of them."""
MANY_TROUBLES = 20
"""Maximum number of diverged and failed trials listed; further ones are only counted."""

RANKED = {"global": "of all", "layer": "by layer"}
"""Scopes in which weights are ranked for pruning, in words."""


def run_report(summary: Summary, figures: Sequence[doc.Illustration] = (), statistic: Statistic = "mean") -> doc.Report:
    """Build the document on one run, or on several runs side by side.

    figures: the figures shown after the tables.
    statistic: the statistic in tables, mean±sd or median [quartiles].
    """
    several = len(summary.runs) > 1
    title = " and ".join(dict.fromkeys(run.suite for run in summary.runs))
    blocks: list[doc.Block] = []
    for run in summary.runs:
        blocks.append(doc.Paragraph(headline(run), "plain" if run.status == "complete" else "warning"))
        if run.too_few_seeds:
            blocks.append(doc.Paragraph(f"{f'{run.run}: ' if several else ''}{run.too_few_seeds}.", "warning"))
    if not summary.measured:
        blocks.append(doc.Paragraph("Nothing was measured: no trial finished without failing.", "warning"))
    found = [block for run in summary.runs for block in claim_blocks(run, several)]
    blocks += [doc.Part("opening", block) for block in (*found, *primary_blocks(summary))]
    text = partial(spread_text, statistic=statistic)
    leading = _studied(summary, text, leads=True)
    blocks += [*leading, doc.Heading("Results") if leading else doc.Part("outline", doc.Heading("Results"))]
    for section in summary.sections:
        blocks += _section(section, several, statistic)
    blocks += _legend(summary, statistic)
    blocks += _troubles(summary)
    blocks += _studied(summary, text, leads=False)
    if figures:
        blocks += [doc.Heading("Figures"), *figures]
    blocks += [doc.Part("closing", block) for block in found]
    blocks += [*_how(summary), *report_records(summary)]
    return doc.Report(f"optbench: {title}", tuple(blocks), "optbench-report", result_columns(summary.studies))


def _studied(summary: Summary, text: SpreadText, *, leads: bool) -> list[doc.Block]:
    """Return the blocks of the studies that precede the results (if `leads`) or of those that follow them."""
    blocks: list[doc.Block] = []
    for study in summary.studies:
        if study.leads == leads:
            found = [one for run in summary.runs for one in run.studied[study.name]]
            blocks += study.blocks(found, len(summary.runs) > 1, text)
    return blocks


def headline(run: RunSummary) -> str:
    """Summarise a run in one line, e.g. `<run>: complete, 90 trials: 88 ok, 2 diverged (cpu)`."""
    order = ["ok", *NOT_OK]
    ended = sorted(run.statuses.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    counts = ", ".join(f"{n} {NOT_OK.get(status, status)}" for status, n in ended)
    done = _ended(run.ended, run.planned, "trial")
    if run.controls:
        done += f" and {_ended(run.controls_ended, run.controls, 'control')}"
    state = "running, or killed" if run.status == "running" else run.status
    where = f" ({run.device})" if run.device else ""
    return f"{run.run}: {state}, {done}{': ' if counts else ''}{counts}{where}"


def _ended(ended: int, planned: int, noun: str) -> str:
    """Format the number of finished trials: `10 trials` if all have finished, else `7 of 10 trials`."""
    return f"{'' if ended == planned else f'{ended} of '}{count(planned, noun)}"


def exclusions(row: SummaryRow) -> str | None:
    """Describe the trials excluded from a row's means because of their outcome; None if no trial is excluded."""
    counts = row.arm.counts
    lost = losses(counts)
    return f"{row.label}: {counts['ok']} of {counts['planned']}; {lost}" if lost else None


def _section(section: Section, several: bool, statistic: Statistic) -> Iterable[doc.Block]:
    yield doc.Part("outline", doc.Heading(f"{section.experiment}, {section.model}", 2))
    if len(section.rows) > MANY_SETTINGS and any(row.split == "validation" for row in section.rows):
        # The chosen settings must not be hidden among all others.
        said = f"{section.experiment}, {section.model}: {count(len(section.rows), 'setting')}; {FOLDED}"
        every = f"Results of all {count(len(section.rows), 'setting')}: {section.experiment}, {section.model}"
        yield doc.Fold(every, tuple(_results(section, several, statistic)), instead=said)
    else:
        yield from _results(section, several, statistic)
    yield from _matrices(section, several)
    yield doc.Part("details", _details(section, several))


def _results(section: Section, several: bool, statistic: Statistic) -> Iterable[doc.Block]:
    for topic, title in TOPICS.items():
        measures = [measure for measure in section.measures if measure.topic == topic]
        if measures:
            if topic == "learning" and all(measure.name != FORGETTING for measure in measures):
                title = "learning"
            table = _measures(section, measures, title, several, statistic)
            # Costs are least relevant here, and space on a terminal is limited.
            yield doc.Part("minor", table) if topic == "cost" else table
    yield from _sparks(section, several)
    yield from _sweeps(section, several)
    for sentence in section.stopping:
        yield doc.Paragraph(sentence, "quiet")
    for reason, missing in section.undefined.items():
        names = ", ".join(one_line(measure.title) for measure in missing)
        yield doc.Paragraph(f"Undefined: {names}: {reason}.", "quiet")
    warnings = [f"{text}: excluded from the means." for text in filter(None, map(exclusions, section.rows))]
    if any(map(is_rank, section.metrics)):
        dormant = [f"{row.label}, {many}" for row in section.rows if (many := row.arm.many_dormant)]
        warnings += [dormant_line(dormant)] if dormant else []
    for row in section.rows:
        if said := row.arm.learning_warning:
            warnings.append(f"{NOT_LEARNT} {row.label}: {said}")
        undefined = [one_line(measure.title) for measure in section.measures if _undefined_somewhere(row, measure)]
        if undefined:
            verb = "is" if len(undefined) == 1 else "are"
            warnings.append(f"{row.label}: {', '.join(undefined)} {verb} undefined in some trials.")
        ok = row.arm.count("ok")
        warnings += [
            f"{row.label}, {n} of {count(ok, 'trial')}: {words(name)}: {of}." for (name, of), n in row.bounds.items()
        ]
        if row.fallbacks:
            failed = count(row.fallbacks, "matrix factorisation")
            warnings.append(f"{row.label}: {failed} failed; the previous roots were kept.")
        if mixed := row.arm.mixed_code:
            warnings.append(f"{row.run + ', ' if several else ''}{row.label}: {mixed}.")
        warnings += [f"{row.label}: {n} of its trials: {note}." for note, n in row.notes.items()]
    if warnings:
        yield doc.Items(tuple(warnings), "warning")


def _measures(
    section: Section, measures: Sequence[Measure], title: str, several: bool, statistic: Statistic
) -> doc.Table:
    """Return a table with one row per optimizer or, for pruning, one row per optimizer and scope."""
    scopes = grouped((measure.metric.scope, measure) for measure in measures)
    keys = _row_columns(several) + (() if None in scopes else doc.columns("largest\nweights", texts=1))
    columns = (*keys, *doc.columns(*(f"{m.title} {m.arrow}".rstrip(" ") for m in next(iter(scopes.values())))))
    rows = []
    for row in section.rows:
        for scope, chosen in scopes.items():
            head = [*_row_cells(row, several), *([doc.Cell(RANKED[scope])] if scope else [])]
            cells = [doc.Cell(spread_text(row.values[m.name], decimals(m.name), statistic)) for m in chosen]
            rows.append((*head, *cells))
    return doc.Table(f"{section.experiment}, {section.model}: {title}", columns, tuple(rows), keys=len(keys))


def _row_columns(several: bool) -> tuple[doc.Column, ...]:
    return doc.columns(*["\nrun"] * several, "\noptimizer", "\ntrials", texts=1 + several)


def _row_cells(row: SummaryRow, several: bool) -> list[doc.Cell]:
    name = doc.Cell(marked(row.label, row.arm.shortcoming))
    seeds = doc.seeds_cell(row.arm.count("ok"), len(row.arm.trials))
    return [*([doc.Cell(row.run)] if several else []), name, seeds]


def _sparks(section: Section, several: bool) -> Iterable[doc.Block]:
    """Yield accuracy matrices as sparklines.

    There is one sparkline per task, with one character per row of the matrix. If there are more than `MANY_TASKS`
    tasks, a single sparkline shows the accuracies on all tasks instead: at the end or, if some tasks were not scored
    then, right after training on each task.
    """
    rows = [row for row in section.rows if row.matrix is not None]
    tasks = {row.matrix.shape[1] for row in rows if row.matrix is not None}
    if len(tasks) != 1:
        return
    count, ends = tasks.pop(), section.ends
    keys = _row_columns(several)[:-1]
    # If not every task was scored at the end, each task was scored right after training on it.
    whole = all(row.matrix is not None and np.isfinite(row.matrix[-1]).all() for row in rows)
    lines = []
    for row in rows:
        assert row.matrix is not None
        head = _row_cells(row, several)[:-1]
        if count > MANY_TASKS:
            line = row.matrix[-1] if whole else row.matrix[1:].diagonal()
            lines.append((*head, doc.Cell(spark(thinned(line.tolist()), *ends))))
        else:
            ending = [fixed(float(value), 2) for value in row.matrix[-1]]
            cells = [f"{spark(row.matrix[:, j].tolist(), *ends)} {ending[j]}" for j in range(count)]
            lines.append((*head, *map(doc.Cell, cells)))
    if count > MANY_TASKS:
        columns = doc.columns(f"tasks 1 to {count}", texts=1)
        when = "at the end" if whole else "right after training on it"
        scale = f"{ends[0]:g} to {ends[1]:g}"
        caption = f"{section.experiment}, {section.model}: {section.score} on each task {when}, {scale}"
    else:
        columns = doc.columns(*(f"task {j + 1}" for j in range(count)))
        caption = f"{section.experiment}, {section.model}: {section.score} on each task during training"
    table = doc.Table(caption, (*keys, *columns), tuple(lines), keys=len(keys))
    yield doc.Part("chart", table)


def _sweeps(section: Section, several: bool) -> Iterable[doc.Block]:
    """Yield a bar chart for each sweep, which reveals settings that forget little only because they learn little.

    Tuning runs are left out, because their settings are shown next to the chosen ones.
    """
    swept = grouped(((row.run, row.arm.optimizer), row) for row in section.rows if row.split == "test")
    for (run, optimizer), rows in swept.items():
        if len(rows) < FEWEST_SWEPT:
            continue
        swept_by = [section.metrics[name] for name in SWEPT if name in section.metrics]
        columns = doc.columns("setting", *map(name_with_arrow, swept_by), texts=1 + len(swept_by))
        lines = []
        for row in rows:
            spreads = [row.values[metric.name] for metric in swept_by]
            ends = [(0.0, 1.0) if metric.name == FORGETTING else section.ends for metric in swept_by]
            cells = [
                f"{bar(s.mean, *own, BAR)} {fixed(s.mean, 2)}" if s else UNDEFINED
                for s, own in zip(spreads, ends, strict=True)
            ]
            lines.append((doc.Cell(marked(row.arm.variant, row.arm.shortcoming)), *map(doc.Cell, cells)))
        who = f"{run}, {optimizer}" if several else optimizer
        table = doc.Table(f"{section.experiment}, {section.model}: the sweep of {who}", columns, tuple(lines))
        yield doc.Part("chart", table)


def _matrices(section: Section, several: bool) -> Iterable[doc.Block]:
    tables = []
    for row in section.rows:
        if row.matrix is None or row.matrix.shape[1] > MOST_TASKS:
            continue
        columns = doc.columns("", *(f"task {j + 1}" for j in range(row.matrix.shape[1])), texts=1)
        rows = []
        for i, line in enumerate(row.matrix.tolist()):
            when = "before training" if i == 0 else f"after task {i}"
            rows.append((doc.Cell(when), *(doc.Cell(fixed(value, 3)) for value in line)))
        who = f"{row.run}, {row.label}" if several else row.label
        tables.append(
            doc.Table(
                f"{who}: mean {row.split} {section.score} over {count(row.arm.count('ok'), 'seed')}",
                columns,
                tuple(rows),
            )
        )
    if tables:
        matrices = "Matrices of bits per byte" if section.in_bits else "Accuracy matrices"
        yield doc.Fold(f"{matrices}: {section.experiment}, {section.model}", tuple(tables))


def _details(section: Section, several: bool) -> doc.Block:
    titles = ("metric", "n", "mean", "sd", "median", "quartiles", "extremes")
    keys = _row_columns(several)[:-1]
    columns = (*keys, *doc.columns(*titles, texts=1))
    rows = []
    for row in section.rows:
        for metric in section.metrics.values():
            spread, digits = row.values[metric.name], decimals(metric.name)
            if spread is None:
                continue
            values = (
                str(spread.n),
                fixed(spread.mean, digits),
                fixed(spread.sd, digits),
                fixed(spread.median, digits),
                interval(spread.quartiles, digits),
                interval(spread.extremes, digits),
            )
            name = doc.Cell(name_with_arrow(metric))
            rows.append((*_row_cells(row, several)[:-1], name, *map(doc.Cell, values)))
    table = doc.Table(f"{section.experiment}, {section.model}: every measure", columns, tuple(rows), keys=len(keys) + 1)
    return doc.Fold(f"Every measure: {section.experiment}, {section.model}", (table,))


def _legend(summary: Summary, statistic: Statistic) -> Iterable[doc.Block]:
    measures = {measure.name: measure for section in summary.sections for measure in section.measures}
    if not measures:
        return
    what = {
        "mean": "mean±sd over seeds (sd: sample standard deviation; none for a single seed).",
        "median": "median [quartiles] over seeds.",
    }[statistic]
    splits = sorted({row.split for section in summary.sections for row in section.rows})
    split = splits[0] if len(splits) == 1 else "test (validation in a tuning run)"
    kinds = sorted({section.in_bits for section in summary.sections})  # accuracies first
    texts = [(name, (OF_TEXT if bits else {}).get(name, text)) for bits in kinds for name, text in LEGENDS.items()]
    costs = {name for name, measure in measures.items() if measure.topic == "cost"}
    lines = [what, *_explained(texts, measures.keys() - costs, split)]
    lines += [named_legend(measure.metric) for measure in measures.values() if measure.name not in TITLES]
    yield doc.Items(tuple(lines), "quiet")
    if of_costs := _explained(texts, costs, split):  # shown only where the table of costs is
        yield doc.Part("minor", doc.Items(of_costs, "quiet"))


def _explained(texts: Sequence[tuple[str, str]], names: Set[str], split: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.format(split=split) for name, text in texts if name in names))


def _troubles(summary: Summary) -> Iterable[doc.Block]:
    if not summary.troubles:
        return
    yield doc.Heading("Diverged and failed trials")
    lines = [f"{t.run}: {t.trial} {t.status} {t.reason}" for t in summary.troubles[:MANY_TROUBLES]]
    if len(summary.troubles) > MANY_TROUBLES:
        lines.append(f"and {len(summary.troubles) - MANY_TROUBLES} more; trials.parquet lists all of them")
    yield doc.Items(tuple(lines), "warning")


def _how(summary: Summary) -> Iterable[doc.Block]:
    yield doc.Heading("What was run")
    for run in summary.runs:
        seeds = count(len(run.seeds), "seed")
        times = f"{run.created} to {run.finished}" if run.finished else f"since {run.created}"
        lines = [
            f"{run.run}: suite {run.suite} ({run.suite_hash}), {seeds}, {times}",
            f"on {run.machine}; {run.versions}" + (f"; commit {run.commit}" if run.commit else ""),
            f"merged from {', '.join(run.merged)}" if run.merged else "",
            *run.provenance,
        ]
        yield doc.Items(tuple(line for line in lines if line), "quiet")
        yield doc.Paragraph("The command of this run, and a command that repeats it:", "quiet")
        yield doc.Commands("\n".join(line for line in (run.command, run.repeat) if line))


def _undefined_somewhere(row: SummaryRow, measure: Measure) -> bool:
    spread = row.values[measure.name]
    return 0 < row.arm.count("ok") != (spread.n if spread else 0)
