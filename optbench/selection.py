"""Options that select from a suite or add to it (seeds, experiments, models, optimizers), and the name of a run.

Additions and seeds become overrides (`key.path=value`), so that a user's `--set` can refer to them and all validation
happens together. Experiments, models and optimizers are selected after validation.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optbench.counting import count, grouped, listed
from optbench.errors import OptbenchError, SuiteError, UsageError, unknown
from optbench.execution.preflight import find_source
from optbench.optimizers.registry import OPTIMIZERS, check_settings
from optbench.store.read import is_run
from optbench.suite import Suite, load_suite
from optbench.suite.claims import Claim
from optbench.suite.extends import read_document
from optbench.suite.fields import is_name
from optbench.suite.schema import MAX_SEEDS, ExperimentSettings, OptimizerSettings, Pairs, Tune
from optbench.suite.seed_ranges import instead_of_range
from optbench.targets import is_file

LONGEST_NAME = 200
"""Maximum length of a run's name, in characters. File systems allow 255, and the name of a run's directory is longer
while the directory is being created."""


@dataclass(frozen=True)
class Addition:
    """An optimizer added to the suite: `--optimizer NAME=TARGET`."""

    name: str
    target: str

    @property
    def option(self) -> str:
        return f"--optimizer {self.name}={self.target}"


@dataclass(frozen=True)
class Choice:
    """The options of `optbench run` that change a suite or select from it; if all are empty, the suite is unchanged."""

    seeds: tuple[int, ...] = ()
    experiments: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    additions: tuple[Addition, ...] = ()
    settings: tuple[str, ...] = ()
    """The overrides, each `key.path=value` as written by the user."""
    models: tuple[str, ...] = ()


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse `--seeds`: `10` means the seeds 0 to 9, `0,1,2` these three seeds, and `7,` only the seed 7.

    Raises:
        UsageError: there are no seeds or too many, a seed is repeated, or a seed is invalid.
    """
    if form := instead_of_range(text, brackets=False):
        raise UsageError(f"--seeds {text}: expected a number of seeds or a list, got a range; {form}")
    needed = "expected a number of seeds (at least 1) or a list such as 0,1,2"
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(re.fullmatch(r"[0-9]{1,19}", part) for part in parts):
        raise UsageError(f"--seeds {text}: {needed}" if text.strip() else f"--seeds: {needed}, got nothing")
    numbers = tuple(int(part) for part in parts)
    if "," not in text:
        if not 1 <= numbers[0] <= MAX_SEEDS:
            raise UsageError(f"--seeds: expected at least 1 seed and at most {MAX_SEEDS}, got {numbers[0]}")
        return tuple(range(numbers[0]))
    if twice := [number for i, number in enumerate(numbers) if number in numbers[:i]]:
        raise UsageError(f"--seeds {text}: seed {twice[0]} is listed twice")
    if len(numbers) > MAX_SEEDS:
        raise UsageError(f"--seeds: expected at most {MAX_SEEDS} seeds, got {len(numbers)}")
    if max(numbers) >= 2**63:
        raise UsageError(f"--seeds: expected seeds below 2**63, got {max(numbers)}")
    return numbers


def parse_optimizers(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[Addition, ...]]:
    """Split the `--optimizer` options into names to keep and optimizers to add.

    Raises:
        UsageError: an option is neither NAME nor NAME=TARGET, or a name is added twice.
    """
    keep: list[str] = []
    additions: list[Addition] = []
    for text in texts:
        name, equals, target = (part.strip() for part in text.partition("="))
        # A dot would make `--set optimizers.NAME.lr=...` ambiguous.
        if not is_name(name) or (equals and "." in name):
            if equals:
                raise UsageError(f"--optimizer {text}: expected a name of letters, digits, _, + and -")
            attribute = name.rpartition(":")[2].rpartition(".")[2]
            is_target = ":" in name and is_name(attribute)
            remedy = f" or NAME=TARGET, as in {attribute}={name}" if is_target else ""
            raise UsageError(f"--optimizer {text}: expected the name of an optimizer{remedy}")
        if not equals:
            keep.append(name)
            continue
        if not target:
            raise UsageError(f"--optimizer {text}: expected NAME=module:Class or NAME=./file.py:Class")
        if any(addition.name == name for addition in additions):
            raise UsageError(f"--optimizer {text}: '{name}' is added twice")
        additions.append(Addition(name, target))
    return tuple(dict.fromkeys(keep)), tuple(additions)


