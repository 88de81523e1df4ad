"""Search spaces: the hyper-parameters to choose, and their values, for every experiment and optimizer."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.counting import grouped
from optbench.errors import OptimizerError, SuiteError, UsageError, hint
from optbench.optimizers import registry
from optbench.suite import Suite
from optbench.suite.schema import Tune
from optbench.suite.spaces import leader
from optbench.suite.variants import KeyPath, log_grid, values_to_try, variants, with_values

DEFAULT_SEEDS = 2
FIRST_SEED = 1000
"""First default tuning seed, far from the usual seeds of a suite: 0, 1, 2, ..."""
DEFAULT_POINTS = 7
DEFAULT_REACH = 10.0
"""Factor by which the default search extends below and above an optimizer's learning rate."""


Key = tuple[str, str]
"""Experiment and optimizer."""


@dataclass(frozen=True)
class Dimension:
    """One hyper-parameter to choose.

    values: the values of the grid, in order.
    log: the bounds between which a sampler draws on a logarithmic scale; None for a list of values.
    """

    path: KeyPath
    values: tuple[Any, ...]
    log: tuple[float, float] | None

    @property
    def name(self) -> str:
        """The dotted path of the hyper-parameter, e.g. `lr` or `base.lr`."""
        return ".".join(self.path)

    @property
    def stated(self) -> Any:
        """The search space of this hyper-parameter, as written in a suite."""
        return {"log": list(self.log), "points": len(self.values)} if self.log else list(self.values)


@dataclass(frozen=True)
class Search:
    """The search for one optimizer's setting on one experiment; the setting is chosen by its mean score over models."""

    experiment: str
    optimizer: str
    models: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @property
    def key(self) -> Key:
        return self.experiment, self.optimizer

    @property
    def paths(self) -> list[KeyPath]:
        return [dimension.path for dimension in self.dimensions]

    @property
    def grid(self) -> list[dict[KeyPath, Any]]:
        """Every combination of values; the last dimension varies fastest."""
        values = itertools.product(*(dimension.values for dimension in self.dimensions))
        return [dict(zip(self.paths, one, strict=True)) for one in values]


@dataclass(frozen=True)
class Tie:
    """A hyper-parameter whose value is `times` the value chosen for a hyper-parameter of another optimizer."""

    experiment: str
    optimizer: str
    path: KeyPath
    of: str
    of_path: KeyPath
    times: float


@dataclass(frozen=True)
class Untuned:
    """An optimizer of an experiment whose settings are not tuned, and the reason."""

    experiment: str
    optimizer: str
    why: str


@dataclass(frozen=True)
class Searches:
    """All searches, the hyper-parameters that follow others, and the optimizers that are not tuned."""

    searches: tuple[Search, ...]
    ties: tuple[Tie, ...]
    left: tuple[Untuned, ...]

    def ties_of(self, key: Key) -> list[Tie]:
        """Return the ties by which an optimizer's hyper-parameters follow those of other optimizers."""
        return [tie for tie in self.ties if (tie.experiment, tie.optimizer) == key]

    def leaders(self, key: Key) -> list[Key]:
        """Return the optimizers that an optimizer's ties follow."""
        return [(tie.experiment, tie.of) for tie in self.ties_of(key)]

    @property
    def in_order(self) -> list[Search]:
        """The searches, ordered so that each optimizer comes after those that it follows.

        Raises:
            SuiteError: optimizers follow each other in a cycle.
        """
        done: dict[Key, Search] = {}
        left = list(self.searches)
        while left:
            ready = [s for s in left if all(leader in done for leader in self.leaders(s.key))]
            if not ready:
                names = " and ".join(search.optimizer for search in left)
                raise SuiteError(f"tune: {names}: each follows another of them, so none can be chosen first")
            done |= {search.key: search for search in ready}
            left = [search for search in left if search.key not in done]
        return list(done.values())


def tuning_seeds(suite: Suite, count: int | None = None) -> list[int]:
    """Return the tuning seeds.

    count: number of default tuning seeds to return, which exclude the suite's own seeds; None for the tuning seeds
        that the suite states or, if it states none, for `DEFAULT_SEEDS` default ones.
    """
    if count is None and suite.tune is not None and suite.tune.seeds is not None:
        return list(suite.tune.seeds)
    own = set(suite.seeds)
    free = (seed for seed in itertools.count(FIRST_SEED) if seed not in own)
    return list(itertools.islice(free, count or DEFAULT_SEEDS))


