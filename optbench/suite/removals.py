"""Removal of a base's references to the optimizers, models, experiments and claims that an extending suite removes.

The documents are plain values that have not been validated. `optbench.suite.references` later reports the references
that could not be removed, such as the only optimizer of an experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from optbench.counting import count, grouped, listed
from optbench.suite.document import Document, KeyPath, is_name_list
from optbench.suite.faults import shown_path
from optbench.suite.sides import split_arm
from optbench.suite.spaces import followed, leader


def remove_references(base: Document, own: Document, removes: Callable[[KeyPath], bool]) -> None:
    """Remove from `base`, in place, the references to the names that `own` removes.

    The removed references are listed in `base.followed`. References in parts that `own` changes or replaces are kept.

    removes: whether null at a path of `own` removes the key of the base.
    """
    for path in list(_removed(base.value, own.value, removes)):
        _Removal(base, own, path).follow()


def _removed(base: Any, own: Any, removes: Callable[[KeyPath], bool]) -> Iterator[KeyPath]:
    """Yield the paths of the named parts of `base` that `own` removes."""
    experiments: list[KeyPath] = [("experiments", name) for name in _names(base, ("experiments",))]
    inside: list[KeyPath] = [(*path, key) for path in experiments for key in ("models", "optimizers")]
    whole: list[KeyPath] = [("experiments",), ("optimizers",), ("claims",)]
    for path in (*whole, *inside):
        changes = _at(own, path)
        for name, value in changes.items() if isinstance(changes, dict) else ():
            if value is None and name in _names(base, path) and removes((*path, name)):
                yield (*path, name)


class _Removal:
    """The removal of one part of a base by an extending document. path: the part's path in both documents."""

    def __init__(self, base: Document, own: Document, path: KeyPath) -> None:
        self.base, self.own, self.path, self.name = base, own, path, str(path[-1])

    def follow(self) -> None:
        """Remove the references to the part."""
        what, within = self.path[-2], str(self.path[1])
        if what == "experiments":
            self.drop(("tune", "experiments", self.name))
            for claim in self.claims(self.name):
                self.drop_claim(claim)
        elif what == "claims":
            self.drop_premises(self.name)
        elif what == "models":
            self.drop_items(("tune", "experiments", within, "models"), or_whole=True)
            for claim in self.claims(within):
                if _at(self.base.value, ("claims", claim, "models")) == [self.name]:
                    self.drop_claim(claim)
                self.drop_items(("claims", claim, "models"))
        elif len(self.path) > 2:
            self.drop_optimizer(within)
            others = [e for name, e in self.base.value["experiments"].items() if name != within]
            if not any(self.name in (_names(e, ("optimizers",)) or [self.name]) for e in others):
                self.drop_followers(("tune", "optimizers"), self.name)
        else:
            for experiment in _names(self.base.value, ("experiments",)):
                self.drop_optimizer(experiment)
            self.drop(("tune", "optimizers", self.name))
            self.drop_followers(("tune", "optimizers"), self.name)

    def drop_optimizer(self, experiment: str) -> None:
        """Remove the references to an optimizer from an experiment, its tuning and the claims about it."""
        path: KeyPath = ("experiments", experiment)
        there, own = _names(self.base.value, (*path, "optimizers")), _at(self.own.value, (*path, "optimizers"))
        changed = own if isinstance(own, dict) else {}
        gone = {name for name, changes in changed.items() if changes is None and name in there}
        if {*there, *changed} - gone - {self.name}:  # an experiment needs at least one optimizer
            self.drop((*path, "optimizers", self.name))
            self.drop_items((*path, "optimizers"), least=0)
        self.drop((*path, "tuning", self.name))
        self.drop_items((*path, "pairs", "against"))
        self.drop_items((*path, "pairs", "controls"), least=0)
        self.drop_items((*path, "twins"), or_whole=True)
        self.drop(("tune", "experiments", experiment, "optimizers", self.name))
        self.drop_followers(("tune", "experiments", experiment, "optimizers"), self.name)
        for claim in self.claims(experiment):
            sides = [_at(self.base.value, ("claims", claim, side)) for side in ("left", "right")]
            arms = [arm for side in sides for arm in (side if isinstance(side, list) else [side])]
            if any(isinstance(arm, str) and split_arm(arm)[0] == self.name for arm in arms):
                self.drop_claim(claim)

    def drop_followers(self, path: KeyPath, name: str) -> None:
        """Remove the search spaces in the mapping at `path` that follow an optimizer, directly or indirectly."""
        optimizers = _names(self.base.value, ("optimizers",))
        for other in _names(self.base.value, path):
            follows = any(leader(of, optimizers) == name for _, of in followed(_at(self.base.value, (*path, other))))
            if follows and self.drop((*path, other)):
                self.drop_followers(path, other)

    def claims(self, experiment: str) -> list[str]:
        """Return the names of the base's claims about an experiment."""
        found = self.base.value
        return [c for c in _names(found, ("claims",)) if _at(found, ("claims", c, "experiment")) == experiment]

    def drop_claim(self, name: str) -> None:
        if self.drop(("claims", name)):
            self.drop_premises(name)

    def drop_premises(self, claim: str) -> None:
        """Remove a claim from the claims that depend on it."""
        for other in _names(self.base.value, ("claims",)):
            self.drop_items(("claims", other, "given"), claim, least=0)

    def drop(self, path: KeyPath) -> bool:
        """Remove a key of a mapping unless the extending document changes its value; return whether it was removed."""
        mapping = _at(self.base.value, path[:-1])
        if not isinstance(mapping, dict) or path[-1] not in mapping or self.is_changed(path):
            return False
        del mapping[path[-1]]
        self.record(path)
        return True

    def drop_items(self, path: KeyPath, name: str = "", *, least: int = 1, or_whole: bool = False) -> None:
        """Remove from a list each item that is `name` (by default the removed name) or is itself a list containing it.

        least: the smallest number of items that can be left. or_whole: whether to remove the list if fewer are left;
        otherwise it is unchanged.
        """
        name = name or self.name
        items = _at(self.base.value, path)
        if not isinstance(items, list) or self.is_changed((*path, name)):
            return
        left = [i for i, item in enumerate(items) if item != name and not (isinstance(item, list) and name in item)]
        if len(left) == len(items):
            return
        if len(left) >= least:
            for places in (self.base.keys, self.base.values):
                for new, old in enumerate(left):
                    for inner in _below(items[old]):
                        if (*path, old, *inner) in places:
                            places[(*path, new, *inner)] = places.pop((*path, old, *inner))
            items[:] = [items[i] for i in left]
            self.record((*path, name))
        elif or_whole:
            self.drop(path)

    def is_changed(self, path: KeyPath) -> bool:
        """Return whether the extending document changes or replaces the value at `path`."""
        value = self.own.value
        for part in path:
            if not isinstance(value, dict):
                return True
            if part not in value:
                return False
            value = value[part]
        return True

    def record(self, path: KeyPath) -> None:
        self.base.followed.setdefault(self.path, []).append(path)


