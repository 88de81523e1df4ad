"""The state of a network before its first update on a task: features, weights and gradient.

Legend: P padded parameter count, Q padded size of the buffers in floats, N examples, d features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.engine.evaluate import Evaluator
from optbench.metrics import rank, sparsity
from optbench.precision import exact
from optbench.streams import generator
from optbench.tasks import Examples

PROBED = 2000
"""Maximum number of examples of the new task on which the state is measured."""
TAU = 0.025
"""Fraction of the mean activity at or below which a unit is dormant (Sokar et al. 2023, arXiv:2302.12902)."""


@dataclass(frozen=True)
class BeforeTask:
    """The state of one network before one task. Undefined values are None, and `note` gives the reason."""

    dead: float | None
    """Share of the features that are exactly zero on every example (`sparsity.dead_share`)."""
    dormant: float | None
    """Share of dormant units at threshold `TAU` (`sparsity.dormant`)."""
    effective_rank: float | None
    """Effective rank of the covariance of the features (`rank.effective_rank`)."""
    weight_magnitude: float | None
    """Mean |w| over all weights, excluding biases and gains."""
    gradient_norm: float | None
    """2-norm of the gradient of the mean cross-entropy with respect to all parameters."""
    examples: int
    """N, the number of examples on which the state was measured."""
    width: int
    """d, the number of features."""
    note: str | None


def probe(examples: Examples, suite_seed: int) -> Examples:
    """Draw at most `PROBED` training examples of a task, at the same indices in every trial.

    Fewer examples are drawn if they are long sequences (see `Examples.few`).
    """
    return examples.drawn(examples.few(PROBED), generator(suite_seed, None, "network before a task"))


def before_task(evaluator: Evaluator, row: Tensor, examples: Examples) -> BeforeTask:
    """Measure the network with weights and buffers `row` (P + Q,) on examples of the next task, in eval mode.

    This takes one forward and one backward pass. The features are the input of the last linear layer. Exceptions raised
    by a user's model propagate.
    """
    features, gradient = evaluator.differentiate(row, examples)
    activity, spectrum = sparsity.activity(features), rank.spectrum(features)
    weights = [w.flatten() for w in evaluator.blueprint.layout.views(row).values() if w.ndim >= 2]
    magnitude = exact(torch.cat(weights)).abs().mean().item() if weights else math.nan
    norm = torch.linalg.vector_norm(exact(gradient)).item()
    said = [sparsity.activation_note(activity), rank.note(spectrum, centred=True)]
    said += [] if math.isfinite(magnitude) else ["no weights" if not weights else "the weights are not finite"]
    said += [] if math.isfinite(norm) else ["the gradient is not finite"]
    return BeforeTask(
        dead=_defined(sparsity.dead_share(activity).item()),
        dormant=_defined(sparsity.dormant(activity, TAU).item()),
        effective_rank=_defined(rank.effective_rank(spectrum).item()),
        weight_magnitude=_defined(magnitude),
        gradient_norm=_defined(norm),
        examples=features.shape[0],
        width=features.shape[1],
        note="; ".join(dict.fromkeys(filter(None, said))) or None,
    )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
