"""`optbench check`: one line per requirement of a target's contract, printed as soon as its outcome is known."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from optbench.checks import CHECKERS, Finding, findings, recognise
from optbench.cli.output import results
from optbench.errors import UsageError, unknown
from optbench.kinds import DATASETS, MODELS, TASKS
from optbench.metrics.own import METRIC_KINDS
from optbench.optimizers.registry import check_settings
from optbench.suite.overrides import parse_override

KEPT, BROKEN = 0, 1
MARKS = {"passed": "✓", "failed": "✗", "information": "·", "skipped": "–"}
STYLES = {"passed": "green", "failed": "bold red", "information": "", "skipped": "yellow"}
NAME_WIDTH = 19
KINDS = {"model": MODELS, "tasks": TASKS, "dataset": DATASETS, "metric": METRIC_KINDS}

OF_VMAP = "There is a performance drop because we have not yet implemented the batching rule"
"""Start of a warning that is caused by optbench's attempt to train members together, not by the user."""


def check_target(target: str, settings: Sequence[str] = (), kind: str | None = None) -> int:
    """Try a target on a small problem and print the findings; return the exit code, 1 if a check failed.

    kind: the target's kind; None to recognise it.

    Raises:
        UsageError: a setting is not of the form name=value, or the kind is unknown.
        OptbenchError: the target cannot be loaded, or rejects its settings.

    All of these errors are raised before the first check.
    """
    given = parse_settings(settings)
    if kind is not None and kind not in CHECKERS:
        raise UsageError(f"--as: {unknown('kind', kind, CHECKERS)}")
    seen: list[Finding] = []
    warned: list[warnings.WarningMessage] = []
    with _users_code(warned):
        kind = kind or recognise(target)
        if kind == "optimizer":
            check_settings(target, given)  # before torch is imported, so that a mistake is reported quickly
        try:
            found = findings(kind, target, given)
        except ValidationError as error:
            raise UsageError(f"{target}: {_said(error, KINDS[kind].settings(target).model_fields)}") from None
    while True:
        with _users_code(warned):
            finding = next(found, None)
        if finding is None:
            break
        _show(seen, finding)
    for text in dict.fromkeys(map(_warning, warned)):
        if OF_VMAP not in text:
            _show(seen, Finding("warning", "information", text))
    failed = [finding.name for finding in seen if finding.outcome == "failed"]
    scope = "".join(f" {finding.scope}" for finding in seen if finding.scope)
    verdict = f"violates the contract{scope}: {', '.join(failed)}" if failed else f"satisfies the contract{scope}"
    with results() as console:
        console.print(Text(f"{target} {verdict}", style="bold"), soft_wrap=True)
    return BROKEN if failed else KEPT


def _warning(one: warnings.WarningMessage) -> str:
    """Return a warning on one line, without the reference to PyTorch's sources."""
    text = " ".join(str(one.message).split()).partition(" (Triggered internally at ")[0]
    return f"{one.category.__name__}: {text}"


@contextlib.contextmanager
def _users_code(warned: list[warnings.WarningMessage]) -> Iterator[None]:
    """Redirect the printed output of a user's code to standard error, and add its warnings to `warned`."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    warned += caught


def _show(seen: list[Finding], finding: Finding) -> None:
    seen.append(finding)
    with results() as console:
        console.print(_line(finding, folded=console.is_terminal), highlight=False, soft_wrap=not console.is_terminal)


def _said(error: ValidationError, settings: Iterable[str]) -> str:
    """Describe the first invalid setting in a validation error, e.g. `depth: expected a valid integer, got 'deep'`."""
    first = error.errors(include_url=False)[0]
    where, words = ".".join(map(str, first["loc"])), first["msg"].lower().replace("input should be", "expected")
    if first["type"] == "extra_forbidden":
        return unknown("setting", where, settings)
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}"  # the message already includes the value
    return f"{where}: {words}" + (f", got {first['input']!r}" if first["type"] != "missing" else "")


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse settings of the form `name=value`, with values in YAML; `base.lr=0.1` sets a key of the mapping `base`.

    Raises:
        UsageError: a setting does not have this form, or sets a key in a value that is not a mapping.
    """
    found: dict[str, Any] = {}
    for text in texts:
        override = parse_override(text)
        here: Any = found
        for segment in override.segments[:-1]:
            here = here.setdefault(segment, {})
            if not isinstance(here, dict):
                raise UsageError(f"--set {text}: expected {segment} to be a mapping, got {here!r}")
        here[override.segments[-1]] = override.value
    return found


def _line(finding: Finding, *, folded: bool) -> RenderableType:
    """Lay out a finding, with its text wrapped in a column if `folded`, else on one line."""
    mark, style = MARKS[finding.outcome], STYLES[finding.outcome]
    if not folded:
        return Text(f"{mark} {finding.name:<{NAME_WIDTH}} {finding.text}")
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(width=NAME_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style=style), Text(finding.name, style=style), Text(finding.text))
    return grid
