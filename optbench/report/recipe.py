"""Sentences on protocol settings beyond plain training: clipping, averaging, precision, augmentation, schedule."""

from __future__ import annotations

from optbench.counting import count
from optbench.suite.protocol import Protocol
from optbench.suite.rate_schedule import RateSchedule


def recipe(protocol: Protocol) -> str:
    """Describe the settings beyond plain training, in one sentence each; empty if there are none."""
    said = [] if protocol.schedule is None or protocol.schedule.is_flat else [scheduling(protocol.schedule)]
    if protocol.clip_norm is not None:
        said.append(f"Gradients are clipped to a norm of {protocol.clip_norm:g}.")
    if (averaging := protocol.weight_averaging) is not None:
        said.append(f"Measurements use an exponential moving average of the weights, with decay {averaging.decay:g}.")
    if protocol.precision != "float32":
        said.append(f"Forward passes in training use {protocol.precision}.")
    if (augment := protocol.augment) is not None:
        crop = f"cropped at random after zero-padding by {count(augment.crop, 'pixel')}" if augment.crop else ""
        ways = " and ".join(filter(None, ("mirrored at random" if augment.flip else "", crop)))
        said.append(f"Training images are {ways}.")
    return " ".join(said)


def scheduling(schedule: RateSchedule) -> str:
    """Return a sentence that describes a learning rate schedule, which must not be constant."""
    span = "a task's steps" if schedule.span == "task" else "the steps of all tasks"
    end = f"to {schedule.floor:g} of its peak" if schedule.floor else "to 0"
    ways = {
        "constant": f"stays constant over {span}",
        "linear": f"falls linearly {end} over {span}",
        "cosine": f"falls as a cosine {end} over {span}",
        "wsd": f"stays constant and falls linearly {end} over the last {100 * schedule.decay:.3g}% of {span}",
    }
    rise = f"rises over the first {100 * schedule.warmup:.3g}%, then " if schedule.warmup else ""
    return f"The learning rate {rise}{ways[schedule.kind]}."
