"""The tuned suite: a file that extends the user's suite with the chosen values and their tuning budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.counting import grouped
from optbench.errors import escaped
from optbench.kinds import AS_WRITTEN
from optbench.studies.tuning.following import Chosen, chosen_dimensions, followed_values
from optbench.studies.tuning.space import Search, effective, overrides
from optbench.studies.tuning.statistics import TunedOptimizer
from optbench.studies.tuning.tuner import Tuner
from optbench.suite import Suite
from optbench.suite.dump import dump
from optbench.suite.extends import KEY, rebased
from optbench.suite.variants import KeyPath, leaves, with_values

MARKER = "# Hyper-parameters chosen by optbench tune:"
"""The first line of a tuned suite's header; the other lines of the header begin with `#   `."""


def tuned_text(
    extends: str, changes: Mapping[str, Any], header: Sequence[str], folders: Sequence[Path] = (), to: Path = Path()
) -> str:
    """Return the text of a suite file that contains only changes to another suite.

    extends: the other suite, as named in the file.
    header: lines of the comment at the beginning of the file.
    folders: folders that contain code and text files named in `changes`; their paths are rewritten relative to `to`.
    """
    said: Any = changes
    for folder in folders:
        said = rebased(said, folder, to)
    return "\n".join([MARKER, *(f"#   {escaped(line)}" for line in header), "", dump({KEY: extends, **said})])


def tuned_suite(suite: Suite, tuner: Tuner, found: Sequence[TunedOptimizer]) -> Suite:
    """Return the suite with the chosen values, their budgets and the tuning seeds.

    `optbench run` then refuses to evaluate on the tuning seeds. An optimizer for which nothing was chosen keeps its
    values. Earlier tuning seeds are kept if the suite states tuning budgets, because values chosen on these seeds may
    remain.

    suite: the complete suite, even if only some experiments and optimizers were tuned.
    """
    chosen = chosen_values(tuner, found)
    plain = suite.model_dump(exclude_unset=True)
    for (experiment, optimizer), cost in _costs(tuner, found, chosen).items():
        settings = plain["experiments"][experiment]
        settings["tuning"] = {**(settings.get("tuning") or {}), optimizer: cost}
    stated = list(suite.tune.seeds or ()) if suite.tune is not None else []
    tuned_before = any(experiment.tuning for experiment in suite.experiments.values())
    seeds = [
        *(stated if tuned_before else ()),
        *(seed for seed in tuner.seeds if not tuned_before or seed not in stated),
    ]
    plain["tune"] = {**(plain.get("tune") or {}), "seeds": seeds}
    for optimizer in dict.fromkeys(optimizer for _, optimizer in chosen):
        _place(suite, optimizer, {e: values for (e, o), values in chosen.items() if o == optimizer}, plain)
    meant = Suite.model_validate(plain, context=AS_WRITTEN)  # the suite's kinds are already loaded
    assert not (wrong := misplaced(meant, chosen)), wrong
    return meant


def _place(suite: Suite, optimizer: str, chosen: Mapping[str, Mapping[KeyPath, Any]], plain: dict[str, Any]) -> None:
    """Write an optimizer's chosen values, given by experiment, into `plain`.

    If every experiment that uses the optimizer's own value of a hyper-parameter has a chosen value, the first of these
    chosen values is written to the optimizer. The remaining chosen values are written to their experiments.
    """
    takers = [name for name, e in suite.experiments.items() if optimizer in (e.optimizers or suite.optimizers)]
    alone: dict[str, dict[KeyPath, Any]] = {}
    for path in dict.fromkeys(path for values in chosen.values() for path in values):
        values = {experiment: found[path] for experiment, found in chosen.items() if path in found}
        # a key in an experiment replaces the optimizer's value of that key completely
        rest = [name for name in takers if path[0] not in overrides(suite, name, optimizer)]
        shared = [values[rest[0]]] if rest and all(name in values for name in rest) else []
        if shared:
            plain["optimizers"][optimizer] = with_values(plain["optimizers"][optimizer], {path: shared[0]})
        for name, value in values.items():
            if name not in rest or [value] != shared:
                alone.setdefault(name, {})[path] = value
    for name, own in alone.items():
        experiment = plain["experiments"][name]
        taking_part = experiment.get("optimizers") or {o: {} for o in suite.optimizers}
        inside = {path[0]: plain["optimizers"][optimizer].get(path[0], {}) for path in own if len(path) > 1}
        experiment["optimizers"] = {**taking_part, optimizer: with_values(inside | taking_part[optimizer], own)}


def chosen_values(tuner: Tuner, found: Sequence[TunedOptimizer]) -> Chosen:
    """Return the chosen values, and the values of hyper-parameters that follow them."""
    of = chosen_dimensions(tuner.searches, found)
    chosen = {key: dict(values) for key, values in of.items()}
    for key in dict.fromkeys((tie.experiment, tie.optimizer) for tie in tuner.searches.ties):
        if followed := followed_values(tuner.searches.ties_of(key), of):
            chosen.setdefault(key, {}).update(followed)
    return chosen


def misplaced(written: Suite, chosen: Chosen) -> list[str]:
    """Return the places at which a tuned suite does not have the chosen value. The list should be empty."""
    return [
        f"experiments.{experiment}: {optimizer}.{'.'.join(path)}"
        for (experiment, optimizer), values in chosen.items()
        for path, value in values.items()
        if leaves(effective(written, experiment, optimizer)).get(path) != value
    ]


def _costs(tuner: Tuner, found: Sequence[TunedOptimizer], chosen: Chosen) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the `tuning` entries of the experiments, by experiment and optimizer."""
    searched = {(search.experiment, search.optimizer): search for search in tuner.searches.searches}
    by_name = {(tuned.experiment, tuned.optimizer): tuned for tuned in found}
    costs = {
        key: _cost(tuned, _space(searched[key], tuned), chosen[key], tuned.edges)
        for key, tuned in by_name.items()
        if key in chosen
    }
    ties = grouped(((tie.experiment, tie.optimizer), tie) for tie in tuner.searches.ties)
    for key, tied in ties.items():
        if key not in by_name and key in chosen:
            stated = {".".join(tie.path): {"of": ".".join((tie.of, *tie.of_path)), "times": tie.times} for tie in tied}
            costs[key] = _cost(by_name[key[0], tied[0].of], stated, chosen[key], ())
    return costs


def _cost(
    tuned: TunedOptimizer, space: Mapping[str, Any], chosen: Mapping[KeyPath, Any], edge: Sequence[str]
) -> dict[str, Any]:
    return {
        "settings": len(tuned.settings),
        "seeds": len(tuned.seeds),
        **({} if tuned.sampler == "grid" else {"sampler": tuned.sampler}),
        "space": dict(space),
        "chosen": {".".join(path): value for path, value in chosen.items()},
        **({"edge": list(edge)} if edge else {}),
    }


def _space(search: Search, tuned: TunedOptimizer) -> dict[str, Any]:
    """Return the search space by hyper-parameter: as stated, or all tried values if widening added some."""
    found: dict[str, Any] = {}
    for dimension in search.dimensions:
        tried = tuned.values(dimension.name)
        inside = all(
            value in dimension.values or (dimension.log is not None and dimension.log[0] <= value <= dimension.log[1])
            for value in tried
        )
        grid_only = tuned.sampler != "grid" or len(tried) == len(dimension.values)
        found[dimension.name] = dimension.stated if inside and grid_only else sorted(tried)
    return found