def check_name(name: str | None) -> None:
    """Raise UsageError unless `name` is None or a valid name for a run."""
    if name is not None and not is_name(name):
        raise UsageError(f"--name '{name}': expected letters, digits and . _ + - only, with a letter or digit first")
    if name == "latest":
        raise UsageError("--name latest: expected a name other than latest, which means the latest run")
    if name is not None and len(name) > LONGEST_NAME:
        raise UsageError(f"--name '{name}': expected at most {LONGEST_NAME} characters, got {len(name)}")


def check_directory(name: str | None, resume: Path | None, *, force: bool) -> None:
    """Raise UsageError if these options cannot be combined or the run's name is invalid."""
    if name is not None and resume is not None:
        raise UsageError("--name and --resume: a resumed run keeps its name; give one of the two")
    check_name(name)
    if force and resume is None:
        raise UsageError("--force: expected --resume as well, got no run to continue")


def choose(path: Path, choice: Choice, resume: Path | None = None, note: Callable[[str], None] | None = None) -> Suite:
    """Load the suite in the file `path`, apply the choice, and make every check that requires no training.

    Added optimizers take part in every experiment.

    An experiment with none of the chosen optimizers or none of the chosen models is left out; if the experiment was
    itself chosen, this is an error instead. Claims about parts that are left out are left out as well, and claims about
    several models are restricted to the chosen models.

    resume: the run being resumed, if `path` is its suite.
    note: a function called with each remark on the suite and the choice.

    Raises:
        SuiteError, UsageError: as in `load_suite`; or the choice names something that is not in the suite.
    """
    outline = _outline(path) if choice.additions else {}
    choice = replace(choice, additions=tuple(_from_here(addition, path.parent) for addition in choice.additions))
    overrides: list[str] = []
    for addition in choice.additions:
        if addition.name in _mapping(outline.get("optimizers")):
            raise UsageError(f"{addition.option}: the suite has an optimizer '{addition.name}'; choose another name")
        overrides += _addition_overrides(addition, outline)
    overrides += choice.settings
    if choice.seeds:
        overrides.append(f"seeds={json.dumps(choice.seeds)}")
    try:
        suite = load_suite(
            path,
            overrides,
            check_optimizer=check_settings,
            find=partial(find_source, suite_folder=None if resume is not None else path.parent, resume=resume),
            note=note,
        )
    except OptbenchError as error:
        raise type(error)(*(_in_the_users_words(str(line), choice.additions) for line in error.args)) from None
    kept = _keep(suite, choice)
    if note is not None:
        for remark in _remarks(suite, kept, choice):
            note(remark)
    return kept


