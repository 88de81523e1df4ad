"""Mini-batches from arrays that already sit on the device: gathered, converted and normalised into reused buffers.

Legend: B batch size, N examples of a task, D = C*H*W pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.data import Dataset
from optbench.streams import generator
from optbench.suite.schema import Protocol
from optbench.tasks import Examples


@dataclass(frozen=True)
class Normaliser:
    """The affine map from stored bytes 0..255 to network inputs, one scale and shift per channel."""

    scale: Tensor
    shift: Tensor
    factor: float | None
    """With one channel the scale as a number, which no device has to be asked for."""

    @staticmethod
    def of(dataset: Dataset, protocol: Protocol, device: torch.device) -> Normaliser:
        """`standard`: (x/255 - mean)/std of the dataset; `unit`: x/255."""
        mean = torch.tensor(dataset.mean if protocol.normalisation == "standard" else [0.0] * len(dataset.mean))
        std = torch.tensor(dataset.std if protocol.normalisation == "standard" else [1.0] * len(dataset.std))
        shape = (-1, 1, 1) if len(dataset.mean) > 1 else ()
        scale, shift = (1.0 / (255.0 * std)).reshape(shape), (-mean / std).reshape(shape)
        return Normaliser(scale.to(device), shift.to(device), None if shape else scale.item())

    def __call__(self, raw: Tensor, out: Tensor | None = None) -> Tensor:
        """Bytes (B, C, H, W) to float32 inputs of the same shape, in `out` if given."""
        if out is None:
            out = torch.empty(raw.shape, device=raw.device)
        out.copy_(raw)
        if self.factor is not None:
            # One pass instead of two.
            return torch.add(self.shift, out, alpha=self.factor, out=out)
        return out.mul_(self.scale).add_(self.shift)


class BatchStream:
    """The batches of one member in one task: a fresh random order every epoch, the incomplete last batch dropped.

    What comes when depends on (suite seed, trial seed, task, epoch, order) alone: every optimizer of a seed meets the
    same batches. Another `order` shuffles the same examples otherwise.
    """

    def __init__(
        self, examples: Examples, batch_size: int, suite_seed: int, trial_seed: int, task: int, order: int = 0
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.steps_per_epoch = examples.labels.numel() // batch_size
        self._seeds = (suite_seed, trial_seed)
        self._task = task
        self._suffix = f"/order {order}" if order else ""
        self._epoch = -1
        self._order = torch.empty(0)

    def order(self, epoch: int) -> Tensor:
        """Rows (N,) of the examples in the order of an epoch (0-based), on the CPU."""
        stream = generator(*self._seeds, f"data order/task {self._task}/epoch {epoch}{self._suffix}")
        return torch.randperm(self.examples.labels.numel(), generator=stream)

    def indices(self, step: int) -> Tensor:
        """Rows (B,) of the examples that make batch number `step` (0-based) of this task."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self.order(epoch).to(self.examples.labels.device), epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def places(keys: Iterable[Hashable]) -> list[tuple[int, ...]]:
    """The places of equal keys, for every key."""
    found: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return [tuple(each) for each in found.values()]


def sharing(streams: Sequence[object]) -> list[tuple[int, ...]]:
    """The places that have the same stream, for every stream: whose batches are the same. Likewise of examples."""
    return places(map(id, streams))


class BatchBuffer:
    """Turns a stream's indices into a batch of floats, reusing one buffer: a batch lives until the next is taken."""

    def __init__(self, batch_size: int, shape: tuple[int, int, int], normalise: Normaliser) -> None:
        device = normalise.scale.device
        self._raw = torch.empty(batch_size, *shape, dtype=torch.uint8, device=device)
        self._inputs = torch.empty(batch_size, *shape, device=device)
        self._labels = torch.empty(batch_size, dtype=torch.int64, device=device)
        self.normalise = normalise

    def take(self, stream: BatchStream, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (B, C, H, W) and labels (B,) of batch number `step`."""
        indices = stream.indices(step)
        torch.index_select(stream.examples.inputs, 0, indices, out=self._raw)
        torch.index_select(stream.examples.labels, 0, indices, out=self._labels)
        return self.normalise(self._raw, out=self._inputs), self._labels
