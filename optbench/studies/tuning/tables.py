"""Tuning in a report: a tuning run's choices and the reasons for them; for other runs, their tuning budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from optbench.counting import count, grouped
from optbench.kinds import value_name
from optbench.metrics import METRICS, Metric
from optbench.metrics.score import metric_in_bits
from optbench.report.document import Block, Cell, Column, Fold, Heading, Items, Part, Table, columns
from optbench.report.measures import TITLES, named_measure
from optbench.report.numbers import NOT_OK, UNDEFINED, decimals, fixed, losses, words
from optbench.report.sparks import bar
from optbench.report.spread import Spread, SpreadText
from optbench.stats.arms import Arm, arms
from optbench.stats.results import Results
from optbench.studies.tuning.statistics import LEARNING, SHOWN, TriedSetting, TunedOptimizer, departures, is_number
from optbench.suite.schema import Tuning

TITLE = "Tuning"
BAR = 8
"""Width of a full bar, in characters."""
MANY_NAMES = 6
"""Maximum number of settings named in a sentence; further settings are counted."""
FEW_VALUES = 2
"""Maximum number of values listed; a larger number of values is shown as a range."""


def tuning_blocks(found: Sequence[TunedOptimizer], several: bool, spread_text: SpreadText) -> Iterable[Block]:
    """Yield the choices of tuning runs: a table per experiment, the rule in words, and every tried setting."""
    if not found:
        return
    yield Heading(TITLE)
    for run, optimizers in grouped((tuned.run, tuned) for tuned in found).items():
        name = f"{run}: " if several else ""
        for here in grouped((tuned.experiment, tuned) for tuned in optimizers).values():
            yield _chosen(here, name, spread_text)
            if warnings := [f"{name}{text}" for text in _warnings(here)]:
                yield Items(tuple(warnings), "warning")
        yield Items((*(f"{name}{text}" for text in _rules(optimizers)), *_reasons(optimizers, name)), "quiet")
        for tuned in optimizers:
            if len(tuned.settings) > 1:
                yield from _settings(tuned, name, spread_text)


DATA = "Accuracies of a tuning run are measured on validation data; test data are not used for the choice."
ONLINE_DATA = (
    "Online accuracy is measured on each training batch before its update; test data are not used for the choice."
)


def _rules(found: Sequence[TunedOptimizer]) -> Iterable[str]:
    """Yield sentences on how settings were chosen; each rule names its experiments if the rules differ."""
    rules = grouped((rule_text(tuned), tuned.experiment) for tuned in found)
    for text, experiments in rules.items():
        yield text if len(rules) == 1 else f"{' and '.join(dict.fromkeys(experiments))}: {text}"
    kinds = {tuned.metric.kind for tuned in found}
    yield from ([ONLINE_DATA] if "online" in kinds else []) + ([DATA] if kinds != {"online"} else [])


def rule_text(tuned: TunedOptimizer) -> str:
    """Return a sentence that states the rule with its numbers, and a sentence on the settings that cannot be chosen."""
    best = "lowest" if tuned.metric.direction == "lower" else "highest"
    seeds = count(len(tuned.seeds), "tuning seed")
    among = (
        ""
        if tuned.margin is None
        else f" among those whose learning {tuned.score} is within {tuned.margin:g} of the optimizer's best"
    )
    name = words(tuned.metric.name, tuned.in_bits)
    return (
        f"The chosen setting has the {best} {name}{among}; values are means over {seeds}. A setting with a "
        "trial that diverged, failed or is not finished cannot be chosen; ties go to the setting tried first."
    )


def stated_tuning(results: Results) -> list[str]:
    """Return lines that state a run's tuning budgets, one per experiment, or that there are none.

    For a tuning run, the list is empty."""
    if results.suite.stage == "tune":
        return []
    experiments: dict[str, dict[str, Arm]] = {}
    for arm in arms(results):
        # among several models and settings, report the first that differs from the chosen values
        known = experiments.setdefault(arm.experiment, {})
        if arm.optimizer not in known or (departures(arm) and not departures(known[arm.optimizer])):
            known[arm.optimizer] = arm
    lines = [f"tuning on {name}: {text}" for name, known in experiments.items() if (text := _budgets(known.values()))]
    return lines or ["tuning: the suite states no tuning budgets"]


def searched_text(space: Any, tried: Sequence[Any]) -> str:
    """Format the search space of one hyper-parameter, e.g. `0.003–3` or `0, 0.9`.

    space: as stated in a suite; None if not stated.
    tried: the distinct tried values, which are shown instead of the space; empty to show the space.
    """
    if isinstance(space, Mapping) and "of" in space:
        return f"{value_name(space.get('times', 1))} × {space['of']}"
    listed = list(tried) or (list(space) if isinstance(space, list) else [])
    if not listed and isinstance(space, Mapping) and "log" in space:
        return _range(*space["log"])
    if len(listed) <= FEW_VALUES or not all(map(is_number, listed)):
        return ", ".join(map(value_name, listed))
    return _range(min(listed), max(listed))


def setting_text(values: Mapping[str, Any], variant: str = "default") -> str:
    """Format a tried setting, e.g. `lr=0.1, momentum=0.9`.

    Without values, return the variant's name, or `as given` for the variant `default`.
    """
    named = ", ".join(f"{path}={value_name(value)}" for path, value in values.items())
    return named or (variant if variant != "default" else "as given")


def _chosen(here: Sequence[TunedOptimizer], name: str, spread_text: SpreadText) -> Table:
    """Return the table of the settings chosen on one experiment, with a row for each optimizer."""
    first = here[0]
    measures = list(dict.fromkeys([first.metric, METRICS[LEARNING]]))
    titles = (
        *columns("\noptimizer", "\nchosen", *map(_title, measures), texts=2),
        *columns("at an\nedge", "settings\n× seeds", texts=1),
        Column("\nsearched", numeric=False),
    )
    rows = []
    for tuned in here:
        chosen = tuned.chosen
        scores = [
            Cell(spread_text(Spread.of(chosen.by_seed[metric.name]), decimals(metric.name)) if chosen else UNDEFINED)
            for metric in measures
        ]
        edges = ", ".join(f"{path}: {end}" for path, end in tuned.ends.items())
        label = Cell(setting_text(chosen.hyperparameters, chosen.variant)) if chosen else Cell("none", "warning")
        budget = Cell(f"{len(tuned.settings)} × {len(tuned.seeds)}")
        cells = (Cell(edges or ("no" if chosen else UNDEFINED), "warning" if edges else "plain"), budget)
        rows.append((Cell(tuned.optimizer), label, *scores, *cells, Cell(_searched(tuned))))
    data = "training batches before their update" if first.metric.kind == "online" else "validation data"
    return Table(f"{name}{_place(first)}: the chosen settings, on {data}", titles, tuple(rows))


def _searched(tuned: TunedOptimizer) -> str:
    paths = list(dict.fromkeys(path for setting in tuned.settings for path in setting.hyperparameters))
    parts = []
    for path in paths:
        space = (tuned.space or {}).get(path)
        # for random draws, show the space; for a grid, its values and those added by widening
        drawn = tuned.sampler != "grid" and space is not None
        parts.append(f"{path}: {searched_text(space, () if drawn else tuned.values(path))}")
    return "; ".join(parts) or "nothing"


def _warnings(here: Sequence[TunedOptimizer]) -> Iterable[str]:
    budgets = {tuned.optimizer: len(tuned.settings) for tuned in here}
    if len(set(budgets.values())) > 1:
        said = ", ".join(f"{count} for {optimizer}" for optimizer, count in budgets.items())
        yield f"{here[0].experiment}: the budgets differ; the numbers of settings tried are {said}."
    for tuned in here:
        who = f"{tuned.experiment}, {tuned.optimizer}"
        missing = sum(setting.missing > 0 for setting in tuned.settings)
        if missing:
            settings = count(len(tuned.settings), "setting")
            yield f"{who}: the choice may change, with {missing} of {settings} not finished yet."
        if tuned.chosen is None:
            yield f"{who}: no setting can be chosen: {_why_none(tuned)}."
            continue
        for path, end in tuned.ends.items():
            value = value_name(tuned.chosen.hyperparameters[path])
            where = (
                f"is the {end} value in its grid: search further, or tune with --widen"
                if tuned.sampler == "grid"
                else f"is at the {'upper' if end == 'largest' else 'lower'} end of the search space: search further"
            )
            yield f"{who}: {path} {value} {where}."
        if tied := tuned.tied:
            same, verb = _names([(setting, "") for setting in tied]), "have" if len(tied) > 1 else "has"
            chosen = setting_text(tuned.chosen.hyperparameters, tuned.chosen.variant)
            metric = words(tuned.metric.name, tuned.in_bits)
            yield f"{who}: {same} {verb} the same {metric} as {chosen}, which was tried first and is therefore chosen."


def _why_none(tuned: TunedOptimizer) -> str:
    if all(setting.ok < setting.planned for setting in tuned.settings):
        above = any(setting.above_target for setting in tuned.settings)
        said = ", ended above the target training loss" if above else ""
        return f"each has a trial that diverged, failed{said} or has not finished"
    return f"{words(tuned.metric.name, tuned.in_bits)} is undefined for settings whose trials are all ok"


def _reasons(found: Sequence[TunedOptimizer], name: str) -> Iterable[str]:
    """Yield sentences that list, for each experiment, settings that learn too little or have trials that are not ok."""
    for experiment in dict.fromkeys(tuned.experiment for tuned in found):
        here = [tuned for tuned in found if tuned.experiment == experiment]
        slow = [(t, [(s, "") for s in _ordered(t) if s.eligible and not s.learns]) for t in here]
        said = {"too little learnt": slow}
        for status in ("diverged", "failed", "above_target"):
            said[NOT_OK[status]] = [
                (t, [(s, f" ({n} of {s.planned})") for s in _ordered(t) if (n := getattr(s, status))]) for t in here
            ]
        for what, settings in said.items():
            if parts := [f"{tuned.optimizer} {_names(named)}" for tuned, named in settings if named]:
                yield f"{name}{experiment}: {what}: {'; '.join(parts)}."


def _names(settings: Sequence[tuple[TriedSetting, str]]) -> str:
    """Join the names of settings, each followed by its note; if there are many, list only the first few."""
    # without spaces, because the names are entries of a list separated by ", "
    texts = [(setting_text(setting.hyperparameters, setting.variant), note) for setting, note in settings]
    names = [f"{text.replace(', ', ',')}{note}" for text, note in texts]
    shown = ", ".join(names[:MANY_NAMES])
    return shown if len(names) <= MANY_NAMES else f"{shown} and {len(names) - MANY_NAMES} more"


def _settings(tuned: TunedOptimizer, name: str, spread_text: SpreadText) -> Iterable[Block]:
    """Yield two tables of one optimizer's settings: bars for a terminal and Markdown, numbers for HTML and LaTeX."""
    known = {name: metric_in_bits(METRICS[name]) if tuned.in_bits else METRICS[name] for name in SHOWN}
    shown = [known[name] for name in SHOWN if any(map(math.isfinite, _every(tuned, name)))]
    metrics = list(dict.fromkeys([*shown, tuned.metric]))
    ends = {metric.name: _ends_of_bars(tuned, metric.name) for metric in metrics}
    caption = f"{name}{_place(tuned)}: the settings of {tuned.optimizer}"
    if tuned.least_learning is not None:
        caption += f" (learning {tuned.score} needed: {fixed(tuned.least_learning, 3)})"

    def table(text: Callable[[TriedSetting, str], str], *, numeric: bool) -> Table:
        titles = columns("\nsetting", *map(_title, metrics), texts=1 if numeric else 1 + len(metrics))
        rows = [
            (
                Cell(setting_text(s.hyperparameters, s.variant)),
                *(Cell(text(s, metric.name)) for metric in metrics),
                _note(tuned, s),
            )
            for s in _ordered(tuned)
        ]
        return Table(caption, (*titles, Column("", numeric=False)), tuple(rows))

    yield Part("chart", table(lambda s, metric: _bar_text(s, metric, ends[metric]), numeric=False))
    numbers = table(lambda s, metric: spread_text(Spread.of(s.by_seed.get(metric, ())), decimals(metric)), numeric=True)
    yield Part("numbers", Fold(f"Every setting of {tuned.optimizer}: {name}{_place(tuned)}", (numbers,)))


