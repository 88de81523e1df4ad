"""The commands. This module imports nothing slow, so that `--help` is fast; each command imports what it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from optbench.cli import completion, options
from optbench.cli.cost import cost

if TYPE_CHECKING:
    from optbench.cli.training import Request


class _Group(TyperGroup):
    """A command group that turns an interrupt into `typer.Abort`, which `entry` reports; Typer would exit silently."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _aborting():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _aborting():
            return super().invoke(ctx)


@contextlib.contextmanager
def _aborting() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Abort from None


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take as long to import as everything else
    help="Measure what kind of solution an optimizer finds, not just how fast it learns.",
)


def _leave(command: Callable[[], int]) -> NoReturn:
    raise typer.Exit(command())


def _request(context: typer.Context) -> Request:
    """Return the options that a command shares with `run`, as given on the command line."""
    from optbench.cli.training import Request

    many = {"experiments": "experiment", "models": "model", "optimizers": "optimizer", "settings": "set_"}
    named = {field.name: many.get(field.name, field.name) for field in fields(Request)}
    given: dict[str, Any] = {name: context.params[key] for name, key in named.items() if key in context.params}
    given |= {name: tuple(given.get(name) or ()) for name in (*many, "set_on")}
    given["debug"] = bool(given["debug"] or context.find_root().params.get("debug"))
    return Request(**given)


@contextlib.contextmanager
def _early(context: typer.Context) -> Iterator[None]:
    """Start the process that forks workers, if there is a readable suite to run; call this before the slow imports.

    Errors in the suite or the run are reported by the command itself.
    """
    given = context.params
    wanted = not given["dry_run"]
    if wanted:
        from optbench.errors import OptbenchError
        from optbench.suite.extends import read_document
        from optbench.suite.resolve import resolve_suite_path

        try:
            if given["suite"] is not None:
                read_document(resolve_suite_path(given["suite"]))
            elif given["resume"] is not None:
                from optbench.store.read import find_run

                find_run(given["resume"], given["runs_dir"])
            else:
                wanted = False
        except OptbenchError:
            wanted = False
    from optbench.execution.nursery import early

    with early(given["device"], wanted=wanted and given["on"] == "local"):
        yield


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
    debug: options.Debug = False,
) -> None:
    """Options that come before a command."""


@app.command()
def run(
    context: typer.Context,
    suite: options.Suite = None,
    device: options.Device = "auto",
    on: options.On = "local",
    set_on: options.SetOn = None,
    runs_dir: options.RunsDir = Path("runs"),
    name: options.RunName = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Number of seeds (10 means seeds 0 to 9), or a list such as 0,1,2 ('7,' is only seed 7)."
        ),
    ] = None,
    experiment: options.OnlyExperiments = None,
    model: options.OnlyModels = None,
    optimizer: options.OnlyOptimizers = None,
    set_: options.SetOption = None,
    data_dir: options.DataDir = None,
    jobs: options.Jobs = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", autocompletion=completion.runs, help="Continue this run: its directory, its id, or latest."
        ),
    ] = None,
    force: options.ForceResume = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a suite and show what each optimizer found."""

    def command() -> int:
        with _early(context):
            from optbench.cli.training import train_suite

            return train_suite(_request(context))

    _leave(command)


@app.command(short_help="Choose hyper-parameters for the optimizers of a suite.")
def tune(
    context: typer.Context,
    suite: options.Suite = None,
    sampler: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.one_of(completion.SAMPLERS),
            help="grid: try every setting of the suite's grids; random or tpe: sample settings (with Optuna).",
        ),
    ] = "grid",
    trials: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=options.whole("--trials", 1),
            help="With random or tpe: number of settings to try per optimizer; by default, as many as its grid has.",
        ),
    ] = None,
    widen: Annotated[
        bool,
        typer.Option(
            "--widen",
            help="If a grid's best setting lies at an edge, extend the grid and continue the search. The other "
            "optimizers get the same number of new settings, inside their grids.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            parser=options.path_option("--output"),
            help="Also write the tuned suite to this file, which must not exist.",
        ),
    ] = None,
    device: options.Device = "auto",
    on: options.On = "local",
    set_on: options.SetOn = None,
    runs_dir: options.RunsDir = Path("runs"),
    name: options.RunName = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Number of tuning seeds, or a list (1000,1001) with none of the suite's own seeds."
        ),
    ] = None,
    experiment: options.OnlyExperiments = None,
    optimizer: options.OnlyOptimizers = None,
    set_: options.SetOption = None,
    data_dir: options.DataDir = None,
    jobs: options.Jobs = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=completion.runs,
            help="Continue this tuning run: its directory, its id, or latest.",
        ),
    ] = None,
    force: options.ForceResume = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Choose hyper-parameters for every optimizer of a suite.

    Settings are compared on validation data, with seeds that the suite does not use. The suite defines the search
    space under the key tune. Without this key, learning rates around the one given for each optimizer are tried. The
    run contains every setting that was tried; the tuned suite extends the original suite with the chosen values.
    """

    def command() -> int:
        with _early(context):
            from optbench.cli.tuning import TuneRequest, tune_suite

            return tune_suite(TuneRequest(_request(context), sampler, trials, widen, output))

    _leave(command)


