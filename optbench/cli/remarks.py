"""Warnings about a plan, shown before training: too few seeds, and early stopping without effect."""

from __future__ import annotations

from collections.abc import Iterator

from optbench.counting import count
from optbench.execution.schedule import Plan
from optbench.stats.power import shortage_text, suite_shortages


def remarks(plan: Plan, *, counts_seeds: bool = True) -> Iterator[str]:
    """Yield warnings about a plan.

    counts_seeds: whether to warn of too few seeds for the plan's comparisons and claims.
    """
    if counts_seeds and (shortages := suite_shortages(plan.suite, plan.trials)):
        yield shortage_text(shortages)
    for name, experiment in plan.suite.experiments.items():
        protocol = experiment.protocol
        is_given = "evaluate_every" in protocol.model_fields_set
        if is_given and protocol.early_stopping is not None and protocol.evaluate_every > protocol.max_epochs:
            yield (
                f"experiments.{name}.protocol: early stopping has no effect: expected evaluate_every of at most "
                f"max_epochs ({protocol.max_epochs:g}), got {count(protocol.evaluate_every, 'epoch')}"
            )
