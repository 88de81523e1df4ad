"""Batches of many streams, taken together on an accelerator, with positions stored on the device.

Legend: S distinct streams, B batch size, T positions of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optbench.engine.augment import Augmenter
from optbench.engine.batches import BatchStream, Normaliser


class Feed:
    """Takes the next batches of all streams in a few library calls.

    The examples of all streams are concatenated. A stream's order in an epoch is a row of indices. The position in this
    order is a tensor on the device rather than a Python counter, so `take` performs the same operations every time. At
    the start of an epoch, `aim` copies the epoch's order to the device.
    """

    def __init__(self, streams: Sequence[BatchStream], normalise: Normaliser) -> None:
        self._streams = list(streams)
        self._normalise = normalise
        parts = list({id(stream.examples): stream.examples for stream in streams}.values())
        offsets, rows = {}, 0
        for part in parts:
            offsets[id(part)] = rows
            rows += len(part)
        self._offsets = [offsets[id(stream.examples)] for stream in streams]
        # Unless all streams have the same examples, these are second copies, which exist as long as the stack.
        self._inputs = parts[0].inputs if len(parts) == 1 else torch.cat([part.inputs for part in parts])
        self._targets = parts[0].targets if len(parts) == 1 else torch.cat([part.targets for part in parts])
        device = self._targets.device
        size = streams[0].batch_size
        longest = max(stream.steps_per_epoch for stream in streams) * size
        self._orders = torch.zeros(len(streams), longest, dtype=torch.int64, device=device)
        self.positions = torch.zeros(len(streams), 1, dtype=torch.int64, device=device)
        """(S, 1): the start of each stream's next batch in the order of its epoch."""
        augment, mirrored = streams[0].augment, [part.mirrored for part in parts if part.mirrored is not None]
        self._augmenter = None if augment is None else Augmenter(augment, [stream.examples for stream in streams])
        self._ways = torch.zeros_like(self._orders)
        self._mirrored = (mirrored[0] if len(mirrored) == 1 else torch.cat(mirrored)) if mirrored else None
        self._within = torch.arange(size, device=device)
        self._raw = self._inputs.new_empty(len(streams) * size, *self._inputs.shape[1:])
        self._batch = torch.empty(len(streams), size, *self._inputs.shape[1:], dtype=normalise.dtype, device=device)
        self._batch_targets = self._targets.new_empty(len(streams) * size, *self._targets.shape[1:])
        self._next = self._until = -1
        """The step of the next batch, and the next step at which any stream begins an epoch."""

    def aim(self, step: int) -> None:
        """Prepare `take` to return batch `step` (0-based), without synchronisation."""
        if step != self._next or step == self._until:
            for i, stream in enumerate(self._streams):
                epoch, position = divmod(step, stream.steps_per_epoch)
                if step != self._next or position == 0:
                    self._renew(i, stream, epoch)
                    self.positions[i].fill_(position * stream.batch_size)
            self._until = min((step // s.steps_per_epoch + 1) * s.steps_per_epoch for s in self._streams)
        self._next = step + 1

    def take(self) -> tuple[Tensor, Tensor]:
        """Return the next inputs (S, B, ...) and targets (S, B) or (S, B, T), which are valid until the next call."""
        places = self.positions + self._within
        rows = self._orders.gather(1, places).view(-1)
        raw = torch.index_select(self._inputs, 0, rows, out=self._raw)
        torch.index_select(self._targets, 0, rows, out=self._batch_targets)
        if self._augmenter is not None:
            ways = self._ways.gather(1, places).view(-1)
            if self._mirrored is not None:
                raw = self._augmenter.mirrored(raw, self._mirrored.index_select(0, rows), ways)
            raw = self._augmenter(raw, ways)
        self.positions.add_(self._within.numel())
        inputs = self._normalise(raw.view(self._batch.shape), out=self._batch)
        return inputs, self._batch_targets.view(*self._batch.shape[:2], *self._targets.shape[1:])

    def _renew(self, i: int, stream: BatchStream, epoch: int) -> None:
        """Copy the example order and the augmentations of an epoch to the device."""
        used = stream.steps_per_epoch * stream.batch_size
        self._send(stream.order(epoch)[:used] + self._offsets[i], self._orders[i])
        if stream.augment is not None:
            self._send(stream.ways(epoch)[:used], self._ways[i])

    @staticmethod
    def _send(numbers: Tensor, row: Tensor) -> None:
        if row.is_cuda:  # copied from pinned memory, so that no call waits
            numbers = numbers.pin_memory()
        row[: len(numbers)].copy_(numbers, non_blocking=True)
