"""Permuted inputs: each task shuffles the pixels with one fixed random permutation (Goodfellow et al. 2013)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from optbench.errors import UsageError
from optbench.kinds import Whole
from optbench.late import torch
from optbench.streams import generator
from optbench.tasks.examples import Examples, Part, Parts, check_enough, drawn_examples
from optbench.tasks.kind import Outline

if TYPE_CHECKING:
    from torch import Tensor


class Permuted:
    """Permuted images: each task applies one fixed random permutation of the pixels.

    In every image of all three parts, task i moves pixel p[j] to position j, where the H·W positions are numbered in
    row-major order. All channels use the same p, which preserves colours. Other inputs are permuted elementwise.

    With `examples_per_task`, each task trains on this number of training examples, drawn anew for every trial seed and
    task; validation and test data are not reduced. Together with `max_epochs: 1`, this is the online form, in which
    each drawn example is used at most once.
    """

    def __init__(
        self,
        data: Parts,
        seed: int,
        *,
        count: Annotated[Whole, Field(ge=1, le=10_000)] = 3,
        first: Literal["permuted", "identity"] = "permuted",
        permutations: Literal["per-seed", "shared"] = "per-seed",
        examples_per_task: Annotated[Whole, Field(ge=1)] | None = None,
    ) -> None:
        """Raise UsageError if examples have several targets, or there are fewer examples than a task needs."""
        if data.train.targets.ndim > 1 and (count > 1 or first == "permuted"):
            raise UsageError("tasks.kind: expected one target for each example, got one for each position")
        self.names = _names(count, first)
        if examples_per_task is not None:
            check_enough(examples_per_task, len(data.train))
        self._first, self._permutations, self._size = first, permutations, examples_per_task
        self._parts, self._suite_seed = data, seed

    @staticmethod
    def outline(classes: int, *, count: int, first: str, **_others: object) -> Outline:
        return Outline(_names(count, first), classes)

    def key(self, trial_seed: int, task: int) -> Hashable:
        if self._size is not None:  # examples differ between seeds, regardless of the permutation
            return "drawn", trial_seed, task
        if self._is_identity(task):
            return "identity"
        return "permutation", self._drawn_by(trial_seed), task

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        plain = self._parts[part]
        if self._size is not None and part == "train":
            plain = drawn_examples(plain, self._size, self._suite_seed, trial_seed, task)
        if self._is_identity(task):
            return plain
        permutation = self.permutation(trial_seed, task)
        return Examples(permute_pixels(plain.inputs, permutation), plain.targets, permutation, cues=plain.cues)

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        yield trial_seeds[0], 0, self._size or len(self._parts.train)  # the same in every task

    def keeps(self, key: Hashable) -> bool:
        # The identity task uses the family's own arrays, so keeping them costs nothing.
        return key == "identity"

    def permutation(self, trial_seed: int, task: int) -> Tensor:
        """Return the permutation of a task: int64, (H·W,) for images, on the CPU."""
        shape = self._parts.train.inputs.shape
        places = math.prod(shape[2:] if len(shape) == 4 else shape[1:])
        if self._is_identity(task):
            return torch.arange(places)
        drawn = generator(self._suite_seed, self._drawn_by(trial_seed), f"permutation {task}")
        return torch.randperm(places, generator=drawn)

    def _is_identity(self, task: int) -> bool:
        return task == 0 and self._first == "identity"

    def _drawn_by(self, trial_seed: int) -> int | None:
        return trial_seed if self._permutations == "per-seed" else None


def _names(count: int, first: str) -> tuple[str, ...]:
    return ("identity" if first == "identity" else "permutation 1", *(f"permutation {i + 1}" for i in range(1, count)))


def permute_pixels(images: Tensor, permutation: Tensor) -> Tensor:
    """Return images (N, C, H, W) with pixel j (of H·W, row-major) taken from `permutation[j]` in every channel.

    Other inputs (N, ...), with one number per element of the permutation, are permuted in the same way.
    """
    rows = images.reshape(-1, len(permutation))
    if images.device.type == "cpu":
        # NumPy gathers bytes along the last axis about four times as fast as torch (67 ms versus 250 ms for 60,000
        # MNIST images on one core). It is a fifth faster with mode="clip", which does not report indices out of range;
        # there are none.
        taken = torch.from_numpy(np.take(rows.numpy(), permutation.numpy(), axis=1, mode="clip"))
    else:
        taken = rows.index_select(1, permutation.to(images.device))
    return taken.reshape(images.shape)
