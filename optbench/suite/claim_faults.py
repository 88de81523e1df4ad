"""Faults in a suite's claims that can only be found by comparing the claims with their experiments."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from optbench.errors import OptbenchError, OptimizerError, UsageError, unknown
from optbench.metrics.catalog import METRICS, PAIR_METRICS
from optbench.metrics.metric import Metric, base_name
from optbench.metrics.naming import check_pair_metric
from optbench.metrics.own import resolve
from optbench.suite.claims import Claim
from optbench.suite.document import Document, KeyPath
from optbench.suite.faults import Fault, shown_path
from optbench.suite.measured import with_readings
from optbench.suite.schema import ExperimentSettings, Suite
from optbench.suite.sides import arms_of, side_text, split_arm
from optbench.suite.variants import count_variants, variants


def claim_faults(suite: Suite, document: Document, *, as_written: bool = False) -> Iterator[Fault]:
    """Yield a fault for each unknown variant, each side that cannot be compared, and each equivalence without a margin.

    as_written: whether to skip loading users' metrics.
    """
    for name, claim in suite.claims.items():
        metric = _judged_by(claim, suite, as_written)
        if claim.expect == "equivalent" and claim.margin is None and metric is not None and not metric.margin:
            what = f"expect: equivalent: expected a 'margin', got none, and {metric.name} has no default margin"
            what += "; give 'margin' in the claim or 'margin=' in @optbench.metric" if metric.is_users else ""
            yield Fault(document.value_place(("claims", name, "expect")), f"{shown_path(('claims', name))}: {what}")
        if _same_sides(claim) and _is_one_variant(suite, claim):
            what = f"right: expected a different optimizer or variant from the left, got {side_text(claim.right)}"
            yield Fault(document.value_place(("claims", name, "right")), f"{shown_path(('claims', name))}: {what}")
        experiment = suite.experiments.get(claim.experiment)
        chosen = suite.taking_part(experiment) if experiment is not None else {}
        if experiment is not None and claim.about_pairs:
            yield from _not_compared(name, claim, experiment, chosen, document)
        for at, arm in named_arms(claim):
            optimizer, variant = split_arm(arm)
            if variant is None or optimizer not in chosen or optimizer not in suite.optimizers:
                continue
            try:
                found = variants(suite.optimizers[optimizer].hyperparameters | chosen[optimizer])
            except OptimizerError:
                continue  # reported by the check of the optimizer
            if variant not in (names := [each.name for each in found]):
                path: KeyPath = ("claims", name, *at)
                what = unknown(f"variant of {optimizer} in {claim.experiment}", variant, names)
                yield Fault(document.value_place(path), f"{shown_path(path[:3])}: {what}")


def named_arms(claim: Claim) -> Iterator[tuple[KeyPath, str]]:
    """Yield each arm named on a side of a claim, with its path in the claim."""
    for key, side in (("left", claim.left), ("right", claim.right)):
        for i, arm in enumerate(arms_of(side)):
            yield ((key, i) if isinstance(side, list) else (key,)), arm


def check_of_trials(name: str) -> None:
    """Raise UsageError if `name` is a metric of two solutions."""
    if name in PAIR_METRICS:
        what = "expected two optimizers on the left, as in [adam, sgd]"
        raise UsageError(f"'{name}' is a metric of two solutions: {what}")


def check_compared(name: str, experiment: ExperimentSettings | None) -> None:
    """Raise UsageError unless `name` is a metric of two solutions and, if `pairs` lists metrics, is among them."""
    check_pair_metric(name)
    listed = experiment.pairs.metrics if experiment is not None and experiment.pairs is not None else None
    if listed is not None and name not in listed:
        raise UsageError(f"expected a metric listed in the experiment's 'pairs' ({', '.join(listed)}), got '{name}'")


def _judged_by(claim: Claim, suite: Suite, as_written: bool) -> Metric | None:
    """Return the metric that gives a claim's verdict; None if it is unknown, a fault that other checks report."""
    name = claim.primary.name
    experiment = with_readings(suite).experiments.get(claim.experiment)
    entry = experiment.own_metrics.get(name) if experiment is not None and not as_written else None
    try:
        return METRICS.get(base_name(name)) if entry is None else resolve([entry])[0]
    except OptbenchError:
        return None


def _same_sides(claim: Claim) -> bool:
    return not isinstance(claim.right, float) and sorted(arms_of(claim.left)) == sorted(arms_of(claim.right))


def _is_one_variant(suite: Suite, claim: Claim) -> bool:
    """Return whether the left side is a single variant or pair of solutions and thus cannot be compared with itself."""
    if claim.about_pairs:
        return True
    optimizer, variant = split_arm(claim.arms[0])
    experiment = suite.experiments.get(claim.experiment)
    if variant is not None or experiment is None or optimizer not in suite.optimizers:
        return variant is not None
    changes = suite.taking_part(experiment).get(optimizer, {})
    try:
        return count_variants(suite.optimizers[optimizer].hyperparameters | changes) == 1
    except OptimizerError:
        return False  # reported by the check of the optimizer


def _not_compared(
    name: str, claim: Claim, experiment: ExperimentSettings, optimizers: Collection[str], document: Document
) -> Iterator[Fault]:
    """Yield a fault for each side whose solutions the experiment does not compare, or one fault for missing `pairs`."""
    pairs = experiment.pairs
    if pairs is None:
        path: KeyPath = ("claims", name, "experiment")
        what = f"expected an experiment that compares solutions ('pairs'), got {claim.experiment}"
        yield Fault(document.value_place(path), f"{shown_path(path[:2])}: {what}")
        return
    against = optimizers if pairs.against is None else pairs.against
    controls = against if pairs.controls is None else pairs.controls
    for key, side in (("left", claim.left), ("right", claim.right)):
        if not isinstance(side, list):
            continue
        path = ("claims", name, key)
        first, second = (split_arm(arm)[0] for arm in side)
        if side[0] == side[1] and first not in controls:
            what = f"expected {first} among the 'controls' of 'pairs', got {', '.join(controls) or 'none'}"
            yield Fault(document.value_place(path), f"{shown_path(path)}: {what}")
        elif side[0] != side[1] and not {first, second} & set(against):
            what = f"expected {first} or {second} in 'against' of 'pairs', got {', '.join(against)}"
            yield Fault(document.value_place(path), f"{shown_path(path)}: {what}")
