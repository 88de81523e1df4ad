"""`optbench.run` and `optbench.load_suite`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.counting import count, kept
from optbench.errors import UsageError
from optbench.execution.session import Options
from optbench.execution.session import run as train
from optbench.interface.arguments import suggesting
from optbench.interface.given import GivenOptimizers, GivenSuite, choice_of, suite_file
from optbench.interface.results import Run, read_run
from optbench.interface.watching import watching
from optbench.kinds import AS_WRITTEN
from optbench.selection import Choice, check_directory, choose
from optbench.suite import Suite, resolve_suite_path
from optbench.suite.extends import rebased
from optbench.suite.placing import placing
from optbench.targets import Objects, using


@suggesting
def run(
    suite: GivenSuite | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    optimizers: GivenOptimizers | None = None,
    experiments: Sequence[str] = (),
    models: Sequence[str] = (),
    set: Mapping[str, Any] | None = None,
    device: str = "auto",
    on: str = "local",
    set_on: Mapping[str, str | int] | None = None,
    jobs: int | None = None,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    data_dir: str | Path | None = None,
    resume: str | Path | Run | None = None,
    force: bool = False,
    progress: bool = False,
) -> Run:
    """Train a suite in worker processes and return the run; failed trials are recorded and cause a warning.

    Args:
        suite: the name of a shipped suite, a path, a mapping (as in a suite file, with classes and functions allowed
            instead of targets), or a result of `load_suite`. Optional with `resume`.
        seeds: the number of seeds, or a list of seeds.
        optimizers: names of optimizers to select; or a mapping, which adds optimizers: name -> class, function, target,
            or a mapping with one of these as `target` and hyper-parameters next to it. The value None selects an
            optimizer of the suite.
        experiments: the experiments to run; all if empty.
        models: the models to train; all if empty.
        set: settings by path, such as `{"experiments.small.protocol.max_epochs": 3}`.
        device: the device, as for `--device` of `optbench run`. The next six arguments also correspond to its options.
        on: where workers run: `local`, `ray`, `ray:HOST:PORT`, `slurm`.
        set_on: settings of SLURM jobs, such as `{"partition": "gpu"}`.
        jobs: number of worker processes.
        runs_dir: the folder that holds the runs.
        name: the run's id.
        data_dir: the folder of datasets that do not come with optbench.
        resume: a run to continue. Objects passed to the original call must be passed again.
        force: with `resume`, whether to continue even if torch, the kind of device, the CPU or your code has changed;
            with `on`, whether also to use workers with other versions of torch or optbench.
        progress: whether to show progress on standard error.

    Raises:
        OptbenchError: the suite, device, data or directory is invalid.
        KeyboardInterrupt: training was interrupted; finished trials are kept.
    """
    objects = Objects()
    existing = read_run(resume, runs_dir).path if resume is not None else None
    if suite is None and existing is None:
        raise UsageError("suite: expected a name, a path or a mapping, got none; it can be omitted only with 'resume'")
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs: expected at least 1, got {jobs}")
    with suite_file(f"{existing}/suite.yaml" if suite is None else suite, objects) as file:
        check_directory(name, existing, force=force and on == "local")
        choice = choice_of(seeds, optimizers, experiments, models, set or {}, objects, only_known=suite is None)
        folder = Path.cwd() if isinstance(suite, Mapping | Suite) else file.parent
        options = Options(
            device=str(device),
            on=str(on),
            set_on=tuple(f"{name}={value}" for name, value in (set_on or {}).items()),
            runs_dir=Path(runs_dir),
            name=name,
            data_dir=Path(data_dir) if data_dir is not None else None,
            jobs=jobs,
            resume=existing,
            force=force,
            suite_folder=folder if suite is not None else None,
            command=(_call(suite, choice),),
        )
        notes: list[str] = []
        watched = watching(notes, progress=progress)
        with using(objects.sources), placing(file, choice.settings), watched as view:
            outcome = train(_moved(choose(file, choice), file.parent, folder), options, view)
    if outcome.interrupted:
        finished = sum(outcome.statuses.values())
        raise KeyboardInterrupt(f"{kept(finished)}; continue with optbench.run(resume={str(outcome.path)!r}, ...)")
    found = read_run(outcome.path)
    for text in (*notes, *failures(found)):
        warnings.warn(text, stacklevel=3)  # the caller's line, skipping `suggesting`
    return found


def load_suite(suite: str | Path) -> Suite:
    """Load a suite by name or path, to inspect it or pass it to `run`.

    Paths of files in the suite are rewritten relative to the working directory.

    Raises:
        OptbenchError: there is no such suite, or it is not valid.

    Example:
        >>> import optbench
        >>> suite = optbench.load_suite("smoke")
        >>> suite.name, list(suite.experiments)
        ('smoke', ['permuted-mnist', 'digit-pairs'])
    """
    path = resolve_suite_path(str(suite))
    return _moved(choose(path, Choice()), path.parent, Path())


def _moved(suite: Suite, folder: Path, to: Path) -> Suite:
    """Return the suite with its file names, which are relative to `folder`, rewritten relative to the folder `to`."""
    return Suite.model_validate(rebased(suite.model_dump(), folder, to), context=AS_WRITTEN)


def failures(run: Run) -> list[str]:
    """Return a list with one sentence about failed trials; empty if none failed."""
    trials = run.table("trials", controls=True)
    failed = trials[trials["status"] == "failed"].to_dict("records")
    said = f"{len(failed)} of {count(len(trials), 'trial')} failed"
    return [
        f"{said}; the first is {one['trial']}, with {one['error_type']}: "
        f"{' '.join(str(one['error_message']).split())}; the table 'trials' lists all errors"
        for one in failed[:1]
    ]


def _call(suite: GivenSuite | None, choice: Choice) -> str:
    """Return the call as `run.json` records it, with targets instead of objects."""
    named = [repr(str(suite)) if isinstance(suite, str | Path) else type(suite).__name__] if suite is not None else []
    chosen = [f"{name}={list(value)!r}" for name, value in vars(choice).items() if value and name != "additions"]
    added = {addition.name: addition.target for addition in choice.additions}
    return f"optbench.run({', '.join([*named, *chosen, *([f'additions={added!r}'] if added else [])])})"