def _remarks(suite: Suite, kept: Suite, choice: Choice) -> Iterator[str]:
    """Yield a sentence about each consequence of a choice that the options do not state.

    suite, kept: the suite before and after the choice.
    """
    asked = choice.experiments or tuple(suite.experiments)
    given = [("optimizer", choice.optimizers), ("model", choice.models)]
    options = " and ".join(f"--{what}" for what, names in given if names)
    if out := [name for name in asked if name not in kept.experiments]:
        yield f"{options}: {listed(out)} {'is' if len(out) == 1 else 'are'} left out, without any of the given names"
    for what, names in given:
        used: dict[str, Collection[str]] = {
            name: experiment.models if what == "model" else suite.taking_part(suite.experiments[name])
            for name, experiment in kept.experiments.items()
        }
        lacking = ((name, tuple(one for one in names if one not in used[name])) for name in used)
        for missing, experiments in grouped((missing, name) for name, missing in lacking if missing).items():
            yield f"--{what}: {listed(missing)}: not used by {listed(experiments)}, so not trained there"
    about = {name: claim for name, claim in suite.claims.items() if claim.experiment in asked}
    if gone := [claim for name, claim in about.items() if name not in kept.claims]:
        needed = [one for claim in gone for one in dict.fromkeys(_needed(claim, kept))]
        reasons = listed(f"{name} ({needed.count(name)})" for name in dict.fromkeys(needed))
        number = f"{len(gone)} of {count(len(about), 'claim')} {'is' if len(gone) == 1 else 'are'} left out"
        yield f"{options}: {number}, about what is not trained: {reasons}"


def _needed(claim: Claim, kept: Suite) -> Sequence[str]:
    """Return the names of the parts that a claim needs but a choice has left out: experiment, optimizers or models.

    If a claim that lists no models lacks only the optimizers of `against`, return a phrase that describes them.
    """
    if claim.experiment not in kept.experiments:
        return [claim.experiment]
    taking_part = kept.taking_part(kept.experiments[claim.experiment])
    pairs = "the optimizers with whose solutions others are compared"
    return [name for name in claim.optimizers if name not in taking_part] or claim.models or [pairs]


def _from_here(addition: Addition, suite_folder: Path) -> Addition:
    """Return an addition, with its file's path made absolute if the suite could find another file under that path.

    Files named in a suite are looked up next to the suite first (in a run's suite, among the run's copies). Files
    named on the command line are relative to the working directory.
    """
    where, _, attribute = addition.target.rpartition(":")
    try:
        if not (is_file(where) and Path(where).is_file()):
            return addition
        beside = suite_folder / where
        hidden = is_run(suite_folder) or (beside.is_file() and not beside.samefile(where))
    except (OSError, ValueError):  # reported on import
        return addition
    return replace(addition, target=f"{os.path.abspath(where)}:{attribute}") if hidden else addition  # noqa: PTH100


def _outline(path: Path) -> Mapping[str, Any]:
    """Return the suite's content without validation; empty for an unreadable file, which `load_suite` will report."""
    try:
        return _mapping(read_document(path).value)
    except SuiteError:
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _target_override(addition: Addition) -> str:
    return f"optimizers.{addition.name}.target={json.dumps(addition.target)}"


def _addition_overrides(addition: Addition, outline: Mapping[str, Any]) -> list[str]:
    # An experiment that lists no optimizers uses all of the suite's anyway.
    listing = [name for name, e in _mapping(outline.get("experiments")).items() if _mapping(e).get("optimizers")]
    return [_target_override(addition), *(f"experiments.{e}.optimizers.{addition.name}={{}}" for e in listing)]


def _in_the_users_words(message: str, additions: Sequence[Addition]) -> str:
    """Replace the override in a message with the `--optimizer` option from which it was made."""
    for addition in additions:
        message = message.replace(f"--set {_target_override(addition)}", addition.option)
    return message


