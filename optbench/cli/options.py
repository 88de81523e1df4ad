"""The options shared by several commands, with help and completion. Like `app`, this module imports nothing slow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from optbench.cli import completion
from optbench.errors import UsageError
from optbench.paths import user_path


def path_option(option: str) -> Callable[[str | Path], Path]:
    """Return a parser for a path option; it expands `~`, which a shell does not do in `--option=~/x`."""

    def parse(value: str | Path) -> Path:
        return user_path(value, option)

    return parse


def whole(option: str, least: int) -> Callable[[str | int], int]:
    """Return a parser for an option whose value must be a whole number of at least `least`."""

    def parse(value: str | int) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(value)) >= least:
                return number
        raise UsageError(f"{option}: expected a whole number of at least {least}, got {value}")

    return parse


def number(option: str, least: float) -> Callable[[str | float], float]:
    """Return a parser for an option that is a number of at least `least`."""

    def parse(value: str | float) -> float:
        with contextlib.suppress(ValueError):
            if (found := float(value)) >= least:
                return found
        raise UsageError(f"{option}: expected a number of at least {least:g}, got {value}")

    return parse


def _output(value: str) -> str:
    """Parse `--output`; `-` means standard output."""
    return value if value == "-" else str(user_path(value, "--output"))


RunsDir = Annotated[
    Path, typer.Option(metavar="DIR", parser=path_option("--runs-dir"), help="The folder that holds the runs.")
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        autocompletion=completion.one_of(completion.FORMATS),
        help="terminal, markdown, html, latex, csv or json; by default, chosen by the suffix of FILE, or terminal.",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", parser=_output, help="Write to this file; - is standard output."),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        autocompletion=completion.one_of(completion.DEVICES),
        help="auto, cpu, cuda, cuda:N or mps; auto selects the best available device.",
    ),
]
On = Annotated[
    str,
    typer.Option(
        metavar="PLACE",
        autocompletion=completion.one_of(completion.PLACES),
        help="Where workers run: local; ray (this machine's cluster, or a new one); ray:HOST:PORT (the cluster at this "
        "address); or slurm (in jobs).",
    ),
]
SetOn = Annotated[
    list[str] | None,
    typer.Option(
        "--set-on",
        metavar="NAME=VALUE",
        help="With --on slurm: a setting of the jobs (partition, account, timeout_min, mem_gb, ...); max_jobs, the "
        "maximum number of concurrent jobs; or folder, a folder that all nodes can access. Repeatable.",
    ),
]
RunName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The run's id; by default, the suite's name and the time.")
]
OnlyExperiments = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", autocompletion=completion.experiments, help="Use only this experiment. Repeatable."),
]
OnlyModels = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", autocompletion=completion.models, help="Use only this model. Repeatable."),
]
OnlyOptimizers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=TARGET]",
        autocompletion=completion.optimizers,
        help="Use only this optimizer of the suite; or, with =, add one: NAME=module:Class or NAME=./file.py:Class. "
        "Repeatable; if both forms are used, only the named optimizers are kept.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a setting of the suite. Repeatable."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="OPTBENCH_DATA",
        parser=path_option("--data-dir"),
        help="The folder of datasets that do not come with optbench.",
    ),
]
Suite = Annotated[
    str | None,
    typer.Argument(
        metavar="SUITE",
        autocompletion=completion.suites,
        help="A suite file, or a name from `optbench list suites`.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="N", parser=whole("--jobs", 1), help="Number of workers; by default, one per core or one per GPU."
    ),
]
ForceResume = Annotated[
    bool,
    typer.Option(
        "--force",
        help="With --resume: continue even if torch, the kind of device, the CPU or your code has changed. "
        "With --on: also use workers with other versions of torch or optbench.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, without training.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show only results, warnings and errors.")]
# `main` searches for the flag itself, so that it works at any position, and even if parsing fails.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        autocompletion=completion.runs,
        help="Show only claims: those of this run next to those of the reported run, each judged on its run's data.",
    ),
]
PerTrial = Annotated[
    bool,
    typer.Option(
        "--per-trial",
        help="With json or csv: write one record per trial and metric, without controls; in csv, these replace "
        "the statistics over seeds.",
    ),
]
