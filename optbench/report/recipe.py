"""In sentences, how a protocol departs from plain steps at what is measured."""

from __future__ import annotations

from optbench.counting import count
from optbench.suite.protocol import Protocol


def recipe(protocol: Protocol) -> str:
    """Return a sentence for each departure; empty where there is none."""
    said = []
    if protocol.clip_norm is not None:
        said.append(f"Gradients are clipped to a norm of {protocol.clip_norm:g}.")
    if (averaging := protocol.weight_averaging) is not None:
        said.append(f"What is measured is an exponential moving average of the weights, decay {averaging.decay:g}.")
    if protocol.precision != "float32":
        said.append(f"Forward passes in training are in {protocol.precision}.")
    if (augment := protocol.augment) is not None:
        crop = f"cropped at random out of {count(augment.crop, 'pixel')} of zeros around them" if augment.crop else ""
        ways = " and ".join(filter(None, ("mirrored at random" if augment.flip else "", crop)))
        said.append(f"Training images are {ways}.")
    return " ".join(said)