def _keep(suite: Suite, choice: Choice) -> Suite:
    every_model = dict.fromkeys(model for experiment in suite.experiments.values() for model in experiment.models)
    for what, names, valid in (
        ("experiment", choice.experiments, suite.experiments),
        ("optimizer", choice.optimizers, suite.optimizers),
        ("model", choice.models, every_model),
    ):
        if missing := [name for name in names if name not in valid]:
            name = missing[0]
            registered = what == "optimizer" and name in OPTIMIZERS
            remedy = f"; {name}={name} adds the registered optimizer of this name" if registered else ""
            raise UsageError(f"--{what}: {unknown(what, name, valid)}{remedy}")
    if not (choice.experiments or choice.models or choice.optimizers):
        return suite
    added = {addition.name for addition in choice.additions}
    wanted = {*choice.optimizers, *added} if choice.optimizers else set(suite.optimizers)
    experiments = {}
    for name, experiment in suite.experiments.items():
        if choice.experiments and name not in choice.experiments:
            continue
        taking_part = suite.taking_part(experiment)
        kept = {o: changes for o, changes in taking_part.items() if o in wanted}
        models = {m: settings for m, settings in experiment.models.items() if not choice.models or m in choice.models}
        for what, left, had in (("optimizer", kept, taking_part), ("model", models, experiment.models)):
            if not left and choice.experiments:
                has = ", ".join(had)
                raise UsageError(f"--{what}: experiment '{name}' has none of the given names (valid: {has})")
        if not (kept and models):
            continue
        chosen = kept if experiment.optimizers is not None else None
        tuning = {o: cost for o, cost in experiment.tuning.items() if o in kept} if experiment.tuning else None
        pairs = _kept_pairs(experiment.pairs, kept) if experiment.pairs else None
        twins = [pair for pair in experiment.twins or () if all(o in kept for o in pair)] or None
        changes = {"models": models, "optimizers": chosen, "tuning": tuning, "pairs": pairs, "twins": twins}
        experiments[name] = experiment.model_copy(update=changes)
    if not experiments:
        given = (("--optimizer", choice.optimizers), ("--model", choice.models))
        options = " and ".join(option for option, names in given if names)
        raise UsageError(f"{options}: no experiment has any of the given names")
    optimizers = {name: settings for name, settings in suite.optimizers.items() if name in wanted}
    claims = {
        name: kept_claim
        for name, claim in suite.claims.items()
        if (kept_claim := _kept_claim(claim, experiments, optimizers)) is not None
    }
    claims = {
        name: claim.model_copy(update={"given": [premise for premise in claim.given if premise in claims]})
        for name, claim in claims.items()
    }
    tune = _kept_tune(suite.tune, experiments, optimizers) if suite.tune else None
    changed = {"optimizers": optimizers, "experiments": experiments, "claims": claims, "tune": tune}
    return suite.model_copy(update=changed)


def _kept_tune(tune: Tune, experiments: Mapping[str, ExperimentSettings], optimizers: Collection[str]) -> Tune:
    spaces = None if tune.optimizers is None else {o: space for o, space in tune.optimizers.items() if o in optimizers}
    changes = {
        name: change.model_copy(
            update={
                "models": [m for m in change.models or () if m in experiments[name].models] or None,
                "optimizers": {
                    o: s for o, s in change.optimizers.items() if o in (experiments[name].optimizers or optimizers)
                },
            }
        )
        for name, change in tune.experiments.items()
        if name in experiments
    }
    return tune.model_copy(update={"optimizers": spaces, "experiments": changes})


def _kept_pairs(pairs: Pairs, kept: Collection[str]) -> Pairs | None:
    """Return `pairs` restricted to the remaining optimizers; None if no optimizer of `against` remains."""
    against, controls = (
        None if names is None else [name for name in names if name in kept] for names in (pairs.against, pairs.controls)
    )
    return None if against == [] else pairs.model_copy(update={"against": against, "controls": controls})


def _kept_claim(
    claim: Claim, experiments: Mapping[str, ExperimentSettings], optimizers: Mapping[str, OptimizerSettings]
) -> Claim | None:
    """Return a claim restricted to the remaining models; None if its experiment, a side or every model was left out.

    A claim about pairs is also left out if no optimizer of `against` remains: the experiment then compares no
    solutions, not even those of an optimizer with its controls.
    """
    if claim.experiment not in experiments:
        return None
    experiment = experiments[claim.experiment]
    if claim.about_pairs and experiment.pairs is None:
        return None
    taking_part = experiment.optimizers or optimizers
    if any(optimizer not in taking_part for optimizer in claim.optimizers):
        return None
    if claim.models is None:
        return claim
    models = [model for model in claim.models if model in experiment.models]
    return claim.model_copy(update={"models": models}) if models else None
