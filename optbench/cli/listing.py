"""`optbench list KIND`: the contents of the registries, without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from optbench.cli.output import UNWRAPPED, has_width, results
from optbench.errors import StoreError, UsageError, escaped, unknown
from optbench.kinds import DATASETS, MODELS, TASKS, Registry


def list_kind(kind: str, runs_dir: Path) -> None:
    """Print the table of a kind; raise UsageError if there is no such kind."""
    if kind not in LISTS:
        raise UsageError(f"list: {unknown('kind', kind, LISTS)}")
    table = LISTS[kind](runs_dir)
    with results(UNWRAPPED) as console:
        console.print(table, highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))


def _optimizers(_: Path) -> RenderableType:
    from optbench.optimizers.registry import OPTIMIZERS

    # Six columns would be too narrow in 80 characters, so the state and hyper-parameters have separate lines.
    fold = has_width()
    what = "description (reference)"
    settings = "hyper-parameters (default)"
    several = (f"{what}, state per weight, {settings}",) if fold else ("state per weight", f"{what}, {settings}")
    table = _table("optimizer", "source", "lane", *several)
    for spec in OPTIMIZERS.values():
        defaults = ", ".join(
            f"{name} {'by preset' if hyper.default is None and not hyper.optional else _value(hyper.default)}"
            for name, hyper in spec.hyperparameters.items()
        )
        source = spec.source.replace("-", "-\n") if fold else spec.source
        schedule = "" if spec.takes_schedule else "; no support for schedules"
        described = f"{spec.summary} ({spec.reference}){schedule}"
        cells = [f"{described}\nstate: {spec.state}\n{defaults}"] if fold else [spec.state, f"{described}; {defaults}"]
        _row(table, spec.name, source, spec.lane, *cells)
    return table


def _datasets(_: Path) -> RenderableType:
    from optbench.data.catalog import FACTS, TEXT_DOMAINS, TEXT_FILES
    from optbench.data.settings import DERIVED, MODULAR_ADDITION
    from optbench.data.text import SHARE

    table = _table("dataset", "description", "inputs", "classes", "train", "test", "from")
    for info in FACTS.values():
        shape = "×".join(str(size) for size in info.shape)
        place = "package" if info.embedded else "download"
        _row(
            table,
            info.name,
            DATASETS.load(info.name).__doc__,
            shape,
            info.classes,
            info.train_size,
            info.test_size,
            place,
        )
    text, count = TEXT_DOMAINS, len(TEXT_DOMAINS.domains)
    held_out = text.size // SHARE
    sizes = [f"{count * size / 1e6:.1f} MB" for size in (text.size - 2 * held_out, held_out)]
    _row(table, text.name, DATASETS.load(text.name).__doc__, "tokens", text.classes, *sizes, "package")
    _row(table, TEXT_FILES, DATASETS.load(TEXT_FILES).__doc__, "tokens", "", "", "", "files")
    settings = [
        f"text: {', '.join(f'{name} {_value(field.default)}' for name, field in fields.items() if name != 'files')}"
        for fields in [DATASETS.settings(text.name).model_fields]
    ]
    settings.append(f"{TEXT_FILES}: files, a path for each domain (docs/text.md)")
    made = _settings("dataset", DATASETS, (MODULAR_ADDITION, *DERIVED))
    return Group(table, *map(Text, settings), Text(), made)


def _settings(what: str, registry: Registry, kinds: Collection[str] | None = None) -> Table:
    """Return a table of `kinds` in a registry (None: all of its kinds), with their settings and defaults."""
    table = _table(f"{what} kind", "description", "settings (default)")
    for kind in registry.names if kinds is None else kinds:
        summary = (registry.load(kind).__doc__ or "").partition("\n\n")[0]
        fields = registry.settings(kind).model_fields
        defaults = ", ".join(
            name if field.is_required() else f"{name} {_value(field.default)}" for name, field in fields.items()
        )
        _row(table, kind, " ".join(summary.split()), defaults)
    return table


def _metrics(_: Path) -> RenderableType:
    from optbench.metrics import METRICS

    # Names are long, so there are few columns: 80 characters must leave space for a formula.
    fold = has_width()
    several = ("formula (source), taken from, cost",) if fold else ("taken from", "cost", "formula (source)")
    table = _table("metric", "", "margin", *several)
    table.columns[2].justify = "right"
    for metric in METRICS.values():
        formula, cost = f"{metric.formula} ({metric.source})", "default" if metric.default else metric.cost
        cells = [f"{formula}\n{metric.kind}, {cost}"] if fold else [metric.kind, cost, formula]
        _row(table, metric.name, metric.arrow, f"{metric.margin:g}" if metric.margin else "", *cells)
    margins = "margin: the smallest relevant difference, in the unit of the metric; empty if no margin is set"
    costs = "cost: default metrics are measured if a suite lists none, cheap and expensive ones only if it lists them"
    placed = [metric.name for metric in METRICS.values() if metric.placed]
    of_text = "R[i,j]: accuracy on task j after task i; for text, negative bits per byte, with a margin of .02"
    return Group(
        table,
        Text(of_text),
        Text(margins),
        Text(costs),
        Text(f"layer, activation (before or after): settings of {', '.join(placed)}"),
    )


def _suites(_: Path) -> RenderableType:
    from optbench.suite import load_suite, shipped_suites

    # Five columns would be too narrow in 80 characters, so experiments and optimizers have separate lines.
    fold = has_width()
    several = ("description, experiments, optimizers",) if fold else ("description", "experiments", "optimizers")
    table = _table("suite", "seeds", *several)
    for name, path in shipped_suites().items():
        suite = load_suite(path, as_written=True)
        described = [" ".join(suite.description.split()), ", ".join(suite.experiments), ", ".join(suite.optimizers)]
        _row(table, name, len(suite.seeds), *(["\n".join(described)] if fold else described))
    return table


def _runs(runs_dir: Path) -> RenderableType:
    from optbench.store import run_ids
    from optbench.store.read import read_json

    ids = run_ids(runs_dir)
    if not ids:
        return Text(f"no runs in {escaped(str(runs_dir))}")
    table = _table("run", "suite", "status", "seeds", "created (UTC)")
    for column in table.columns[2:]:
        column.no_wrap = True
    for run in ids:
        try:
            record = read_json(runs_dir / run)
        except StoreError:
            _row(table, escaped(run), "", "unreadable")
            continue
        seeds = record.get("seeds")
        count = len(seeds) if isinstance(seeds, list) else None
        suite, status, created = (record.get(key) for key in ("suite", "status", "created"))
        _row(table, escaped(run), _said(suite), _said(status), count, _said(_minute(created)))
    return table


def _said(value: Any) -> str:
    return "" if value is None else escaped(value)


def _minute(created: Any) -> Any:
    """Return a time in UTC without seconds, e.g. `2026-11-29 07:58`; other values are returned unchanged."""
    try:
        return datetime.fromisoformat(created).astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError, OverflowError):
        return created


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


LISTS: Mapping[str, Callable[[Path], RenderableType]] = {
    "optimizers": _optimizers,
    "datasets": _datasets,
    "tasks": lambda _: _settings("tasks", TASKS),
    "models": lambda _: _settings("model", MODELS),
    "metrics": _metrics,
    "suites": _suites,
    "runs": _runs,
}
