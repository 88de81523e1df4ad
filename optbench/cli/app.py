"""The commands and their options, and what every command's end has in common: messages and exit codes.

Exit codes: 0 done; 1 a gate failed; 2 a wrong flag, suite, device or data; 3 some trials failed; 4 nothing was
measured; 130 interrupted. Beyond the contract: 70 (EX_SOFTWARE of sysexits.h) for an error of optbench's own.

This module imports nothing heavy, so that `--help` is quick: each command imports what it needs when it is called.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from optbench.cli import completion, standard_streams
from optbench.errors import OptbenchError, UsageError, escaped
from optbench.paths import is_utf8, user_path

INTERRUPTED = 130
INTERNAL_ERROR = 70

# Typer carries a copy of click from 0.22 on and imports click before, so click's base of all usage errors is found
# through one that Typer exports.
_ClickException: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take as long to import as everything else
    help="Asks of an optimizer not only how fast it is, but what kind of solution it finds.",
)


def _path(option: str) -> Callable[[str | Path], Path]:
    """The parser of an option whose value is a path; `~` is the home directory however the value was given."""

    def parse(value: str | Path) -> Path:
        return user_path(value, option)

    return parse


def _output(value: str) -> str:
    """The parser of `--output` where `-` is standard output."""
    return value if value == "-" else str(user_path(value, "--output"))


RunsDir = Annotated[
    Path, typer.Option(metavar="DIR", parser=_path("--runs-dir"), help="The folder that holds the runs.")
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        autocompletion=completion.formats,
        help="terminal, markdown, html, latex, csv or json; by default that of FILE's suffix, or terminal.",
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
        autocompletion=completion.devices,
        help="auto, cpu, cuda, cuda:N or mps; auto takes the best there is.",
    ),
]
RunName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The run's id, instead of the suite's name and the time.")
]
OnlyExperiments = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", autocompletion=completion.experiments, help="Only this experiment. Repeatable."),
]
OnlyModels = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", autocompletion=completion.models, help="Only this model. Repeatable."),
]
OnlyOptimizers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=TARGET]",
        autocompletion=completion.optimizers,
        help="Only this optimizer of the suite; or, with =, add one: NAME=module:Class or NAME=./file.py:Class. "
        "Repeatable; both together keep those named.",
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
        parser=_path("--data-dir"),
        help="The folder of datasets that do not come with optbench.",
    ),
]
Suite = Annotated[
    str | None,
    typer.Argument(
        metavar="SUITE",
        autocompletion=completion.suites,
        help="A suite file, or a name that `optbench list suites` shows.",
    ),
]
Jobs = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Worker processes; by default one per core, or one per GPU.")
]
ForceResume = Annotated[
    bool,
    typer.Option(
        "--force",
        help="With --resume: continue even if torch, the kind of device, the CPU or your code has changed.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, and train nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show only results, warnings and errors.")]
# `main` looks for the flag itself, so that it works wherever it stands and when the rest cannot be parsed.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        try:
            version = importlib.metadata.version("optbench")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"optbench {version}")
        raise typer.Exit


@app.callback()
def optbench(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Options that come before a command."""