def searches(suite: Suite) -> Searches:
    """Return the searches that `optbench tune` performs for a suite.

    Raises:
        SuiteError: a space is invalid, or refers to a hyper-parameter that is not chosen.
        UsageError: there is nothing to choose.
    """
    tune = suite.tune or Tune()
    found: list[Search] = []
    ties: list[Tie] = []
    left: list[Untuned] = []
    for name, experiment in suite.experiments.items():
        changes = tune.experiments.get(name)
        models = tuple((changes.models if changes else None) or experiment.models)
        for optimizer in experiment.optimizers or suite.optimizers:
            settings = suite.optimizers[optimizer]
            hyperparameters = effective(suite, name, optimizer)
            space, where = _space_of(tune, name, optimizer)
            if space is None and tune.optimizers is None:
                try:
                    space = _default_space(settings.target, hyperparameters)
                except _NoSpace as reason:
                    left.append(Untuned(name, optimizer, str(reason)))
                    continue
            if space is None:
                left.append(Untuned(name, optimizer, "'tune.optimizers' does not name it"))
                continue
            dimensions, tied = _parse(space, where, suite, name, optimizer)
            _check(dimensions, settings.target, hyperparameters, where)
            ties += tied
            if dimensions:
                found.append(Search(name, optimizer, models, tuple(dimensions)))
    if not found:
        raise UsageError(
            f"tune: nothing to choose in suite '{suite.name}': give a search space in 'tune.optimizers', as in "
            "{sgd: {lr: {log: [0.01, 1.0], points: 7}}}",
            *untuned_lines(left),
        )
    _check_ties(ties, found)
    made = Searches(tuple(found), tuple(ties), tuple(left))
    assert len(made.in_order) == len(found)
    return made


def untuned_lines(left: Sequence[Untuned]) -> list[str]:
    """Return lines `not tuned: NAME: why`, with the names of the experiments if an optimizer's reasons differ."""
    places = grouped(((untuned.optimizer, untuned.why), untuned.experiment) for untuned in left)
    several = Counter(optimizer for optimizer, _ in places)
    lines = []
    for (optimizer, why), names in places.items():
        where = f" on {', '.join(names)}" if several[optimizer] > 1 else ""
        lines.append(f"not tuned: {optimizer}{where}: {why}")
    return lines


def effective(suite: Suite, experiment: str, optimizer: str) -> dict[str, Any]:
    """Return the hyper-parameters with which an experiment uses an optimizer."""
    return {**suite.optimizers[optimizer].hyperparameters, **overrides(suite, experiment, optimizer)}


def overrides(suite: Suite, experiment: str, optimizer: str) -> Mapping[str, Any]:
    """Return an experiment's overrides of an optimizer's hyper-parameters."""
    return (suite.experiments[experiment].optimizers or {}).get(optimizer, {})


def _space_of(tune: Tune, experiment: str, optimizer: str) -> tuple[Mapping[str, Any] | None, str]:
    changes = tune.experiments.get(experiment)
    if changes is not None and optimizer in changes.optimizers:
        return changes.optimizers[optimizer], f"tune.experiments.{experiment}.optimizers.{optimizer}"
    return (tune.optimizers or {}).get(optimizer), f"tune.optimizers.{optimizer}"


class _NoSpace(Exception):
    """Raised if an optimizer has no default search space; the message is the reason."""


