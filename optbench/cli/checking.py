"""`optbench check`: one line for each thing that an optimizer has to keep, as soon as it is known."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from optbench.cli.output import results
from optbench.errors import UsageError
from optbench.optimizers.registry import check_settings
from optbench.suite.overrides import parse_override

if TYPE_CHECKING:  # the checks bring torch
    from optbench.checks import Finding

KEPT, BROKEN = 0, 1
MARKS = {"passed": "✓", "failed": "✗", "information": "·", "skipped": "–"}
STYLES = {"passed": "green", "failed": "bold red", "information": "", "skipped": "yellow"}
NAME_WIDTH = 19


def check_optimizer(target: str, settings: Sequence[str] = ()) -> int:
    """Try the optimizer on a small problem and say line by line what was found; the exit code, 1 where a check failed.

    Raises:
        UsageError: a setting that is not of the form name=value.
        OptimizerError: the optimizer cannot be loaded, or does not take its hyper-parameters; nothing is trained then.
    """
    hyperparameters = parse_settings(settings)
    check_settings(target, hyperparameters)  # before torch is imported, so that a slip costs no time
    from optbench.checks import Problem, check

    # What an optimizer of somebody else's prints is not a result.
    with contextlib.redirect_stdout(sys.stderr):
        findings = check(Problem.of(target, hyperparameters))
    seen: list[Finding] = []
    while True:
        with contextlib.redirect_stdout(sys.stderr):
            finding = next(findings, None)
        if finding is None:
            break
        seen.append(finding)
        with results() as console:
            console.print(
                _line(finding, folded=console.is_terminal), highlight=False, soft_wrap=not console.is_terminal
            )
    failed = [finding.name for finding in seen if finding.outcome == "failed"]
    verdict = f"does not keep the contract: {', '.join(failed)}" if failed else "keeps the contract"
    with results() as console:
        console.print(Text(f"{target} {verdict}", style="bold"), soft_wrap=True)
    return BROKEN if failed else KEPT


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value`, the value in YAML as in a suite; `base.lr=0.1` sets a key of the mapping `base`.

    Raises:
        UsageError: not of that form, or a key within what is no mapping.
    """
    found: dict[str, Any] = {}
    for text in texts:
        override = parse_override(text)
        here: Any = found
        for segment in override.segments[:-1]:
            here = here.setdefault(segment, {})
            if not isinstance(here, dict):
                raise UsageError(f"--set {text}: {segment} is {here!r}, and has no keys")
        here[override.segments[-1]] = override.value
    return found


def _line(finding: Finding, *, folded: bool) -> RenderableType:
    """One line in a pipe, where lines are searched; on a terminal the words fold beside the name."""
    mark, style = MARKS[finding.outcome], STYLES[finding.outcome]
    if not folded:
        return Text(f"{mark} {finding.name:<{NAME_WIDTH}} {finding.text}")
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(width=NAME_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style=style), Text(finding.name, style=style), Text(finding.text))
    return grid
