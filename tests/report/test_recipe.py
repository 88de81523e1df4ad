"""Reports describe how a protocol differs from plain steps."""

from __future__ import annotations

from optbench.report.recipe import recipe
from optbench.suite.protocol import Protocol, WeightAveraging


def test_every_difference_is_described_in_a_sentence() -> None:
    assert recipe(Protocol()) == ""
    averaging = WeightAveraging(kind="ema", decay=0.999)
    full = recipe(Protocol(clip_norm=1.0, weight_averaging=averaging, precision="bfloat16"))
    assert full == (
        "Gradients are clipped to a norm of 1. Measurements use an exponential moving average of the weights, "
        "with decay 0.999. Forward passes in training use bfloat16."
    )


def test_a_schedule_is_described_in_a_sentence() -> None:
    def said(**schedule: object) -> str:
        return recipe(Protocol.model_validate({"schedule": schedule}))

    assert said(kind="constant") == ""
    assert said(kind="constant", warmup=0.1) == (
        "The learning rate rises over the first 10%, then stays constant over a task's steps."
    )
    assert said(kind="cosine", warmup=0.05) == (
        "The learning rate rises over the first 5%, then falls as a cosine to 0 over a task's steps."
    )
    assert said(kind="wsd", floor=0.1, span="all") == (
        "The learning rate stays constant and falls linearly to 0.1 of its peak over the last 20% of the steps of all "
        "tasks."
    )
