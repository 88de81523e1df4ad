"""Incompatibilities between protocols and optimizers that follow from the optimizers' needs."""

from __future__ import annotations

from collections.abc import Set

from optbench.optimizers.spec import Need
from optbench.suite.protocol import Protocol


def obstacle_to(protocol: Protocol, needs: Set[Need]) -> str | None:
    """Return the reason why an optimizer with these needs cannot follow `protocol`; None if it can."""
    if protocol.clip_norm is not None and "loss" in needs:
        return (
            "protocol.clip_norm: expected an optimizer that steps from gradients, got one that takes the loss "
            "(needs: loss) and computes its own gradients"
        )
    if protocol.weight_averaging is not None and "modes" in needs:
        return (
            "protocol.weight_averaging: expected an optimizer that is measured at the weights that it trains, got one "
            "with train() and eval(), which is measured at other weights (otherwise, declare needs: no-modes)"
        )
    return None
