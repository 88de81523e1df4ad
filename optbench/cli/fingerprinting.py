"""`optbench fingerprint`: train an optimizer, or read a finished run, and show a page about the optimizer."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path

from optbench.cli.output import results, say
from optbench.cli.training import DONE, INTERRUPTED, NOTHING_MEASURED, SOME_FAILED, Request, options_of, watched
from optbench.counting import kept
from optbench.errors import UsageError, nearest
from optbench.selection import check_name, parse_seeds
from optbench.store import find_run, read_run
from optbench.store.read import run_ids
from optbench.studies.fingerprint import panel, terminal
from optbench.studies.fingerprint.drawing import check_file, draw, save
from optbench.studies.fingerprint.standing import Fingerprint
from optbench.studies.fingerprint.training import (
    LATEST,
    Wanted,
    check_unused,
    find_fingerprinted,
    train,
    wanted_again,
)
from optbench.targets.source import is_file


@dataclass(frozen=True)
class FingerprintRequest:
    """The options of `optbench fingerprint` as given. run: the options shared with `optbench run`."""

    target: str | None
    run: Request
    quick: bool = False
    outputs: tuple[Path, ...] = ()


def fingerprint_target(request: FingerprintRequest) -> int:
    """Train if needed, show the page and write it to the outputs; return the exit code.

    Raises:
        OptbenchError: the target, a setting, the run, the device or an output is invalid.
    """
    for output in request.outputs:
        check_file(output, f"--output {output}")
    if request.run.resume is not None and request.target is not None:
        raise UsageError("TARGET and --resume: a resumed run keeps its target; give one of the two")
    drawn = None
    if request.target is not None and not request.run.settings:
        drawn = find_fingerprinted(request.target, request.run.runs_dir)
    if drawn is not None:
        given = {"--seeds": request.run.seeds, "--quick": request.quick or None, "--name": request.run.name}
        if of_training := [option for option, value in given.items() if value is not None]:
            option = of_training[0]
            raise UsageError(f"{request.target}: a finished run is drawn as it is; it cannot be combined with {option}")
        return _show(request, *drawn)
    return _train(request)


def _train(request: FingerprintRequest) -> int:
    given = request.run
    if given.resume is not None:
        resume = find_run(given.resume, given.runs_dir)
        wanted = wanted_again(resume)
    elif request.target is None:
        raise UsageError(
            "fingerprint: expected a TARGET (a name from `optbench list optimizers`, ./file.py:Class or RUN), got none"
        )
    else:
        resume = None
        _check_no_run_was_meant(request.target, given.runs_dir)
        check_name(given.name)
        if given.name is not None:
            check_unused(given.runs_dir, given.name)
        seeds = parse_seeds(given.seeds) if given.seeds is not None else ()
        panel.check_seeds(panel.shipped(), seeds, "--seeds")
        wanted = Wanted(request.target, given.settings, seeds, request.quick)
    with watched(given) as view:
        view.counts_seeds = False  # the page itself says how many seeds its verdicts need
        trained = train(wanted, options_of(given, resume), view)
    if trained.interrupted:
        finished = read_run(trained.run).table("trials", "trial").num_rows
        again = trained.tuning or trained.run
        command = ["fingerprint", "--resume"] if trained.tuning is not None else ["run", "--resume"]
        say(f"optbench: interrupted; {kept(finished)}; continue with: {shlex.join(['optbench', *command, str(again)])}")
        return INTERRUPTED
    return _show(request, trained.run, trained.optimizer, new=True)


def _check_no_run_was_meant(target: str, runs_dir: Path) -> None:
    """Raise UsageError for a target such as `latst:adamw` if `latst` is not a module but resembles a run's name."""
    where, _, optimizer = target.rpartition(":")
    module = where.partition(".")[0]
    meant = nearest(where, [LATEST, *run_ids(runs_dir)]) if where and not is_file(where) else None
    if meant is not None and not Path(module).exists() and importlib.util.find_spec(module) is None:
        raise UsageError(f"{target}: unknown run or module '{where}'; did you mean '{meant}:{optimizer}'?")


def _show(request: FingerprintRequest, path: Path, optimizer: str | None, *, new: bool = False) -> int:
    found = draw(path, optimizer)
    for output in request.outputs:
        save(found, output)
    with results() as console:
        terminal.show(found, console)
        if new and not request.run.quiet:
            console.print(f"\nResults: {path}", markup=False, highlight=False, soft_wrap=True)
    return _code(found)


def _code(found: Fingerprint) -> int:
    states = [state for trials in found.entry.trials.values() for state in trials.states]
    if all(state == "failed" for state in states):
        say("optbench: nothing was measured")
        return NOTHING_MEASURED
    return SOME_FAILED if "failed" in states else DONE
