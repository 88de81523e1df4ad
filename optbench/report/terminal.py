"""A summary as tables for a terminal: 80 columns suffice, more are used, and a pipe gets no colours."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from optbench.report.measures import LEGENDS, TOPICS, Measure
from optbench.report.summary import Section, Spread, Summary, SummaryRow

GAP = 2
"""Blanks between two columns."""
LABEL_WIDTH = 24
"""A longer label than this is folded rather than given more columns' room."""


def render(summary: Summary, console: Console) -> None:
    """Print the tables of a run on `console`, as wide as it is."""
    console.print(Text(header(summary), style="bold"))
    for section in summary.sections:
        _render_section(section, console)
    legends = [legend for name, legend in LEGENDS.items() if any(_shown(s, name) for s in summary.sections)]
    console.print()
    for line in ("mean±sd over seeds (sd: sample standard deviation; none for a single seed).", *legends):
        console.print(Text(line, style="dim"))


def header(summary: Summary) -> str:
    """`<run>: complete, 90 trials: 88 ok, 2 diverged (cpu)`."""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.statuses.items(), key=_by_status))
    finished = summary.finished
    done = f"{finished}" if finished == summary.planned else f"{finished} of {summary.planned}"
    state = "running, or killed" if summary.status == "running" else summary.status
    where = f" ({summary.device})" if summary.device else ""
    return f"{summary.run}: {state}, {done} trials{': ' if counts else ''}{counts}{where}"


def number(spread: Spread | None, decimals: int) -> str:
    """`0.951±0.002`, `0.951` for a single trial, `–` where undefined."""
    if spread is None:
        return "–"
    mean = f"{spread.mean:.{decimals}f}"
    if float(mean) == 0:
        mean = mean.lstrip("-")  # minus zero
    return mean if spread.sd is None else f"{mean}±{spread.sd:.{decimals}f}"


def trial_count(row: SummaryRow) -> str:
    """How many trials stand behind a row's means: `10`, or `8 of 10`."""
    return str(row.ok) if row.ok == row.planned else f"{row.ok} of {row.planned}"


def exclusions(row: SummaryRow) -> str | None:
    """What became of the trials that are not in a row's means, or None."""
    kinds = [(row.diverged, "diverged"), (row.failed, "failed"), (row.missing, "not finished")]
    parts = [f"{n} {what}" for n, what in kinds if n]
    return f"{row.label}: {row.ok} of {row.planned}; {', '.join(parts)}" if parts else None


def _render_section(section: Section, console: Console) -> None:
    for topic, title in TOPICS.items():
        measures = [measure for measure in section.measures if measure.topic == topic]
        for i, packed in enumerate(pack(section, measures, console.width)):
            console.print()
            name = f"{escape(section.experiment)}, {escape(section.model)}"
            console.print(f"[bold]{name}[/bold]: {title}{' (continued)' if i else ''}", highlight=False)
            console.print(_table(section, packed), highlight=False)
    console.print(Text(section.stopping, style="dim"))
    for note in filter(None, map(exclusions, section.rows)):
        console.print(Text(f"{note}: not in the means.", style="yellow"))
    for row in section.rows:
        partly = [m.title.replace("\n", " ").strip() for m in section.measures if _undefined_somewhere(row, m)]
        if partly:
            console.print(Text(f"{row.label}: {', '.join(partly)} undefined in some of its trials.", style="yellow"))


def pack(section: Section, measures: Sequence[Measure], width: int) -> list[list[Measure]]:
    """Share columns out over as many tables as it takes for each to fit into `width`; at least one column in each."""
    counts = max(len("trials"), *(len(trial_count(row)) for row in section.rows))
    free = width - _label_width(section) - GAP - counts
    widths = {measure.name: GAP + _column_width(section, measure) for measure in measures}
    tables: list[list[Measure]] = []
    room = 0
    for measure in measures:
        if not tables or widths[measure.name] > room:
            tables.append([])
            room = free
        tables[-1].append(measure)
        room -= widths[measure.name]
    # Three columns and two read better than four and one.
    share = -(-len(measures) // len(tables)) if tables else 1
    even = [list(measures[i : i + share]) for i in range(0, len(measures), share)]
    fits = all(sum(widths[measure.name] for measure in table) <= free for table in even)
    return even if fits else tables


def _label_width(section: Section) -> int:
    """Labels are folded at blanks and, where an unbroken one is longer than `LABEL_WIDTH`, anywhere."""
    lengths = [len(word) for row in section.rows for word in row.label.split()]
    return min(max(len("optimizer"), *lengths), LABEL_WIDTH)


def _column_width(section: Section, measure: Measure) -> int:
    cells = [number(row.values[measure.name], measure.decimals) for row in section.rows]
    return max(len(text) for text in (*_title(measure).split("\n"), *cells))


def _title(measure: Measure) -> str:
    return f"{measure.title} {measure.arrow}".rstrip(" ")


def _table(section: Section, measures: Sequence[Measure]) -> Table:
    # SIMPLE_HEAD draws one blank between columns; the padding makes it two.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    table.add_column("\noptimizer", overflow="fold", min_width=_label_width(section))
    table.add_column("\ntrials", justify="right", no_wrap=True)
    for measure in measures:
        table.add_column(_title(measure), justify="right", no_wrap=True)
    for row in section.rows:
        cells = [Text(number(row.values[measure.name], measure.decimals)) for measure in measures]
        counted = Text(trial_count(row), style="" if row.ok == row.planned else "yellow")
        table.add_row(Text(row.label), counted, *cells)
    return table


def _shown(section: Section, name: str) -> bool:
    return any(measure.name == name for measure in section.measures)


def _undefined_somewhere(row: SummaryRow, measure: Measure) -> bool:
    spread = row.values[measure.name]
    return 0 < row.ok != (spread.n if spread else 0)


def _by_status(item: tuple[str, int]) -> int:
    order = ["ok", "diverged", "failed"]
    return order.index(item[0]) if item[0] in order else len(order)
