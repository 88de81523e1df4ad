"""Machine-readable records of tuning runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optbench.metrics import METRICS
from optbench.report.document import Record
from optbench.report.records import COUNTS, KEYS, PAIR, SPLIT, split_of, spread_record
from optbench.report.spread import Spread
from optbench.studies.tuning.statistics import LEARNING, TriedSetting, TunedOptimizer

CHOICE = ("learns", "chosen")
"""Columns of a tried setting (`pair_kind` is `tuning`): whether it learns enough, and whether it is chosen. Values on a
line are means over the models on which settings are judged; the column `model` has their names, joined by +."""
COLUMNS = (PAIR[0], SPLIT, *CHOICE)


def tuning_records(found: Sequence[TunedOptimizer]) -> Iterable[Record]:
    """Return one record for each optimizer on each experiment, with every tried setting."""
    return map(_record, found)


def tuning_lines(found: Sequence[TunedOptimizer]) -> Iterable[Record]:
    """Yield one record for each tried setting and metric; the metrics are the rule's metric and learning accuracy."""
    for tuned in found:
        for setting in tuned.settings:
            keys = (tuned.run, tuned.experiment, "+".join(tuned.models), tuned.optimizer, setting.variant)
            for metric in dict.fromkeys([tuned.metric, METRICS[LEARNING]]):
                yield {
                    **dict(zip(KEYS, keys, strict=True)),
                    **{name: getattr(setting, name) for name in COUNTS},
                    "metric": metric.name,
                    "direction": metric.direction,
                    **spread_record(Spread.of(setting.by_seed.get(metric.name, ()))),
                    PAIR[0]: "tuning",
                    SPLIT: split_of(metric, "validation"),
                    **_choice(tuned, setting),
                }


def _record(tuned: TunedOptimizer) -> Record:
    """Return the record of an optimizer; scores are means of `metric` over models and seeds."""
    return {
        "run": tuned.run,
        "experiment": tuned.experiment,
        "models": tuned.models,
        "optimizer": tuned.optimizer,
        "seeds": tuned.seeds,
        "metric": tuned.metric.name,
        "direction": tuned.metric.direction,
        "learning_margin": tuned.margin,
        "sampler": tuned.sampler,
        "space": tuned.space,
        "chosen": tuned.chosen.variant if tuned.chosen else None,
        "hyperparameters": tuned.chosen.hyperparameters if tuned.chosen else None,
        "edges": tuned.ends,
        "settings": [
            {
                "variant": setting.variant,
                "hyperparameters": setting.hyperparameters,
                **{name: getattr(setting, name) for name in COUNTS},
                "score": setting.score,
                LEARNING: setting.learning,
                **_choice(tuned, setting),
            }
            for setting in tuned.settings
        ],
    }


def _choice(tuned: TunedOptimizer, setting: TriedSetting) -> dict[str, bool]:
    return dict(zip(CHOICE, (setting.learns, setting is tuned.chosen), strict=True))
