"""Training of one optimizer for its fingerprint: its learning rates are chosen, then the suite is run with them.

    target -> the suite with this optimizer alone -> run NAME-tune -> the suite with its learning rates -> run NAME

NAME-tune and NAME are ordinary runs. The fingerprint is computed from NAME, and the width of the learning-rate optimum
from NAME-tune.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optbench.errors import OptbenchError, StoreError, UsageError
from optbench.execution.session import Options, Outcome, run
from optbench.execution.view import View
from optbench.optimizers.registry import find, is_plugin
from optbench.selection import Addition, Choice, choose
from optbench.store.read import find_run, is_run, read_json
from optbench.studies.fingerprint.strips import SUITE
from optbench.studies.tuning.tuned_suite import tuned_suite
from optbench.studies.tuning.tuner import Method, Tuner, tune
from optbench.suite import Suite, load_suite, resolve_suite_path
from optbench.suite.placing import placing
from optbench.targets.source import is_file, split

TUNE = "-tune"
"""Name suffix of a run that chooses learning rates."""
RATE = "lr"
LATEST = "latest"
QUICK_SEEDS, QUICK_TUNING_SEEDS = 3, 1
KEY = "fingerprint"
"""Key under which the record of a tuning run stores the request (`Wanted`)."""


@dataclass(frozen=True)
class Wanted:
    """A request to train an optimizer.

    settings: the optimizer's hyper-parameters as `key=value`; if a learning rate is among them, nothing is tuned.
    seeds: the seeds to train; if empty, the suite's seeds, or three seeds if `quick`.
    quick: whether to train fewer seeds by default, and to tune with a single seed and without widening.
    """

    target: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    quick: bool = False


@dataclass(frozen=True)
class Trained:
    """The result of training an optimizer as requested by a `Wanted`.

    run: the directory of the run, or of the tuning run if tuning was interrupted.
    tuning: the directory of the run that chose the learning rates; None if nothing was tuned.
    interrupted: whether tuning or training was interrupted.
    """

    optimizer: str
    run: Path
    tuning: Path | None
    interrupted: bool


def train(wanted: Wanted, options: Options, view: View) -> Trained:
    """Tune and train an optimizer on the suite.

    If `options.resume` is given, it is the tuning run (`NAME-tune`) to resume.

    Raises:
        OptbenchError: the target, a setting, the device or the directory is invalid.
    """
    path = resolve_suite_path(SUITE)
    name, choice = _choice(wanted, path)
    with placing(path, choice.settings):
        try:
            suite = choose(path, choice)
        except OptbenchError as error:
            raise _in_the_users_words(error, name, wanted.target) from None
    here = replace(options, suite_folder=path.parent)
    resume = options.resume
    base = resume.name.removesuffix(TUNE) if resume is not None else options.name or _run_name(name)
    if resume is not None:
        here = replace(here, runs_dir=resume.parent)
    tuner = None if _rate_is_given(wanted.settings) else _tuner(suite, view, quick=wanted.quick)
    if tuner is None:
        outcome = run(suite, replace(here, name=base), view)
        return Trained(name, outcome.path, None, outcome.interrupted)
    tuned, tuning = _tuned(suite, tuner, wanted, replace(here, name=None if resume else f"{base}{TUNE}"), view)
    if tuned is None:
        return Trained(name, tuning.path, tuning.path, True)
    begun = here.runs_dir / base
    again = begun if resume is not None and is_run(begun) else None
    outcome = run(tuned, replace(here, name=None if again else base, resume=again), view)
    return Trained(name, outcome.path, tuning.path, outcome.interrupted)


def tuning_of(path: Path) -> Path | None:
    """Return the directory of the tuning run next to the run at `path`, or None if there is none."""
    beside = path.with_name(f"{path.name}{TUNE}")
    return beside if is_run(beside) else None


def wanted_again(tuning: Path) -> Wanted:
    """Return the request for which the tuning run at `tuning` was started.

    Raises:
        UsageError: the run was not started by `optbench fingerprint`.
    """
    record = read_json(tuning).get("tune")
    kept = record.get(KEY) if isinstance(record, Mapping) else None
    try:
        return TypeAdapter(Wanted).validate_json(json.dumps(kept))
    except ValidationError:
        raise UsageError(f"--resume {tuning}: expected a run NAME{TUNE} started by optbench fingerprint") from None


def _rate_is_given(settings: Sequence[str]) -> bool:
    return any(setting.partition("=")[0].rpartition(".")[2] == RATE for setting in settings)


def _tuner(suite: Suite, view: View, *, quick: bool) -> Tuner | None:
    """Return a tuner; if there is nothing to tune (no learning rate), show the reasons and return None."""
    seeds = (suite.tune.seeds or [])[:QUICK_TUNING_SEEDS] if quick and suite.tune is not None else None
    try:
        return Tuner.of(suite, Method("grid", None, widen=not quick), seeds)
    except UsageError as error:  # raised only if there is nothing to choose; the other lines give the reasons
        for line in error.args[1:]:
            view.message(str(line))
        return None


def _tuned(suite: Suite, tuner: Tuner, wanted: Wanted, options: Options, view: View) -> tuple[Suite | None, Outcome]:
    """Tune; return the suite with the chosen learning rates (None after an interruption) and the run's outcome."""
    record = {"sampler": "grid", KEY: asdict(wanted)}
    outcome, found = tune(tuner, options, view, record, {})
    return (None if outcome.interrupted else tuned_suite(suite, tuner, found)), outcome