@app.command(short_help="Show on one page what kind of solution an optimizer finds.")
def fingerprint(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            autocompletion=completion.fingerprinted,
            help="The optimizer to train: a name from `optbench list optimizers`, module:Class or ./file.py:Class. "
            "Or RUN:OPTIMIZER, to show an optimizer of a finished run of the suite fingerprint.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Set a hyper-parameter; if lr is set, the learning rate is not tuned. Repeatable.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N", help="Number of the panel's seeds to use, or a list of them; verdicts require 10."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Use three seeds and tune the learning rate on one: a first look, without verdicts."
        ),
    ] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            parser=options.path_option("--output"),
            help="Also write the page to this file: .html, .png, .svg, .pdf or .json. Repeatable.",
        ),
    ] = None,
    device: options.Device = "auto",
    on: options.On = "local",
    set_on: options.SetOn = None,
    runs_dir: options.RunsDir = Path("runs"),
    name: options.RunName = None,
    jobs: options.Jobs = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=completion.runs,
            help="Continue an interrupted fingerprint; RUN is its tuning run, NAME-tune.",
        ),
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show on one page what kind of solution an optimizer finds.

    The command tunes the learning rate and trains the suite fingerprint. This takes about a minute and a half on two
    cores for an optimizer as cheap as AdamW. The page shows 16 properties next to those of known optimizers, verdicts
    against AdamW and SGD, and the nearest neighbours.
    """

    def command() -> int:
        from optbench.cli.fingerprinting import FingerprintRequest, fingerprint_target

        return fingerprint_target(FingerprintRequest(target, _request(context), quick, tuple(output or ())))

    _leave(command)


@app.command(short_help="Compare two runs, or two optimizers, seed by seed.")
def compare(
    run_a: Annotated[
        str,
        typer.Argument(
            metavar="RUN_A[:OPTIMIZER]",
            autocompletion=completion.run_and_optimizer,
            help="A: the run to judge, or one optimizer of a run.",
        ),
    ],
    run_b: Annotated[
        str,
        typer.Argument(
            metavar="RUN_B[:OPTIMIZER]",
            autocompletion=completion.run_and_optimizer,
            help="B: the run to judge A against, or one optimizer of a run.",
        ),
    ],
    runs_dir: options.RunsDir = Path("runs"),
    experiment: options.OnlyExperiments = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", autocompletion=completion.metrics, help="Show only this metric. Repeatable."),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Show exploratory metrics next to the primary ones, also on a terminal.")
    ] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC:±SIZE[%]",
            help="Exit with code 1 if the entire 95% interval of A - B is beyond this value (with %, relative to B's "
            "median), or if more trials of A than of B did not learn every task. "
            'Examples: "forgetting:+0.02", "learning_accuracy:-1%". Repeatable.',
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat inconclusive gates (--fail-on) as failed.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Compare runs even if their suites, seeds or versions of the metrics differ."),
    ] = False,
    format_: options.FormatOption = None,
    output: options.OutputOption = None,
    debug: options.Debug = False,
) -> None:
    """Compare two runs, or two optimizers, seed by seed.

    Each verdict judges A against B. By default, all optimizers that are in both runs are compared. The suffix
    :OPTIMIZER (or :OPTIMIZER/VARIANT) selects one on each side. Both sides can then be in the same run, for example:
    optbench compare latest:shampoo latest:adamw
    """
    from optbench.cli.comparing import compare_runs

    code = compare_runs(
        run_a,
        run_b,
        runs_dir,
        experiments=experiment or (),
        metrics=metric or (),
        gates=fail_on or (),
        everything=all_,
        strict=strict,
        force=force,
        format=format_,
        output=output,
    )
    raise typer.Exit(code)


@app.command(short_help="Show the results of runs: tables, claims and figures.")
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.reported,
            help="Run directories, run ids, or latest (the default); or results of optbench cost.",
        ),
    ] = None,
    against: options.Against = None,
    runs_dir: options.RunsDir = Path("runs"),
    format_: options.FormatOption = None,
    output: options.OutputOption = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=options.path_option("--figures"),
            help="Also write the figures to this folder, as SVG, PNG and PDF.",
        ),
    ] = None,
    median: Annotated[
        bool, typer.Option("--median", help="Show median [quartiles] in tables instead of mean±standard deviation.")
    ] = False,
    per_trial: options.PerTrial = False,
    debug: options.Debug = False,
) -> None:
    """Show the results of runs: tables, verdicts and figures.

    Several runs appear side by side.
    """
    from optbench.cli.reporting import report_runs

    report_runs(
        runs or ["latest"],
        runs_dir,
        against=against,
        format=format_,
        output=output,
        figures=figures,
        median=median,
        per_trial=per_trial,
    )


app.command(short_help="Measure the time per step and the memory of optimizers.")(cost)


@app.command(short_help="Merge runs of one suite on different seeds into one run.")
def merge(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.runs,
            help="Complete runs of one suite, each on different seeds.",
        ),
    ],
    runs_dir: options.RunsDir = Path("runs"),
    name: options.RunName = None,
    force: Annotated[
        bool, typer.Option("--force", help="Merge runs even if their versions of torch or kinds of machine differ.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Merge runs of one suite on different seeds into a new run.

    The new run equals a single run on all seeds. The given runs are not changed. They must have no seed in common,
    and the same suite, code and metric versions; without --force, also the same version of torch and kind of machine.
    """

    def command() -> int:
        from optbench.cli.merging import merge_runs

        return merge_runs(runs, runs_dir, name, force=force)

    _leave(command)


