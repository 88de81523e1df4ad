"""References between the parts of a suite: every experiment, model, optimizer and claim that is named must exist."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from optbench.counting import listed
from optbench.errors import unknown
from optbench.suite.claim_faults import named_arms
from optbench.suite.document import Document, KeyPath, Place
from optbench.suite.faults import Fault, shown_path
from optbench.suite.schema import Suite, Tune
from optbench.suite.sides import split_arm
from optbench.suite.spaces import followed, leader


class _Names(NamedTuple):
    """The valid names for a reference."""

    what: str
    """What is named, e.g. `optimizer in digit-pairs`."""
    valid: Collection[str]
    path: KeyPath
    """Path of the mapping or list that defines the names."""


class _Reference(NamedTuple):
    """A name in the suite that refers to another part of the suite."""

    path: KeyPath
    shown: int
    """Number of the path's segments to show in a message."""
    name: str
    names: _Names


def reference_faults(suite: Suite, document: Document) -> Iterator[Fault]:
    """Yield faults for references to parts that do not exist.

    If an extending file or an override removed a part, a single fault at the place of the removal lists the parts that
    still refer to the removed one.
    """
    left: dict[tuple[Place, KeyPath], list[_Reference]] = {}
    for reference in (*_references(suite), *_ties_to_removed(suite, document)):
        if reference.name in reference.names.valid:
            continue
        if cause := _removal(reference, document):
            left.setdefault(cause, []).append(reference)
        else:
            what, valid, _ = reference.names
            message = f"{shown_path(reference.path[: reference.shown])}: {unknown(what, reference.name, valid)}"
            yield Fault(_place(reference, document), message)
    for (place, path), references in left.items():
        names = listed(f"'{name}'" for name in dict.fromkeys(reference.name for reference in references))
        parts = dict.fromkeys(shown_path(_part(reference.path)) for reference in references)
        what = f"other parts of the suite still use {names}: {listed(parts)}"
        first = _place(references[0], document)
        yield Fault(place, f"{shown_path(path)}: {what}; replace these parts or set them to null (first use: {first})")


def _place(reference: _Reference, document: Document) -> Place:
    # In a claim and after `of`, the name is the value; elsewhere, it is a key or an item of a list.
    is_value = reference.path[0] == "claims" or reference.path[-1] == "of"
    find = document.value_place if is_value else document.key_place
    return find(reference.path)


def _removal(reference: _Reference, document: Document) -> tuple[Place, KeyPath] | None:
    """Return the place and path at which a later file or override removed the name; None if nothing removed it."""
    used, path = _place(reference, document), reference.names.path
    for removed in ((*path, reference.name), ("optimizers", reference.name)):
        if (place := document.removed.get(removed)) is not None and document.is_above(place, used):
            return place, removed[:-1]
    place = document.keys.get(path)
    return (place, path) if place is not None and document.is_above(place, used) else None


def _part(path: KeyPath) -> KeyPath:
    """Return the part of the suite that contains a reference, such as `claims` or an experiment's `tuning`."""
    return path[:3] if path[0] == "experiments" else path[:1]


def _ties_to_removed(suite: Suite, document: Document) -> Iterator[_Reference]:
    """Yield each search space's reference to an optimizer that an extending file or an override removed.

    `optbench tune` reports all other faults of search spaces.
    """
    removed = {str(path[-1]) for path in document.removed if path[:-1] == ("optimizers",)}
    optimizers = _Names("optimizer", suite.optimizers, ("optimizers",))
    tune = suite.tune or Tune()
    spaces: dict[KeyPath, Any] = {("tune", "optimizers"): tune.optimizers or {}}
    spaces |= {("tune", "experiments", name, "optimizers"): e.optimizers for name, e in tune.experiments.items()}
    for place, space in spaces.items():
        for path, of in followed(space):
            name = leader(of, {*suite.optimizers, *removed})
            if name in removed - suite.optimizers.keys():
                full = (*place, *path)
                yield _Reference(full, len(full), str(name), optimizers)


def _references(suite: Suite) -> Iterator[_Reference]:
    """Yield each reference of one part of the suite to another."""
    experiments = _Names("experiment", suite.experiments, ("experiments",))
    optimizers = _Names("optimizer", suite.optimizers, ("optimizers",))
    models = {
        name: _Names(f"model in {name}", experiment.models, ("experiments", name, "models"))
        for name, experiment in suite.experiments.items()
    }
    compared = {
        name: _Names(
            f"optimizer in {name}",
            [o for o in suite.optimizers if experiment.optimizers is None or o in experiment.optimizers],
            ("experiments", name, "optimizers"),
        )
        for name, experiment in suite.experiments.items()
    }
    for name, experiment in suite.experiments.items():
        path: KeyPath = ("experiments", name)
        yield from (_Reference((*path, "optimizers", o), 3, o, optimizers) for o in experiment.optimizers or ())
        yield from (_Reference((*path, "tuning", o), 3, o, compared[name]) for o in experiment.tuning or ())
        pairs = experiment.pairs
        for key, named in (("against", pairs.against), ("controls", pairs.controls)) if pairs else ():
            yield from (_Reference((*path, "pairs", key, i), 4, o, compared[name]) for i, o in enumerate(named or ()))
        for i, twins in enumerate(experiment.twins or ()):
            yield from (_Reference((*path, "twins", i, j), 3, o, compared[name]) for j, o in enumerate(twins))
    for name, claim in suite.claims.items():
        path = ("claims", name)
        others = _Names("claim", suite.claims.keys() - {name}, ("claims",))
        yield from (_Reference((*path, "given", i), 3, premise, others) for i, premise in enumerate(claim.given))
        yield _Reference((*path, "experiment"), 3, claim.experiment, experiments)
        if (within := claim.experiment) in suite.experiments:
            for at, arm in named_arms(claim):
                yield _Reference((*path, *at), 3, split_arm(arm)[0], compared[within])
            yield from (
                _Reference((*path, "models", i), 4, m, models[within]) for i, m in enumerate(claim.models or ())
            )
    if suite.tune is not None:
        yield from (_Reference(("tune", "optimizers", o), 2, o, optimizers) for o in suite.tune.optimizers or ())
        for name, changes in suite.tune.experiments.items():
            path = ("tune", "experiments", name)
            yield _Reference(path, 2, name, experiments)
            if name in suite.experiments:
                yield from (_Reference((*path, "optimizers", o), 4, o, compared[name]) for o in changes.optimizers)
                yield from (
                    _Reference((*path, "models", i), 4, m, models[name]) for i, m in enumerate(changes.models or ())
                )
