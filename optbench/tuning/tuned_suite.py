"""The tuned suite: the user's file with the chosen values, and what choosing them has cost, in their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optbench.studies.tuning.statistics import TunedOptimizer
from optbench.suite import Suite
from optbench.suite.variants import KeyPath, leaves, with_values
from optbench.tuning.space import Search, Tie, effective
from optbench.tuning.tuned_file import Edit, edited
from optbench.tuning.tuner import Tuner

Chosen = dict[tuple[str, str], dict[KeyPath, Any]]
"""By experiment and optimizer."""


def tuned_text(
    text: str, place: str, source: Suite, tuner: Tuner, found: Sequence[TunedOptimizer], header: Sequence[str]
) -> str:
    """The text of a suite file with what was chosen and on which seeds, its comments kept.

    place: names the file in messages. source: what it says. An optimizer for which nothing can be chosen keeps its
    values.

    Raises:
        SuiteError: the file's layout leaves no place for a value.
    """
    chosen = chosen_values(tuner, found)
    edits = [*_values(source, tuner.suite, chosen), *_costs(tuner, found, chosen), *_seeds(source, tuner)]
    return edited(text, edits, header, source=place)


def chosen_values(tuner: Tuner, found: Sequence[TunedOptimizer]) -> Chosen:
    """What was chosen, and what follows from it."""
    searched = {(search.experiment, search.optimizer): search for search in tuner.searches.searches}
    chosen: Chosen = {}
    for tuned in found:
        if tuned.chosen is not None:
            search = searched[tuned.experiment, tuned.optimizer]
            values = {d.path: tuned.chosen.hyperparameters[d.name] for d in search.dimensions}
            chosen[tuned.experiment, tuned.optimizer] = values
    of = dict(chosen)
    for tie in tuner.searches.ties:
        if (tie.experiment, tie.of) in of:
            value = of[tie.experiment, tie.of][tie.of_path]
            own = chosen.setdefault((tie.experiment, tie.optimizer), {})
            own[tie.path] = value if tie.times == 1.0 else float(f"{value * tie.times:.12g}")
    return chosen


def misplaced(written: Suite, chosen: Chosen) -> list[str]:
    """The chosen values that a tuned suite, read again, does not have; none, or the writer is wrong."""
    return [
        f"experiments.{experiment}: {optimizer}.{'.'.join(path)}"
        for (experiment, optimizer), values in chosen.items()
        for path, value in values.items()
        if leaves(effective(written, experiment, optimizer)).get(path) != value
    ]


def _values(source: Suite, suite: Suite, chosen: Chosen) -> Iterator[Edit]:
    """Where the values stand: with the optimizer, or with an experiment that has others.

    suite: `source` with what the command line added to it.
    """
    for optimizer in dict.fromkeys(optimizer for _, optimizer in chosen):
        added = optimizer not in source.optimizers
        if added:
            settings = suite.optimizers[optimizer]
            yield Edit(("optimizers", optimizer), {"target": settings.target, **settings.hyperparameters})
        takers = [
            name for name, e in source.experiments.items() if added or optimizer in (e.optimizers or source.optimizers)
        ]
        if added:
            listing = [name for name in takers if source.experiments[name].optimizers is not None]
            yield from (Edit(("experiments", name, "optimizers", optimizer), {}) for name in listing)
        for path in dict.fromkeys(path for (_, o), values in chosen.items() if o == optimizer for path in values):
            values = {e: found[path] for (e, o), found in chosen.items() if o == optimizer and path in found}
            own = [name for name in takers if path in leaves(_overrides(source, name, optimizer))]
            rest = [name for name in takers if name not in own]
            for name in own:
                if name in values:
                    yield Edit(("experiments", name, "optimizers", optimizer, *path), values[name])
            base: Any = None
            if rest and all(name in values for name in rest):
                base = values[rest[0]]
                yield Edit(("optimizers", optimizer, *path), base)
            for name in rest:
                if name in values and values[name] != base:
                    whole = with_values(effective(suite, name, optimizer), {path: values[name]})
                    # An experiment's word replaces what stands under the first key as a whole.
                    yield Edit(("experiments", name, "optimizers", optimizer, path[0]), whole[path[0]])


def _seeds(source: Suite, tuner: Tuner) -> Iterator[Edit]:
    """The tuning seeds, under `tune`, so that `optbench run` refuses them as seeds of the result.

    Those of an earlier tuning stay, as long as the suite has values that were chosen on them.
    """
    stated = list(source.tune.seeds or ()) if source.tune is not None else []
    tuned_before = any(experiment.tuning for experiment in source.experiments.values())
    seeds = [*stated, *(seed for seed in tuner.seeds if seed not in stated)] if tuned_before else list(tuner.seeds)
    if seeds != stated:
        yield Edit(("tune", "seeds"), seeds)


def _costs(tuner: Tuner, found: Sequence[TunedOptimizer], chosen: Chosen) -> Iterator[Edit]:
    searched = {(search.experiment, search.optimizer): search for search in tuner.searches.searches}
    by_name = {(tuned.experiment, tuned.optimizer): tuned for tuned in found}
    for key, tuned in by_name.items():
        if key in chosen:
            stated = _space(searched[key], tuned)
            cost = _cost(tuned, stated, chosen[key], tuned.edges)
            yield Edit(("experiments", key[0], "tuning", key[1]), cost, alone=True)
    ties: dict[tuple[str, str], list[Tie]] = {}
    for tie in tuner.searches.ties:
        ties.setdefault((tie.experiment, tie.optimizer), []).append(tie)
    for key, tied in ties.items():
        if key not in by_name and key in chosen:
            stated = {".".join(tie.path): {"of": ".".join((tie.of, *tie.of_path)), "times": tie.times} for tie in tied}
            cost = _cost(by_name[key[0], tied[0].of], stated, chosen[key], ())
            yield Edit(("experiments", key[0], "tuning", key[1]), cost, alone=True)


def _cost(tuned: TunedOptimizer, space: Mapping[str, Any], chosen: Mapping[KeyPath, Any], edge: Sequence[str]) -> Any:
    return {
        "settings": len(tuned.settings),
        "seeds": len(tuned.seeds),
        **({} if tuned.sampler == "grid" else {"sampler": tuned.sampler}),
        "space": dict(space),
        "chosen": {".".join(path): value for path, value in chosen.items()},
        **({"edge": list(edge)} if edge else {}),
    }


def _space(search: Search, tuned: TunedOptimizer) -> dict[str, Any]:
    """What was searched: as stated, or, where more was tried, every value."""
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


def _overrides(suite: Suite, experiment: str, optimizer: str) -> Mapping[str, Any]:
    return (suite.experiments[experiment].optimizers or {}).get(optimizer, {})
