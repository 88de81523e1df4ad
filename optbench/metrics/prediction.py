"""Prediction: worst-class accuracy, calibration, spurious cues, corrupted inputs and quantised weights.

Legend: `N` examples; `C` classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from optbench.data.corruption import CORRUPTIONS, Corruption

BINS = 15
"""Number of bins (a, b] of equal width in `calibration_error`."""
CHUNK = 2500
"""Number of examples, or of positions of sequences, per forward pass."""


@dataclass(frozen=True, eq=False)
class ClassHits:
    """The numbers of examples and of correct predictions in each class.

    hits, examples: int64 (C,), with C = 0 for text.
    """

    hits: Tensor
    examples: Tensor

    @property
    def shares(self) -> Tensor:
        """The accuracy on each class that has examples, in float64."""
        there = self.examples > 0
        return self.hits[there].double() / self.examples[there]


def class_hits(logits: Tensor, targets: Tensor) -> ClassHits:
    """Count the examples and the correct predictions of each class. logits: (N, C); targets: (N,)."""
    right = targets[logits.argmax(-1) == targets]
    classes = logits.shape[-1]
    return ClassHits(torch.bincount(right, minlength=classes), torch.bincount(targets, minlength=classes))


def pooled_hits(parts: list[ClassHits]) -> ClassHits:
    """Add the counts of one or more sets of examples with the same classes."""
    return ClassHits(sum(part.hits for part in parts), sum(part.examples for part in parts))  # type: ignore[arg-type]


def worst_class_accuracy(class_hits: ClassHits) -> Tensor:
    """Return the lowest accuracy on any class that has examples; NaN if no class has any."""
    shares = class_hits.shares
    return shares.min() if len(shares) else shares.new_tensor(math.nan)


def balanced_accuracy(class_hits: ClassHits) -> Tensor:
    """Return the mean accuracy over the classes that have examples; NaN if no class has any."""
    return class_hits.shares.mean()


def class_note(class_hits: ClassHits) -> str:
    """Return why a class-wise accuracy is undefined."""
    return "no examples" if len(class_hits.examples) else "expected classes, got the tokens of a text"


def calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the expected calibration error Σ_b (n_b / N) |accuracy_b - mean confidence_b| (Guo et al. 2017).

    Bin b, from 0 to 14, holds the examples whose largest probability is in (b/15, (b+1)/15].

    Args:
        logits: (N, C).
        targets: (N,).

    Returns:
        float64 (); NaN if there are no examples or a confidence is not finite.

    Example:
        >>> p = torch.tensor([0.9, 0.58, 0.55, 0.2])
        >>> logits = torch.stack([p, 1 - p], 1).log()
        >>> round(float(calibration_error(logits, torch.tensor([0, 1, 0, 1]))), 4)
        0.1075
    """
    confidence, predicted = logits.double().softmax(-1).max(-1)
    if not len(targets) or not bool(torch.isfinite(confidence).all()):
        return confidence.new_tensor(math.nan)
    places = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gaps = confidence.new_zeros(BINS).index_add(0, places, (predicted == targets).double() - confidence)
    return gaps.abs().sum() / len(targets)


def calibration_note(logits: Tensor, targets: Tensor) -> str:
    """Return why a calibration error is undefined."""
    return "the logits are not finite" if len(targets) else "no examples"


def cue_following(logits: Tensor, cues: Tensor | None) -> float:
    """Return the share of predictions equal to the class that a spurious cue indicates; 1 if only the cue is used.

    Args:
        logits: (N, C).
        cues: (N,), as in `optbench.Split`; None if there are none.

    Returns:
        NaN if there are no cues or no examples.
    """
    if cues is None or not len(logits):
        return math.nan
    return float((logits.argmax(-1) == cues.to(logits.device)).double().mean())


def cue_note(logits: Tensor, cues: Tensor | None) -> str:
    """Return why `cue_following` is undefined."""
    return "no examples" if cues is not None else "expected data with cues, as in the dataset spurious-patch"


@dataclass(frozen=True, eq=False)
class Corrupted:
    """A network, its test targets, and a function that returns corrupted test images.

    model: the network in eval mode. make: returns the test images with a given corruption. targets: (N,).
    """

    model: nn.Module
    make: Callable[[Corruption], Tensor]
    targets: Tensor
    _known: dict[Corruption, float] = field(default_factory=dict, init=False)

    def accuracy(self, corruption: Corruption) -> float:
        """Return the network's accuracy on inputs with a corruption; each accuracy is computed only once."""
        if corruption not in self._known:
            self._known[corruption] = accuracy_of(self.model, self.make(corruption), self.targets)
        return self._known[corruption]


def corruption_accuracy(corrupted: Corrupted | None, *, corruption: Corruption | None = None) -> float:
    """Return the accuracy under `corruption` or, by default, the mean accuracy over all of `CORRUPTIONS`.

    Returns:
        NaN if inputs are not images, or there are no examples.
    """
    if corrupted is None:
        return math.nan
    chosen = CORRUPTIONS if corruption is None else (corruption,)
    return sum(map(corrupted.accuracy, chosen)) / len(chosen)


def corruption_note(corrupted: Corrupted | None) -> str:
    """Return why `corruption_accuracy` is undefined."""
    return "no examples" if corrupted is not None else "expected images of shape (C, H, W)"


def quantised(weight: Tensor, bits: int) -> Tensor:
    """Round a weight tensor to `bits` bits, symmetric about 0: w ← s · round(w / s), s = max|w| / (2^(bits-1) - 1).

    Ties round to even. A tensor that is all zero or contains non-finite values is returned unchanged.

    Raises:
        ValueError: bits < 2.
    """
    if bits < 2:
        raise ValueError(f"expected at least 2 bits, got {bits}")
    step = weight.abs().max() / (2 ** (bits - 1) - 1) if weight.numel() else weight.new_zeros(())
    return (weight / step).round() * step if bool(torch.isfinite(step)) and float(step) else weight.clone()


@torch.no_grad()
def quantised_drop(model: nn.Module, inputs: Tensor, targets: Tensor, accuracy: float, *, bits: int) -> float:
    """Return the accuracy that a network loses when `quantised` rounds every weight tensor to `bits` bits.

    Weights are parameters with two or more axes; others (biases, gains) and buffers are unchanged.

    Args:
        model: in eval mode; not modified.
        inputs: (N, ...), as the model takes them.
        targets: (N,), or (N, T) for sequences.
        accuracy: the accuracy of the unmodified model on the same data; see `accuracy_of`.

    Returns:
        NaN if there are no examples.
    """
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.ndim >= 2:
            parameter.copy_(quantised(parameter, bits))
    return accuracy - accuracy_of(rounded, inputs, targets)


def drop_note(model: nn.Module, inputs: Tensor, targets: Tensor, accuracy: float) -> str:
    """Return why `quantised_drop` is undefined."""
    return "no examples"


@torch.no_grad()
def accuracy_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return the share of targets (N,) or (N, T) that a network predicts correctly; NaN if there are no examples."""
    if not targets.numel():
        return math.nan
    size = max(1, CHUNK // math.prod(targets.shape[1:]))
    parts = (slice(start, start + size) for start in range(0, len(targets), size))
    # copies, because a network may modify its inputs in place
    right = sum(int((model(inputs[part].clone()).argmax(-1) == targets[part]).sum()) for part in parts)
    return right / targets.numel()