def _every(tuned: TunedOptimizer, metric: str) -> list[float]:
    return [value for setting in tuned.settings for value in setting.by_seed.get(metric, ())]


def _ends_of_bars(tuned: TunedOptimizer, metric: str) -> tuple[float, float]:
    """Return the values at which a metric's bars are empty and full.

    For scores on text, bars range between the whole numbers that enclose all learning scores. Other bars range from 0
    to 1; those of a rule's metric that is not in `SHOWN` extend to its largest value if that exceeds 1.
    """
    if metric not in SHOWN and (tuned.metric.kind == "curve" or not tuned.in_bits):
        return 0.0, max([1.0, *filter(math.isfinite, _every(tuned, metric))])
    if metric == "forgetting":
        return 0.0, 1.0
    learnt = list(filter(math.isfinite, _every(tuned, LEARNING)))
    if not (tuned.in_bits and learnt):
        return 0.0, 1.0
    low = math.floor(min(learnt))
    return low, max(math.ceil(max(learnt)), low + 1)


def _bar_text(setting: TriedSetting, metric: str, ends: tuple[float, float]) -> str:
    values = setting.by_seed.get(metric, ())
    value = fmean(values) if values else math.nan
    return UNDEFINED if math.isnan(value) else f"{bar(value, *ends, BAR)} {fixed(value, min(2, decimals(metric)))}"


