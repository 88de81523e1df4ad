"""Numbers as text, the same in every format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optbench.metrics import METRICS, Metric
from optbench.metrics.metric import base_name
from optbench.metrics.score import metric_in_bits
from optbench.stats.dormant import MANY

UNDEFINED = "–"
NOT_LEARNT = "†"
"""The symbol after results of networks that failed to learn tasks. A footnote lists these tasks."""

MANY_DORMANT = "‡"
"""The symbol before remarks on networks with many dormant units."""
NOT_OK = {
    "diverged": "diverged",
    "failed": "failed",
    "missing": "not finished",
    "above_target": "above the target training loss",
}
"""Statuses of trials excluded from means, in words."""

_DECIMALS = {
    "effective_rank": 1,
    "effective_rank_uncentred": 1,
    "effective_rank_correlation": 1,
    "effective_rank_sv": 1,
    "stable_rank": 2,
    "participation_ratio": 1,
    "srank": 1,
    "pca99": 1,
    "pca99_centred": 1,
    "eigenvalue_count_relative": 1,
    "eigenvalue_count": 1,
    "weight_effective_rank": 1,
    "weight_stable_rank": 2,
    "kurtosis": 2,
    "displacement_angle": 1,
    "train_seconds": 1,
    "milliseconds_per_step": 2,
    "steps": 0,
    "steps_to_accuracy": 0,
    "state_bytes_per_parameter": 1,
}


def decimals(metric: str) -> int:
    """Return the number of decimals with which a metric's values are shown."""
    return _DECIMALS.get(base_name(metric), 3)


def fixed(value: float | None, digits: int) -> str:
    """Format a number: `0.951`, `–` if undefined, `∞` if infinite, and never minus zero."""
    if value is None or math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def signed(value: float | None, digits: int) -> str:
    """Format like `fixed`, with a plus sign before positive numbers."""
    text = fixed(value, digits)
    return f"+{text}" if value is not None and value > 0 and float(text.replace("∞", "inf")) > 0 else text


def interval(bounds: tuple[float, float] | None, digits: int) -> str:
    """Format an interval as `[0.015, 0.045]`; empty for None."""
    return "" if bounds is None else f"[{fixed(bounds[0], digits)}, {fixed(bounds[1], digits)}]"


def estimate(value: float | None, bounds: tuple[float, float] | None, digits: int) -> str:
    """Format a difference and its interval, if it has one, as `+0.030 [0.015, 0.045]`."""
    return f"{signed(value, digits)} {interval(bounds, digits)}".strip()


def p_value(p: float | None) -> str:
    """Format a p-value with 2 to 4 decimals, depending on its size, or as `1e-05` if below 0.0001; `–` for None."""
    if p is None:
        return UNDEFINED
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.01 else f"{p:.4f}" if p >= 0.0001 else f"{p:.0e}"


def words(name: str, in_bits: bool = False) -> str:
    """Return a metric's name as used in a sentence: `last task accuracy`, or `last task score` if `in_bits`."""
    if in_bits and name in METRICS and (said := metric_in_bits(METRICS[name]).said):
        return said
    base = base_name(name)
    return base.replace("_", " ") + name.removeprefix(base)


def marked(text: str, not_learnt: object) -> str:
    """Return `text`, followed by a dagger if `not_learnt` is true."""
    return f"{text}\N{NO-BREAK SPACE}{NOT_LEARNT}" if not_learnt else text


def dormant_line(named: Sequence[str]) -> str:
    """Return the remark on networks with many dormant units.

    named: for each variant, a text with the affected trials and their dormant fractions.
    """
    listed = "; ".join(named)
    return f"{MANY_DORMANT} More than {100 * MANY:g}% of units dormant: {listed}. Inactive units lower a rank."


def losses(counts: Mapping[str, int], of: str = "") -> str:
    """Count the trials that are not ok, e.g. `2 diverged, 1 not finished`.

    of: text after each number, e.g. ` of 3`.
    """
    kinds = ((counts[status], what) for status, what in NOT_OK.items())
    return ", ".join(f"{n}{of} {what}" for n, what in kinds if n)


def name_with_arrow(metric: Metric) -> str:
    """Return the name of a metric with its arrow, e.g. `forgetting ↓`; a neutral metric has no arrow."""
    text = (metric.said or words(metric.name)) + (f" ({metric.unit})" if metric.unit else "")
    return text if metric.direction == "neutral" else f"{text} {metric.arrow}"