@app.command()
def run(
    context: typer.Context,
    suite: Suite = None,
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    name: RunName = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N", help="How many (10: seeds 0 to 9), or which (0,1,2; with a comma, even one: 7,)."),
    ] = None,
    experiment: OnlyExperiments = None,
    model: OnlyModels = None,
    optimizer: OnlyOptimizers = None,
    set_: SetOption = None,
    data_dir: DataDir = None,
    jobs: Jobs = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", autocompletion=completion.runs, help="Continue a run: its directory, its id, or latest."
        ),
    ] = None,
    force: ForceResume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a suite and show what each optimizer found."""
    from optbench.cli.training import Request, train_suite

    request = Request(
        suite=suite,
        device=device,
        runs_dir=runs_dir,
        name=name,
        seeds=seeds,
        experiments=tuple(experiment or ()),
        models=tuple(model or ()),
        optimizers=tuple(optimizer or ()),
        settings=tuple(set_ or ()),
        data_dir=data_dir,
        jobs=jobs,
        resume=resume,
        force=force,
        dry_run=dry_run,
        quiet=quiet,
        debug=debug or bool(context.find_root().params.get("debug")),
    )
    try:
        code = train_suite(request)
    except KeyboardInterrupt:
        raise typer.Abort from None  # Typer would leave in silence
    raise typer.Exit(code)


@app.command()
def tune(
    context: typer.Context,
    suite: Suite = None,
    sampler: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.samplers,
            help="grid: all of the suite's grids; random or tpe: draw from them (Optuna).",
        ),
    ] = "grid",
    trials: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With random or tpe: how many settings of each; by default as many as a grid.",
        ),
    ] = None,
    widen: Annotated[
        bool, typer.Option("--widen", help="Search beyond the edge of a grid whose best setting lies there.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            parser=_path("--output"),
            help="Write the tuned suite to this new file, too.",
        ),
    ] = None,
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    name: RunName = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N", help="How many tuning seeds, or which (1000,1001); none of the suite's own."),
    ] = None,
    experiment: OnlyExperiments = None,
    optimizer: OnlyOptimizers = None,
    set_: SetOption = None,
    data_dir: DataDir = None,
    jobs: Jobs = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", autocompletion=completion.runs, help="Continue a tuning: its directory, its id, or latest."
        ),
    ] = None,
    force: ForceResume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Choose hyper-parameters for every optimizer of a suite, by validation data on seeds of their own.

    What is searched stands in the suite, under tune; without it, the learning rate of each around its own. The run has
    every setting that was tried; the tuned suite is a copy of the file with the chosen values in it.
    """
    from optbench.cli.training import Request
    from optbench.cli.tuning import TuneRequest, tune_suite

    run_options = Request(
        suite=suite,
        device=device,
        runs_dir=runs_dir,
        name=name,
        seeds=seeds,
        experiments=tuple(experiment or ()),
        optimizers=tuple(optimizer or ()),
        settings=tuple(set_ or ()),
        data_dir=data_dir,
        jobs=jobs,
        resume=resume,
        force=force,
        dry_run=dry_run,
        quiet=quiet,
        debug=debug or bool(context.find_root().params.get("debug")),
    )
    request = TuneRequest(run_options, sampler, trials, widen, output)
    try:
        code = tune_suite(request)
    except KeyboardInterrupt:
        raise typer.Abort from None  # as in `run`
    raise typer.Exit(code)