def _note(tuned: TunedOptimizer, setting: TriedSetting) -> Cell:
    if setting is tuned.chosen:
        return Cell("chosen", "good")
    if lost := losses({status: getattr(setting, status) for status in NOT_OK}, f" of {setting.planned}"):
        return Cell(lost, "warning")
    return Cell("" if setting.learns else "learns little", "quiet")


def _ordered(tuned: TunedOptimizer) -> Sequence[TriedSetting]:
    """Return the settings by ascending value if only one number was searched, and otherwise in the order tried."""
    values = [list(setting.hyperparameters.values()) for setting in tuned.settings]
    if all(len(v) == 1 and is_number(v[0]) for v in values):
        return sorted(tuned.settings, key=lambda setting: next(iter(setting.hyperparameters.values())))
    return tuned.settings


def _budgets(found: Iterable[Arm]) -> str:
    """Return the optimizers by budget, as in `7 settings × 2 seeds for sgd (lr=0.1 of 0.01–1), adamw (...)`."""
    said: dict[str, list[str]] = {}
    unknown = []
    for arm in found:
        if arm.tuning is None:
            unknown.append(arm.optimizer)
        else:
            said.setdefault(_budget(arm.tuning), []).append(f"{arm.optimizer}{_choice(arm.tuning, departures(arm))}")
    parts = [f"{budget} for {', '.join(who)}" for budget, who in said.items()]
    if parts and unknown:
        parts.append(f"not stated for {', '.join(unknown)}")
    return f"{'unequal budgets: ' if len(said) > 1 else ''}{'; '.join(parts)}"