@app.command(short_help="Write a run as files for TensorBoard or Weights & Biases.")
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.runs,
            help="A run directory, a run id, or latest; the run need not be complete.",
        ),
    ],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", parser=options.path_option("DIR"), help="The folder to write to; it must be new or empty."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="TRACKER",
            autocompletion=completion.one_of(completion.TRACKERS),
            help="tensorboard, or wandb (offline: nothing is sent).",
        ),
    ],
    runs_dir: options.RunsDir = Path("runs"),
    debug: options.Debug = False,
) -> None:
    """Write a run as files for TensorBoard or Weights & Biases.

    The files contain the HTML report of the run and, for each trial, training curves, accuracies after each task,
    online accuracies, hyper-parameters and final metrics.
    """

    def command() -> int:
        from optbench.cli.exporting import export_run

        return export_run(run, to, folder, runs_dir)

    _leave(command)


@app.command(short_help="Check an optimizer, model, dataset, task sequence or metric.")
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            autocompletion=completion.known_targets,
            help="A name from `optbench list`, module:attribute or ./file.py:attribute.",
        ),
    ],
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="KIND",
            help="The target's kind, if it cannot be inferred: optimizer, model, dataset, tasks or metric.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set a hyper-parameter or another setting of the target. Repeatable."
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Check an optimizer, model, dataset, task sequence or metric.

    Each requirement is shown on one line. The exit code is 1 if a requirement is not met.
    """
    from optbench.cli.checking import check_target

    _leave(lambda: check_target(target, set_ or (), as_))


@app.command(short_help="Write a plug-in file and a suite to start from.")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to write to; created if it does not exist.")
    ],
    debug: options.Debug = False,
) -> None:
    """Write a plug-in file and a suite to start from.

    Both work without changes.
    """
    from optbench.cli.starting import init as write

    _leave(lambda: write(folder))


@app.command("list", short_help="List the available optimizers, models, suites, runs, etc.")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            autocompletion=completion.one_of(completion.KINDS),
            help="What to list: optimizers, datasets, tasks, models, metrics, suites or runs.",
        ),
    ],
    runs_dir: options.RunsDir = Path("runs"),
    debug: options.Debug = False,
) -> None:
    """List available optimizers, metrics, suites, runs and more."""
    from optbench.cli.listing import list_kind

    list_kind(kind, runs_dir)