@app.command()
def compare(
    run_a: Annotated[
        str,
        typer.Argument(
            metavar="RUN_A[:OPTIMIZER]",
            autocompletion=completion.run_and_optimizer,
            help="What is judged: a run, or one optimizer of a run.",
        ),
    ],
    run_b: Annotated[
        str,
        typer.Argument(
            metavar="RUN_B[:OPTIMIZER]",
            autocompletion=completion.run_and_optimizer,
            help="What it is judged against.",
        ),
    ],
    runs_dir: RunsDir = Path("runs"),
    experiment: OnlyExperiments = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", autocompletion=completion.metrics, help="Show only this metric. Repeatable."),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC:±SIZE[%]",
            help="Leave with 1 when A - B is beyond this, the whole 95% interval of it; % is of B's median. "
            'As in "forgetting:+0.02" or "average_accuracy:-1%". Repeatable.',
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A gate that is inconclusive fails too.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs of different suites, seeds or versions of the metrics.")
    ] = False,
    format_: FormatOption = None,
    output: OutputOption = None,
    debug: Debug = False,
) -> None:
    """Compare two runs, or two optimizers, seed by seed, with verdicts; A is judged against B.

    Two runs: every optimizer that both have. With :OPTIMIZER (or :OPTIMIZER/VARIANT) the two that are named, also
    inside one run: optbench compare latest:shampoo latest:adamw
    """
    from optbench.cli.comparing import CompareRequest, compare_runs

    request = CompareRequest(
        a=run_a,
        b=run_b,
        runs_dir=runs_dir,
        experiments=tuple(experiment or ()),
        metrics=tuple(metric or ()),
        gates=tuple(fail_on or ()),
        strict=strict,
        force=force,
        format=format_,
        output=output,
    )
    raise typer.Exit(compare_runs(request))


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            autocompletion=completion.runs,
            help="Run directories, run ids, or latest (the default).",
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    format_: FormatOption = None,
    output: OutputOption = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=_path("--figures"), help="Write the figures there too, as SVG, PNG and PDF."
        ),
    ] = None,
    median: Annotated[
        bool, typer.Option("--median", help="Tables of median [quartiles] instead of mean±standard deviation.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what runs have found: tables, claims with verdicts, figures; several runs side by side."""
    from optbench.cli.reporting import ReportRequest, report_runs

    report_runs(ReportRequest(tuple(runs or ["latest"]), runs_dir, format_, output, figures, median))


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            autocompletion=completion.registered,
            help="A name that `optbench list optimizers` shows, module:Class or ./file.py:Class.",
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set a hyper-parameter of it. Repeatable."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Try an optimizer on a small problem: what it keeps of what a run relies on, line by line.

    Leaves with 1 when something is not kept.
    """
    from optbench.cli.checking import CheckRequest, check_optimizer

    try:
        code = check_optimizer(CheckRequest(target, tuple(set_ or ())))
    except KeyboardInterrupt:
        raise typer.Abort from None  # as in `run`
    raise typer.Exit(code)


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            autocompletion=completion.kinds,
            help="optimizers, datasets, tasks, models, metrics, suites or runs.",
        ),
    ],
    runs_dir: RunsDir = Path("runs"),
    debug: Debug = False,
) -> None:
    """List optimizers, datasets, metrics, suites, runs, ..."""
    from optbench.cli.listing import list_kind

    list_kind(kind, runs_dir)


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    standard_streams.open_missing()
    for stream in (sys.stdout, sys.stderr):
        # An arrow that a terminal's encoding does not have must not end a run.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        if wrong := [word for word in given if not is_utf8(word)]:
            raise UsageError(f"'{wrong[0]}': expected text in UTF-8, got other bytes")
        with completion.words_of_bash():
            code: Any = app(given or ["--help"], prog_name="optbench", standalone_mode=False)
    except OptbenchError as error:
        code = _say(error, str(error), error.exit_code, debug=debug)
    except _ClickException as error:
        message = escaped(error.format_message())  # type: ignore[attr-defined]
        code = _say(error, f"{message} (see optbench --help)", 2, debug=debug)
    except (typer.Abort, KeyboardInterrupt) as error:
        code = _say(error, "interrupted", INTERRUPTED, debug=debug)
    except SystemExit as error:
        # Typer and rich leave with 1, which means a failed gate here, when the reader of a pipe has gone.
        if isinstance(error.__context__, BrokenPipeError):
            code = _reader_gone()
        elif error.code and {"--install-completion", "--show-completion"} & set(given):
            code = 2  # a shell that is not known, which Typer has said
        else:
            raise
    except BrokenPipeError:
        code = _reader_gone()
    except Exception as error:
        # Typer writes its help and the version by itself.
        undelivered = standard_streams.undelivered(sys.stdout) if isinstance(error, OSError) else None
        if undelivered is not None:
            code = _say(error, f"standard output: cannot write: {undelivered.strerror}", 2, debug=debug)
        else:
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            code = _say(error, f"internal error: {message}; --debug shows the traceback", INTERNAL_ERROR, debug=debug)
    standard_streams.undelivered(sys.stderr)
    return code if isinstance(code, int) else 0


def _say(error: BaseException, message: str, code: int, *, debug: bool) -> int:
    with contextlib.suppress(OSError):
        if debug:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        for line in message.split("\n"):
            sys.stderr.write(f"optbench: {escaped(line)}\n")
    return code


def _reader_gone() -> int:
    standard_streams.discard(sys.stdout)
    return 0