def _budget(cost: Tuning) -> str:
    sampler = "" if cost.sampler == "grid" else f", {cost.sampler}"
    return f"{count(cost.settings, 'setting')} × {count(cost.seeds, 'seed')}{sampler}"


def _choice(cost: Tuning, departures: Mapping[str, Any]) -> str:
    """Return the chosen values with their search spaces, e.g. ` (lr=0.3 of 0.003–3, at an edge)`."""
    paths = list(dict.fromkeys([*(cost.chosen or {}), *(cost.space or {})]))
    parts = []
    for path in paths:
        chosen = f"={value_name(cost.chosen[path])}" if cost.chosen and path in cost.chosen else ""
        space = (cost.space or {}).get(path)
        searched = f" of {searched_text(space, ())}" if space is not None else ""
        edge = ", at an edge" if path in cost.edge else ""
        other = f", but trained with {value_name(departures[path])}" if path in departures else ""
        parts.append(f"{path}{chosen}{searched}{edge}{other}")
    return f" ({'; '.join(parts)})" if parts else ""


def _place(tuned: TunedOptimizer) -> str:
    sampler = "" if tuned.sampler == "grid" else f", {tuned.sampler}"
    return f"{tuned.experiment}, {' and '.join(tuned.models)}{sampler}"


def _range(low: float, high: float) -> str:
    return f"{value_name(low)}–{value_name(high)}"


def _title(metric: Metric) -> str:
    """Return a metric's column title in two lines, as in result tables."""
    title = TITLES.get(metric.name) or named_measure(metric).title
    return f"{title.replace('accuracy', 'score') if metric.said else title} {metric.arrow}"
