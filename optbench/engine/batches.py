"""Mini-batches, gathered from arrays on the device, then converted and normalised in reused buffers.

Legend: B batch size, N number of examples in a task, T positions of a sequence.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.data import Dataset
from optbench.engine.augment import Augmenter
from optbench.streams import generator
from optbench.suite.protocol import Augment, Protocol
from optbench.tasks import Examples

BLOCK = 2**17
"""Number of values converted and scaled per block on a CPU. The half megabyte that they occupy is still in the cache
during the second pass."""
LANES = 64
"""The number of rows in a block is a multiple of this, so that vector instructions process the same groups of numbers
as without blocks."""


@dataclass(frozen=True)
class Normaliser:
    """The affine map from stored inputs to network inputs.

    The scale and the shift are each a single number, or one number for each index of an input's first axis.
    """

    scale: Tensor
    shift: Tensor
    factor: float | None
    """The scale as a Python number, which requires no synchronisation; None if there are several scales."""
    dtype: torch.dtype = torch.float32
    """The dtype of network inputs."""
    same: bool = False
    """True if the map leaves inputs unchanged, as it does for tokens, and for floats under `unit` normalisation."""

    @staticmethod
    def of(dataset: Dataset, protocol: Protocol, device: torch.device) -> Normaliser:
        """Build the map for a dataset, according to `protocol.normalisation`.

        Tokens are never changed. Other inputs are divided by 255 if they have the dtype uint8. `standard` then maps x
        to (x - mean) / std, with the dataset's mean and std; `unit` changes nothing else.
        """
        standard, inputs = protocol.normalisation == "standard", dataset.inputs
        assert dataset.mean is not None
        assert dataset.std is not None
        mean = torch.tensor(dataset.mean if standard else [0.0] * len(dataset.mean))
        std = torch.tensor(dataset.std if standard else [1.0] * len(dataset.std))
        shape = (-1, *(1,) * (len(inputs.shape) - 1)) if len(dataset.mean) > 1 else ()
        highest = 255.0 if dataset.train.inputs.dtype == torch.uint8 else 1.0
        scale, shift = (1.0 / (highest * std)).reshape(shape), (-mean / std).reshape(shape)
        same = inputs.vocabulary is not None or (highest == 1.0 and not standard)
        return Normaliser(scale.to(device), shift.to(device), None if shape else scale.item(), inputs.dtype, same)

    def __call__(self, raw: Tensor, out: Tensor | None = None) -> Tensor:
        """Convert stored inputs (B, ...) to network inputs of the same shape, in `out` or in a new tensor."""
        if out is None:
            out = torch.empty(raw.shape, dtype=self.dtype, device=raw.device)
        rows = len(raw)
        if raw.device.type == "cpu" and raw.numel() > BLOCK:
            rows = max(1, BLOCK * rows // (raw.numel() * LANES)) * LANES
        for start in range(0, len(raw), rows or 1):
            self._convert(raw[start : start + rows], out[start : start + rows])
        return out

    def _convert(self, raw: Tensor, out: Tensor) -> None:
        out.copy_(raw)
        if self.same:
            return
        if self.factor is not None:
            # one pass instead of two
            torch.add(self.shift, out, alpha=self.factor, out=out)
        else:
            out.mul_(self.scale).add_(self.shift)


class BatchStream:
    """The batches of one member in one task. Examples are reshuffled every epoch; an incomplete last batch is dropped.

    Shuffling and augmentation depend only on (suite seed, trial seed, task, epoch, order), so for a given seed, all
    optimizers receive the same batches. With a different `order`, the same examples are shuffled and augmented
    differently.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        suite_seed: int,
        trial_seed: int,
        task: int,
        order: int = 0,
        augment: Augment | None = None,
    ) -> None:
        self.examples = examples
        self.augment = augment
        self.batch_size = batch_size
        self.steps_per_epoch = len(examples) // batch_size
        self._seeds = (suite_seed, trial_seed)
        self._task = task
        self._suffix = f"/order {order}" if order else ""
        self._epoch = -1
        self._order = self._ways = torch.empty(0)

    def order(self, epoch: int) -> Tensor:
        """Return the example indices (N,), on the CPU, in the order in which epoch `epoch` (0-based) uses them."""
        stream = generator(*self._seeds, f"data order/task {self._task}/epoch {epoch}{self._suffix}")
        return torch.randperm(len(self.examples), generator=stream)

    def ways(self, epoch: int) -> Tensor:
        """Return the examples' augmentations (N,), on the CPU, in the order of `order(epoch)`; see `Augmenter`."""
        assert self.augment is not None
        stream = generator(*self._seeds, f"augmentation/task {self._task}/epoch {epoch}{self._suffix}")
        return torch.randint(self.augment.ways, (len(self.examples),), generator=stream)

    def indices(self, step: int) -> Tensor:
        """Return the indices (B,) of the examples in batch `step` (0-based) of this task."""
        self._reach(step // self.steps_per_epoch)
        return self._order[self._within(step)]

    def augmentation(self, step: int) -> Tensor:
        """Return the augmentations (B,) for the examples of `indices(step)`."""
        self._reach(step // self.steps_per_epoch)
        return self._ways[self._within(step)]

    def _reach(self, epoch: int) -> None:
        if epoch != self._epoch:
            device, self._epoch = self.examples.targets.device, epoch
            self._order = self.order(epoch).to(device)
            if self.augment is not None:
                self._ways = self.ways(epoch).to(device)

    def _within(self, step: int) -> slice:
        position = step % self.steps_per_epoch
        return slice(position * self.batch_size, (position + 1) * self.batch_size)


def places(keys: Iterable[Hashable]) -> list[tuple[int, ...]]:
    """Return the indices at which each distinct key occurs, in order of first appearance."""
    found: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return [tuple(each) for each in found.values()]


def sharing(streams: Sequence[object]) -> list[tuple[int, ...]]:
    """Return the indices at which each distinct object occurs, as in `places`; objects are compared by identity."""
    return places(map(id, streams))


class BatchBuffer:
    """Gathers batches of network inputs and targets in reused buffers; a batch is valid until the next one is taken."""

    def __init__(self, batch_size: int, normalise: Normaliser) -> None:
        self.normalise = normalise
        self._size = batch_size
        self._buffers: tuple[Tensor, Tensor, Tensor] | None = None
        self._augmenters: weakref.WeakKeyDictionary[Examples, Augmenter] = weakref.WeakKeyDictionary()

    def take(self, stream: BatchStream, step: int) -> tuple[Tensor, Tensor]:
        """Return the network inputs (B, ...) and targets (B,) or (B, T) of batch `step`."""
        indices = stream.indices(step)
        inputs, targets = stream.examples.inputs, stream.examples.targets
        if self._buffers is None:
            raw = inputs.new_empty(self._size, *inputs.shape[1:])
            batch = torch.empty(raw.shape, dtype=self.normalise.dtype, device=raw.device)
            self._buffers = raw, batch, targets.new_empty(self._size, *targets.shape[1:])
        raw, batch, chosen = self._buffers
        torch.index_select(inputs, 0, indices, out=raw)
        torch.index_select(targets, 0, indices, out=chosen)
        if stream.augment is not None:
            raw = self._augmented(raw, stream, stream.augment, step)
        return self.normalise(raw, out=batch), chosen

    def _augmented(self, raw: Tensor, stream: BatchStream, augment: Augment, step: int) -> Tensor:
        examples, ways = stream.examples, stream.augmentation(step)
        if examples not in self._augmenters:
            self._augmenters[examples] = Augmenter(augment, [examples])
        augmenter = self._augmenters[examples]
        if examples.mirrored is not None:
            raw = augmenter.mirrored(raw, examples.mirrored.index_select(0, stream.indices(step)), ways)
        return augmenter(raw, ways)