def _choice(wanted: Wanted, path: Path) -> tuple[str, Choice]:
    """Return the optimizer's name, and the choice that reduces the suite to this optimizer."""
    known = load_suite(path).optimizers
    seeds: Sequence[int] = wanted.seeds or (range(QUICK_SEEDS) if wanted.quick else ())
    if is_file(wanted.target):
        raise UsageError(f"{wanted.target}: expected an optimizer in the file, as in {wanted.target}:MyOptimizer")
    find(wanted.target)  # reports an unknown name before any other error
    shipped = wanted.target in known
    name = wanted.target if shipped else _optimizer_name(wanted.target, known)
    added = () if shipped else (Addition(name, wanted.target),)
    settings = tuple(f"optimizers.{name}.{_setting(text)}" for text in wanted.settings)
    return name, Choice(seeds=tuple(seeds), optimizers=(name,), additions=added, settings=settings)


def _in_the_users_words(error: OptbenchError, name: str, target: str) -> OptbenchError:
    """Return the error with the suite settings in its message replaced with the user's arguments."""
    made = {
        f"--set optimizers.{name}.": "--set ",
        f"--optimizer {name}={target}": target,
        f": optimizers.{name}: ": ": ",
    }
    lines = []
    for line in error.args:
        for ours, theirs in made.items():
            line = str(line).replace(ours, theirs)
        lines.append(line)
    return type(error)(*lines)


def _setting(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        raise UsageError(f"--set {text}: expected NAME=VALUE for a hyper-parameter, as in lr=0.001")
    return text


def _optimizer_name(target: str, known: Mapping[str, Any]) -> str:
    """Return a name for an optimizer that the suite does not have, e.g. `MyOptimizer` for `./mine.py:MyOptimizer`.

    Add a suffix if an optimizer in the suite has the same name, ignoring case.
    """
    name = split(target)[1] if is_plugin(target) else target
    name = re.sub(r"\W+", "-", name.rpartition(".")[2], flags=re.ASCII).strip("-_") or "mine"
    return f"{name}-mine" if name.casefold() in {one.casefold() for one in known} else name


def _run_name(name: str) -> str:
    return f"{SUITE}-{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def find_fingerprinted(text: str, runs_dir: Path) -> tuple[Path, str | None] | None:
    """Return the run and the optimizer that `RUN:OPTIMIZER` names; the optimizer is None if `text` is just `RUN`.

    Return None if there is no such run.
    """
    for where, optimizer in ((text, None), (text.rpartition(":")[0], text.rpartition(":")[2])):
        if where == LATEST or (where and (is_run(Path(where)) or is_run(runs_dir / where))):
            return find_run(where, runs_dir), optimizer
    return None


def check_unused(runs_dir: Path, name: str) -> None:
    """Raise StoreError if a run of this name, or its tuning run, already exists."""
    begun = runs_dir / f"{name}{TUNE}"
    continued = f", or continue it with --resume {begun}" if is_run(begun) else ""
    for path in (runs_dir / name, begun):
        if path.exists():
            raise StoreError(f"{path}: this run already exists; choose another --name{continued}")