def _default_space(target: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a space of learning rates around the one given in the suite, or else around the optimizer's default.

    For a wrapper without a learning rate, return the default space of its base.

    Raises:
        _NoSpace: there is no such learning rate, or the suite sweeps hyper-parameters of the optimizer.
        OptimizerError: a user's optimizer, whose default learning rate is needed, cannot be loaded.
    """
    if len(variants(hyperparameters)) > 1:
        raise _NoSpace("the suite sweeps its hyper-parameters; to tune it, give each a single value")
    known = registry.complete(target, hyperparameters)
    rate = known.get("lr")
    if rate is None and registry.is_plugin(target):
        from optbench.optimizers.load import default_of  # late, because it imports torch

        rate = default_of(target, "lr")
    if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf:
        bounds = [float(f"{rate / DEFAULT_REACH:.6g}"), float(f"{rate * DEFAULT_REACH:.6g}")]
        return {"lr": {"log": bounds, "points": DEFAULT_POINTS}}
    base = known.get("base")
    if isinstance(base, Mapping) and isinstance(base.get("target"), str):
        if "base" not in hyperparameters:
            raise _NoSpace(
                f"the suite does not name its base; to tune its learning rate, write base: {{target: {base['target']}}}"
            )
        try:
            return {"base": _default_space(*registry.base_settings(target, base))}
        except _NoSpace as reason:
            raise _NoSpace(f"its base {base['target']}: {reason}") from None
    inside = [name for name, value in known.items() if isinstance(value, Mapping) and "target" in value]
    if inside:
        rates = ", ".join(f"{name}: {{lr: ...}}" for name in inside)
        raise _NoSpace(
            f"it contains {len(inside)} optimizers; give a search space in 'tune.optimizers', as in {{{rates}}}"
        )
    if rate is not None:
        raise _NoSpace(f"its lr is {rate!r}; expected a number above 0, around which to search")
    raise _NoSpace("it has no learning rate 'lr' with a value; add one, or a search space in 'tune.optimizers'")


def _parse(
    space: Mapping[str, Any], where: str, suite: Suite, experiment: str, optimizer: str
) -> tuple[list[Dimension], list[Tie]]:
    dimensions: list[Dimension] = []
    ties: list[Tie] = []
    for path, value in _entries(space):
        place = ".".join((where, *path))
        if isinstance(value, Mapping) and "of" in value:
            ties.append(_tie(value, place, suite, experiment, optimizer, path))
            continue
        try:
            log = log_grid(path[-1], value) if isinstance(value, Mapping) and "log" in value else None
            values = log.values() if log else values_to_try(path[-1], value)
        except OptimizerError as error:
            raise SuiteError(f"{place}: {error}") from None
        if values is None or len(values) < 2:
            needed = "a list of at least two values, {log: [low, high], points: n} or {of: optimizer.key, times: x}"
            raise SuiteError(f"{place}: expected {needed}, got {value!r}")
        dimensions.append(Dimension(path, tuple(values), log.log if log else None))
    if not dimensions and not ties:
        raise SuiteError(
            f"{where}: expected hyper-parameters to search, as in {{lr: {{log: [0.01, 1.0], points: 7}}}}, got none"
        )
    return dimensions, ties


def _entries(space: Mapping[str, Any], *above: str) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in space.items():
        if isinstance(value, Mapping) and value and not {"log", "points", "of", "times"} & value.keys():
            yield from _entries(value, *above, key)
        else:
            yield (*above, key), value


def _tie(value: Mapping[str, Any], place: str, suite: Suite, experiment: str, optimizer: str, path: KeyPath) -> Tie:
    of, times = value.get("of"), value.get("times", 1.0)
    if not isinstance(of, str) or value.keys() - {"of", "times"}:
        raise SuiteError(f"{place}: expected {{of: optimizer.key, times: x}}, got {dict(value)!r}")
    if isinstance(times, bool) or not isinstance(times, int | float) or not math.isfinite(times) or times <= 0:
        raise SuiteError(f"{place}: 'times': expected a positive number, got {times!r}")
    if (name := leader(of, suite.optimizers)) is not None:
        return Tie(experiment, optimizer, path, name, tuple(of.removeprefix(f"{name}.").split(".")), float(times))
    raise SuiteError(
        f"{place}: 'of': expected a hyper-parameter of one of the suite's optimizers, as in sgd.lr, got {of!r}"
    )


def _check_ties(ties: Sequence[Tie], found: Sequence[Search]) -> None:
    chosen = {(search.experiment, search.optimizer, d.path) for search in found for d in search.dimensions}
    for tie in ties:
        if (tie.experiment, tie.of, tie.of_path) not in chosen:
            of = ".".join((tie.of, *tie.of_path))
            valid = [f"{o}.{'.'.join(path)}" for e, o, path in sorted(chosen) if e == tie.experiment]
            meant = hint(of, valid) or f" (tuned: {', '.join(valid) or 'none'})"
            raise SuiteError(
                f"tune.optimizers.{tie.optimizer}.{'.'.join(tie.path)}: 'of': expected a hyper-parameter that is tuned "
                f"on {tie.experiment}, got {of}{meant}"
            )


def _check(dimensions: Sequence[Dimension], target: str, hyperparameters: Mapping[str, Any], where: str) -> None:
    """Check that the optimizer accepts each value of each dimension.

    In each check, the other dimensions take their first values, and all other hyper-parameters keep the suite's values.

    Raises:
        SuiteError: the optimizer rejects a value, or the suite sweeps other hyper-parameters.
    """
    fixed = with_values(hyperparameters, {d.path: d.values[0] for d in dimensions})
    try:
        if dimensions and len(variants(fixed)) > 1:
            raise OptimizerError(
                "the suite sweeps other hyper-parameters; an optimizer can be either tuned or swept, but not both"
            )
        for dimension in dimensions:
            for value in dimension.values:
                complete = registry.complete(target, with_values(fixed, {dimension.path: value}))
                registry.check_settings(target, complete)
    except OptimizerError as error:
        raise SuiteError(f"{where}: {error}") from None


def takes(target: str, hyperparameters: Mapping[str, Any]) -> bool:
    """Return whether the registry accepts these settings of an optimizer."""
    try:
        registry.check_settings(target, registry.complete(target, hyperparameters))
    except OptimizerError:
        return False
    return True
