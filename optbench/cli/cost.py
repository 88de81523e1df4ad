"""The command `cost` with its options. Like `app`, this module imports nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optbench.cli import completion, options


def cost(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OPTIMIZER",
            autocompletion=completion.contenders,
            help="A name from `optbench list optimizers`, module:Class or ./file.py:Class; NAME=TARGET renames it. "
            "By default, common optimizers, including Shampoo with and without blocks.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            autocompletion=completion.one_of(completion.SIZES),
            help="tiny, small (the default, both) or bert-base. Repeatable.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.KEY=VALUE", help="Set a hyper-parameter of one optimizer. Repeatable."),
    ] = None,
    device: options.Device = "auto",
    threads: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Numbers of CPU threads to use; by default, 1 and the number of cores."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", parser=options.whole("--batch", 1), help="Sequences per batch.")
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            metavar="N",
            parser=options.whole("--steps", 2),
            help="Number of steps to measure, not counting an optimizer's first step.",
        ),
    ] = 20,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="S",
            parser=options.number("--seconds", 0),
            help="Time limit in seconds for the warm-up and, with each number of threads, for the measured steps; at "
            "least two steps are measured.",
        ),
    ] = 20.0,
    warm_up: Annotated[
        int,
        typer.Option(
            metavar="N",
            parser=options.whole("--warm-up", 0),
            help="Number of warm-up steps; fewer if they reach the time limit, --seconds. Matrix roots change fastest "
            "in the first steps.",
        ),
    ] = 50,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="S",
            parser=options.number("--timeout", 1),
            help="Stop an optimizer after this many seconds on one size.",
        ),
    ] = 1800.0,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            parser=options.number("--memory", 0.1),
            help="Memory limit; by default, 80% of the available memory.",
        ),
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    format_: options.FormatOption = None,
    output: options.OutputOption = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure the cost of optimizers on a transformer's parameters.

    The costs are the time per step, the size of the state and the peak memory. Each optimizer is measured in a separate
    process. Optimizers that do not fit into memory are not run; the memory that they would need is listed. The result
    is saved under --runs-dir; optbench report shows it again, in any format.
    """
    from optbench.cli import costing
    from optbench.costing.contenders import chosen
    from optbench.costing.session import CostPlan
    from optbench.report.formats import choose_format

    form = choose_format(format_, output)
    named = chosen(optimizers or (), set_ or ())
    sizes = costing.known_sizes(size or ())
    # after the arguments are validated, because torch takes seconds to import
    device, available = costing.device_and_memory(device)
    plan = CostPlan(
        contenders=costing.usable(named, all_needed=bool(optimizers)),
        sizes=sizes,
        threads=costing.thread_counts(threads) if device == "cpu" else (1,),
        device=device,
        steps=steps,
        seconds=seconds,
        timeout=timeout,
        limit=available if memory is None else round(memory * 2**30),
        warm_up=warm_up,
        batch=batch,
    )
    raise typer.Exit(costing.measure_and_show(plan, runs_dir, form, output, quiet=quiet))
