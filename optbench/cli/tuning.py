"""`optbench tune`: make a tuning run and the tuned suite from the options."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError

from optbench.cli.dry_run import show_plan
from optbench.cli.output import results, say
from optbench.cli.training import DONE, Request, conclude, options_of, watched
from optbench.errors import OptbenchError, StoreError, SuiteError, UsageError, escaped, unknown
from optbench.selection import Choice, check_name, choose, parse_optimizers, parse_seeds
from optbench.store import find_run
from optbench.store.files import write_text
from optbench.store.read import read_json
from optbench.studies.tuning.space import tuning_seeds, untuned_lines
from optbench.studies.tuning.tuned_suite import tuned_suite, tuned_text
from optbench.studies.tuning.tuner import Method, Tuner, first_plan, tune
from optbench.suite import Suite, resolve_suite_path, shipped_suites
from optbench.suite.dump import dump
from optbench.suite.extends import difference, read_document, relative
from optbench.suite.placing import placing
from optbench.suite.schema import Sampler

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
SOURCE = "source.yaml"
"""File name of the suite's copy in the run directory; a resumed tuning run reads this copy."""
TUNED = "tuned.yaml"


@dataclass(frozen=True)
class TuneRequest:
    """The options of `optbench tune` as given. run: the options shared with `optbench run`."""

    run: Request
    sampler: str = "grid"
    trials: int | None = None
    widen: bool = False
    output: Path | None = None


@dataclass(frozen=True)
class _What:
    """The settings of a tuning run as recorded in `run.json`, sufficient to resume the run."""

    file: str
    """The suite as named by the user."""
    command: str
    seeds: str | None
    experiments: list[str]
    optimizers: list[str]
    settings: list[str]
    sampler: Sampler
    trials: Annotated[int, Field(ge=1)] | None
    widen: bool


def tune_suite(request: TuneRequest) -> int:
    """Tune as requested, print the results and write the tuned suite; return the exit code.

    Raises:
        OptbenchError: the request, suite, device, data or runs directory is invalid.
    """
    run = request.run
    resume = find_run(run.resume, run.runs_dir) if run.resume is not None else None
    if request.output is not None and request.output.exists():
        raise UsageError(f"--output {request.output}: this file exists; expected the path of a new file")
    if request.output is not None and not request.output.parent.is_dir():
        raise UsageError(f"--output {request.output}: there is no directory {request.output.parent}")
    what, path = _asked(request) if resume is None else _recorded(request, resume)
    tuner = _tuner(what, path)
    if not run.quiet:
        for line in untuned_lines(tuner.searches.left):
            say(f"optbench: {escaped(line)}")
    options = options_of(run, resume)
    if run.dry_run:
        tuner.propose([])
        show_plan(first_plan(tuner, options), options)
        return DONE
    extends, raw = _source(what, path)
    with placing(path, what.settings), watched(run) as view:
        outcome, found = tune(tuner, options, view, asdict(what), {SOURCE: dump(raw)})
    if outcome.interrupted:
        return conclude(outcome, run.quiet, command="tune")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("optbench", "torch"))
    seeds = ", ".join(map(str, tuner.seeds))
    header = [what.command, f"run {outcome.path.name}, tuning seeds {seeds}, {versions}"]
    _, additions = parse_optimizers(what.optimizers)
    whole = choose(path, Choice(additions=additions, settings=tuple(what.settings)))  # every experiment and optimizer
    meant = tuned_suite(whole, tuner, found)
    changes = difference(raw, choose(path, Choice()), meant)
    kept = outcome.path / TUNED
    write_text(kept, tuned_text(SOURCE, changes, header))
    if (target := request.output or kept) != kept:
        base = extends if isinstance(extends, str) else relative(extends or outcome.path / SOURCE, target.parent)
        try:
            write_text(target, tuned_text(base, changes, header, (path.parent, Path()), target.parent))
        except StoreError as error:
            raise StoreError(*error.args, f"the tuned suite is in {kept}") from error
    code = conclude(outcome, run.quiet, command="tune")
    if not run.quiet:
        with results() as console:
            console.print(f"Tuned suite: {target}", markup=False, highlight=False, soft_wrap=True)
    return code


def _asked(request: TuneRequest) -> tuple[_What, Path]:
    run = request.run
    if run.suite is None:
        raise UsageError("tune: expected a SUITE (a path, or a name from `optbench list suites`), got none")
    check_name(run.name)
    if request.sampler not in SAMPLERS:
        raise UsageError(f"--sampler: {unknown('sampler', request.sampler, SAMPLERS)}")
    if request.sampler == "grid" and request.trials is not None:
        raise UsageError("--trials: expected --sampler random or tpe, got grid, whose size is given by the suite")
    if request.widen:
        _check_widened(request.sampler)
    what = _What(
        file=run.suite,
        command=shlex.join(["optbench", *sys.argv[1:]]),
        seeds=run.seeds,
        experiments=list(run.experiments),
        optimizers=list(run.optimizers),
        settings=list(run.settings),
        sampler=request.sampler,
        trials=request.trials,
        widen=request.widen,
    )
    return what, resolve_suite_path(run.suite)


def _recorded(request: TuneRequest, resume: Path) -> tuple[_What, Path]:
    given = {
        "SUITE": request.run.suite,
        "--name": request.run.name,
        "--seeds": request.run.seeds,
        "--experiment": request.run.experiments,
        "--optimizer": request.run.optimizers,
        "--set": request.run.settings,
        "--trials": request.trials,
    }
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} and --resume: a resumed tuning run keeps its options; give one of the two")
    record = read_json(resume).get("tune")
    if not isinstance(record, Mapping) or not (resume / SOURCE).is_file():
        raise UsageError(f"--resume {resume}: expected a tuning run; other runs are resumed by optbench run --resume")
    try:
        what = TypeAdapter(_What).validate_json(json.dumps(record), strict=True)
    except ValidationError:
        raise StoreError(f"{resume / 'run.json'}: tune: expected the record that optbench tune writes") from None
    if request.widen and not what.widen:
        # widening starts from the rounds that are already finished
        _check_widened(what.sampler)
        what = replace(what, widen=True, command=f"{what.command} --widen")
    return what, resume / SOURCE


def _check_widened(sampler: str) -> None:
    if sampler != "grid":
        raise UsageError(f"--widen: expected --sampler grid, got {sampler}; set wider ranges in 'tune.optimizers'")


def _tuner(what: _What, path: Path) -> Tuner:
    keep, additions = parse_optimizers(what.optimizers)
    suite = choose(path, Choice((), tuple(what.experiments), keep, additions, tuple(what.settings)))
    try:
        return Tuner.of(suite, Method(what.sampler, what.trials, what.widen), _seeds(what.seeds, suite))
    except SuiteError as error:
        raise SuiteError(f"{what.file}: {error}") from None


def _seeds(text: str | None, suite: Suite) -> list[int] | None:
    """Parse tuning seeds: `3` means three seeds, `1000,1001` means these two."""
    if text is None:
        return None
    seeds = parse_seeds(text)
    return list(seeds) if "," in text else tuning_seeds(suite, len(seeds))


def _source(what: _What, path: Path) -> tuple[str | Path | None, dict[str, Any]]:
    """Return the base of the tuned suite, and the content of the suite being tuned.

    The base, which the tuned suite extends, is the name of a shipped suite or the path of a file. It is None if the
    original suite no longer exists or has changed.
    """
    raw = read_document(path).value
    try:
        named = resolve_suite_path(what.file)
        same = read_document(named).value == raw
    except OptbenchError:
        same = False
    return (what.file if what.file in shipped_suites() else named) if same else None, raw
