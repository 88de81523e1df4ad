"""Reports say how a protocol departs from plain steps."""

from __future__ import annotations

from optbench.report.recipe import recipe
from optbench.suite.protocol import Protocol, WeightAveraging


def test_each_departure_is_a_sentence() -> None:
    assert recipe(Protocol()) == ""
    averaging = WeightAveraging(kind="ema", decay=0.999)
    full = recipe(Protocol(clip_norm=1.0, weight_averaging=averaging, precision="bfloat16"))
    assert full == (
        "Gradients are clipped to a norm of 1. What is measured is an exponential moving average of the weights, "
        "decay 0.999. Forward passes in training are in bfloat16."
    )
