"""The report on optimizers' costs, as a document. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.costing.result import FORMAT, CostResult, Row, Timing
from optbench.costing.sizes import SIZES
from optbench.counting import count, grouped
from optbench.report.document import (
    Block,
    Cell,
    Column,
    Heading,
    Items,
    Paragraph,
    Records,
    Report,
    Table,
    columns,
)
from optbench.report.numbers import UNDEFINED

NOT_MEASURED = {"too large": "too large", "too slow": "too slow", "failed": "failed"}
CLOCKS = {
    "processor": "processor time, which other work on the machine hardly affects",
    "wall": "wall-clock time, which other work on the machine increases",
    "device": "time between device events",
}
CSV_COLUMNS = (
    *("created", "device", "cpu", "torch", "optimizer", "target", "size", "parameters", "tokens", "status", "note"),
    *("state_bytes", "needed_bytes", "peak_bytes", "idle_bytes", "first_step_seconds", "threads", "clock", "steps"),
    *("gradient_seconds", "statistics_seconds", "roots_seconds", "update_seconds", "step_seconds"),
    *("ordinary_seconds", "ordinary_low", "ordinary_high", "refresh_seconds", "refresh_every", "roots_renewed"),
)
_LEGEND = (
    "step: mean time of the optimizer alone, with refreshes weighted by their frequency in normal training; ordinary: "
    "median [lowest, highest] time of a step without a refresh; refresh: mean time of a step with a refresh; every: "
    "number of steps between refreshes in normal training (while measuring, every other step has a refresh).",
    "by need: roots are renewed when they are stale, most often at the beginning of training; the percentage is the "
    "mean share of roots renewed per step, from the step in parentheses onwards.",
    "tokens: the number of tokens whose gradient takes as long as the optimizer's step. Divide it by the number "
    "of tokens in your batch to get the ratio of the step's time to the gradient's.",
    "statistics, roots, update: parts of the step, reported for optbench's own optimizers and for others that mark "
    "these parts with torch.profiler.record_function.",
    "peak: peak memory of the measuring process, including weights, gradients, activations and libraries; needed: "
    "estimate of the peak, made before anything was allocated.",
)


@dataclass(frozen=True)
class _Unit:
    name: str
    factor: float

    def text(self, seconds: float | None) -> str:
        return UNDEFINED if seconds is None else digits(seconds * self.factor)


def digits(value: float) -> str:
    """Format a number with three significant digits and without an exponent, e.g. `0.123`, `12.3` or `1,230`.

    There are at most six decimals.
    """
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    places = 2
    while places < 6 and abs(value) < 10.0 ** (1 - places + 1):
        places += 1
    return f"{value:.{places if abs(value) < 10 else 1}f}"


def size_text(value: int | None) -> str:
    """Format a number of bytes, e.g. `12.3 MiB` or `4.56 GiB`; `–` for None."""
    if value is None:
        return UNDEFINED
    unit, name = (1 << 30, "GiB") if value >= 1 << 30 else (1 << 20, "MiB")
    return f"{digits(value / unit)} {name}"


def cost_report(results: Sequence[tuple[str, CostResult]]) -> Report:
    """Build the report on one or more results, each given with the name of its file."""
    blocks: list[Block] = []
    for label, result in results:
        if len(results) > 1:
            blocks.append(Heading(label, 1))
        blocks += _result(result)
    blocks.append(Items(_LEGEND, "quiet"))
    trees = [result.model_dump(mode="json", exclude={"format", "version"}) for _, result in results]

    def tree(key: str) -> Callable[[], Any]:
        return lambda: trees[0][key]

    if len(trees) == 1:  # the JSON output then has the format of the result file
        blocks += [Records(key, tree(key)) for key in trees[0]]
    else:
        blocks.append(Records("results", lambda: trees))
    blocks.append(Records("lines", list, lambda: [line for _, result in results for line in _lines(result)]))
    return Report("optbench cost", tuple(blocks), FORMAT, CSV_COLUMNS)


def _result(result: CostResult) -> Iterator[Block]:
    about = result.provenance
    devices = about.get("accelerators") or []
    machine = ", ".join(devices) if about.get("device") != "cpu" and devices else f"{about.get('cpu')}"
    said = (
        f"{machine}, {count(int(about.get('cores') or 1), 'core')}, torch {about.get('torch')}, {result.created[:10]}"
    )
    yield Paragraph(f"{said}; at most {size_text(result.limit)} of memory; float32")
    cores = int(about.get("cores") or 1)
    if result.load is not None and result.load > 0.5 * cores and about.get("device") == "cpu":
        yield Paragraph(
            f"Other work ran on the machine (load {result.load:.1f} on {count(cores, 'core')}): wall-clock times are "
            "too long; compare processor times.",
            "warning",
        )
    for size, rows in grouped((row.size, row) for row in result.rows).items():
        yield from _size(size, rows)


def _size(name: str, rows: Sequence[Row]) -> Iterator[Block]:
    known = SIZES.get(name)
    most = max(row.parameters for row in rows)
    network = (
        f"{known.what}: {known.layers} layers of width {known.width}, vocabulary {known.vocabulary:,}" if known else ""
    )
    yield Heading(f"{name}: {network}, {most:,} parameters; gradients of {rows[0].tokens:,} tokens of text", 2)
    if lost := tuple(_lost(row) for row in rows if row.status != "ok"):
        yield Items(lost, "warning")
    if noted := tuple(f"{row.optimizer}: {row.note}" for row in rows if row.status == "ok" and row.note):
        yield Items(noted, "warning")
    measured = [row for row in rows if row.status == "ok"]
    for threads in dict.fromkeys(t.threads for row in measured for t in row.timings):
        yield _times(name, threads, rows)
    yield _memory(name, rows)
    if measured:
        yield _holdings(name, measured)
    if twins := [(row, other) for row in measured for other in measured if other.optimizer == row.twin]:
        yield _twins(name, twins)


def _lost(row: Row) -> str:
    if row.status == "too large":
        reason = row.note or "nothing was allocated"
        return f"{row.optimizer}: not measured: it would need about {size_text(row.needed)}; {reason}"
    took = "" if row.first is None else f"; the optimizer's first step took {row.first:,.0f} s"
    return f"{row.optimizer}: {row.status}: {row.note}{took}"


def _unit(timings: Sequence[Timing]) -> _Unit:
    longest = max((max(t.step, t.gradient, t.high) for t in timings), default=0.0)
    return _Unit("s", 1.0) if longest >= 10 else _Unit("ms", 1000.0)


def _times(name: str, threads: int, rows: Sequence[Row]) -> Table:
    found = {row.optimizer: next((t for t in row.timings if t.threads == threads), None) for row in rows}
    timings = [t for t in found.values() if t is not None]
    unit = _unit(timings)
    title = f"{name}: {unit.name} per step on {count(threads, 'thread')}, {CLOCKS[timings[0].clock]}"
    if timings[0].clock == "device":
        title = f"{name}: {unit.name} per step, {CLOCKS['device']}"
    heads = columns(
        *("optimizer", "step", "gradient", "step /\ngradient", "tokens", "statistics", "roots", "update"),
        *("ordinary\nsteps", "refresh", "every", "first\nstep"),
        texts=1,
    )
    lines = []
    for row in rows:
        t = found[row.optimizer]
        if t is None:
            cells = [NOT_MEASURED.get(row.status, UNDEFINED), *[UNDEFINED] * (len(heads) - 2)]
            lines.append((Cell(row.optimizer), Cell(cells[0], "warning"), *map(Cell, cells[1:])))
            continue
        parts = (t.statistics, t.roots, t.update) if row.split else (None, None, None)
        every = (
            f"{t.every}"
            if t.every
            else UNDEFINED
            if t.renewed is None
            else f"by need, {t.renewed:.0%} ({t.after + 1:,})"
        )
        texts = (
            unit.text(t.step),
            unit.text(t.gradient),
            digits(t.step / t.gradient) if t.gradient else UNDEFINED,
            f"{row.tokens * t.step / t.gradient:,.0f}" if t.gradient else UNDEFINED,
            *map(unit.text, parts),
            f"{unit.text(t.ordinary)} [{unit.text(t.low)}, {unit.text(t.high)}]",
            unit.text(t.refresh),
            every,
            unit.text(row.first) if threads == row.timings[0].threads else UNDEFINED,
        )
        lines.append((Cell(row.optimizer), *map(Cell, texts)))
    return Table(title, heads, tuple(lines))


def _memory(name: str, rows: Sequence[Row]) -> Table:
    heads = columns("optimizer", "state", "bytes per\nweight", "needed,\nestimated", "peak,\nmeasured", texts=1)
    lines = []
    for row in rows:
        state = row.state if row.state is not None else row.planned_state
        each = f"{state / row.parameters:.1f}" if state is not None and row.parameters else UNDEFINED
        peak = Cell(size_text(row.peak)) if row.peak is not None else Cell(row.status, "warning")
        lines.append((Cell(row.optimizer), Cell(size_text(state)), Cell(each), Cell(size_text(row.needed)), peak))
    return Table(f"{name}: memory", heads, tuple(lines))


def _holdings(name: str, rows: Sequence[Row]) -> Table:
    """Tabulate the state that each optimizer keeps for each kind of parameter."""
    kinds = list(dict.fromkeys(h.kind for row in rows for h in row.holdings))
    lines = []
    for row in rows:
        held = {h.kind: h for h in row.holdings}
        texts = []
        for kind in kinds:
            h = held.get(kind)
            if h is None or not h.weights:
                texts.append(UNDEFINED)
                continue
            sides = ", ".join(f"{n:,}²" for n in h.factors)
            texts.append(f"{h.bytes / h.weights:.1f}" + (f"; {sides}" if sides else ""))
        lines.append((Cell(row.optimizer), *map(Cell, texts)))
    heads = (Column("optimizer", numeric=False), *(Column(kind, numeric=False) for kind in kinds))
    return Table(f"{name}: bytes of state per weight, and the sizes of the largest square factors", heads, tuple(lines))


def _twins(name: str, pairs: Sequence[tuple[Row, Row]]) -> Table:
    heads = columns(
        "Powerpropagation",
        "its twin",
        "threads",
        "step,\nratio",
        "training,\nratio",
        "state",
        "peak",
        texts=2,
    )
    lines = []
    for row, twin in pairs:
        for a, b in ((a, b) for a in row.timings for b in twin.timings if a.threads == b.threads):
            texts = (
                str(a.threads),
                digits(a.step / b.step),
                digits((a.step + a.gradient) / (b.step + b.gradient)),
                f"{size_text(row.state)}, {size_text(twin.state)}",
                f"{size_text(row.peak)}, {size_text(twin.peak)}",
            )
            lines.append((Cell(row.optimizer), Cell(twin.optimizer), *map(Cell, texts)))
    caption = f"{name}: Powerpropagation relative to SGD with P = diag(|θ|^β) at equal α; training: gradient and step"
    return Table(caption, heads, tuple(lines), keys=2)


def _lines(result: CostResult) -> Iterator[dict[str, Any]]:
    about = {"created": result.created, **{name: result.provenance.get(name) for name in ("device", "cpu", "torch")}}
    for row in result.rows:
        own = {
            name: getattr(row, name)
            for name in ("optimizer", "target", "size", "parameters", "tokens", "status", "note")
        }
        own |= {"state_bytes": row.state, "needed_bytes": row.needed, "peak_bytes": row.peak, "idle_bytes": row.idle}
        own |= {"first_step_seconds": row.first}
        for t in row.timings or (None,):
            if t is None:
                yield {**about, **own}
                continue
            times = {
                f"{part}_seconds": getattr(t, part) for part in ("gradient", "statistics", "roots", "update", "step")
            }
            if not row.split:
                times |= {"statistics_seconds": None, "roots_seconds": None, "update_seconds": None}
            times |= {"ordinary_seconds": t.ordinary, "ordinary_low": t.low, "ordinary_high": t.high}
            times |= {"refresh_seconds": t.refresh, "refresh_every": t.every, "roots_renewed": t.renewed}
            yield {**about, **own, **times, "threads": t.threads, "clock": t.clock, "steps": t.steps}
