"""Generate the command-line reference from the Typer app."""

from __future__ import annotations

import inspect
from typing import Any

import typer.main

from docs.site.described import code, table
from optbench.cli.app import app

HEAD = """# Command line

Results go to standard output; progress, logs and warnings go to standard error. `NO_COLOR` is respected, and
output to a pipe has no colour. `optbench --install-completion` enables completion of commands, options and names in
bash, zsh and fish.

| exit code | meaning |
|---|---|
| 0 | success; a diverged trial is a result, not a failure |
| 1 | a gate (`--fail-on`) or a check failed, or more trials of A than of B did not learn every task |
| 2 | usage or configuration error: an option, a suite, a device or a dataset |
| 3 | the run finished, but some trials failed |
| 4 | nothing was measured, or the runs cannot be compared |
| 130 | interrupted; finished trials are kept |
"""


def page() -> str:
    group: Any = typer.main.get_command(app)  # Any: its class comes from the copy of click inside Typer
    context = group.make_context("optbench", [], resilient_parsing=True)
    parts = [HEAD, "## optbench\n", _parameters(group, context)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(inner))
        text = inspect.cleandoc(command.help or "")
        parts.append(
            f"## optbench {name}\n\n```text\noptbench {name} {usage}\n```\n\n{text}\n\n{_parameters(command, inner)}"
        )
    return "\n".join(parts)


def _parameters(command: Any, context: Any) -> str:
    rows = []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            metavar = parameter.metavar or str(parameter.name).upper()
            rows.append((code(metavar), "", getattr(parameter, "help", None) or ""))
            continue
        record = parameter.get_help_record(context)
        assert record is not None, parameter.name
        said = (parameter.help or "").strip()
        rows.append((code(record[0]), _default(parameter), said))
    return table(("option", "default", "meaning"), rows)


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or value == () or callable(value) or repr(value).startswith("Sentinel"):
        return ""
    return code(str(value))