def removal_remarks(document: Document) -> Iterator[str]:
    """Yield a sentence about each removal that also removed references."""
    for removed, paths in document.followed.items():
        claims = [str(path[-1]) for path in paths if path[0] == "claims" and len(path) == 2]
        others = grouped(_part(path) for path in paths if path[0] != "claims" or len(path) > 2)
        words = [f"{part} ({', '.join(dict.fromkeys(keys))})" if any(keys) else part for part, keys in others.items()]
        found = [f"its uses in {listed(words)}"] if words else []
        found += [f"{count(len(claims), 'claim')} ({', '.join(claims)})"] if claims else []
        what = f"also removes {', and '.join(found)} from the extended suite"
        yield f"{document.removed[removed]}: {shown_path(removed)}: null {what}"


def _part(path: KeyPath) -> tuple[str, str]:
    """Return the part of the suite that held a reference, e.g. `experiments.e`, and the key there, e.g. `tuning`."""
    return ("tune", "") if path[0] == "tune" else (shown_path(path[:2]), str(path[2]))


def _at(value: Any, path: KeyPath) -> Any:
    """Return the value at a path through mappings; None if there is none."""
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _names(value: Any, path: KeyPath) -> list[str]:
    """Return the keys of the mapping at a path, or the items of the list of names there; else an empty list."""
    found = _at(value, path)
    return list(found) if isinstance(found, dict) or is_name_list(found) else []


def _below(value: Any) -> Iterator[KeyPath]:
    """Yield the path of a value and the paths of everything in it, relative to the value."""
    yield ()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from ((key, *inner) for inner in _below(item))
