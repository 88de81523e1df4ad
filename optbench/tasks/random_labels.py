"""Random labels: in each task, the network memorises labels that are independent of the images (Lyle et al. 2023)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from optbench.errors import UsageError
from optbench.kinds import Whole
from optbench.late import torch
from optbench.streams import generator
from optbench.tasks.examples import Examples, Part, Parts, check_enough, drawn_examples
from optbench.tasks.kind import Outline


class RandomLabels:
    """Images with random labels; each task draws its labels anew from a uniform distribution over the classes.

    `images: once` uses the same images for all tasks, so that only labels change (Kumar et al. 2023); `per-task` also
    redraws the images. Images are drawn from the training examples, and images and labels differ between trial seeds.
    Random labels cannot be predicted for other images, so a task's training examples are also its validation and test
    examples, and its accuracy measures memorisation. Early stopping on validation data therefore uses the training
    loss.
    """

    def __init__(
        self,
        data: Parts,
        seed: int,
        *,
        count: Annotated[Whole, Field(ge=1, le=10_000)] = 50,
        examples_per_task: Annotated[Whole, Field(ge=1)] = 1200,
        images: Literal["once", "per-task"] = "once",
    ) -> None:
        """Raise UsageError if examples have several targets, or there are fewer examples than a task needs."""
        if data.train.targets.ndim > 1:
            raise UsageError("tasks.kind: expected one target for each example, got one for each position")
        check_enough(examples_per_task, len(data.train))
        self.names = _names(count)
        self._parts, self._suite_seed = data, seed
        self._size, self._once = examples_per_task, images == "once"

    @staticmethod
    def outline(classes: int, *, count: int, examples_per_task: int, images: str) -> Outline:
        return Outline(_names(count), classes)

    def key(self, trial_seed: int, task: int) -> Hashable:
        return "random labels", trial_seed, task

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        images = drawn_examples(
            self._parts.train, self._size, self._suite_seed, trial_seed, None if self._once else task
        )
        draw = generator(self._suite_seed, trial_seed, f"random labels {task}")
        labels = torch.randint(self._parts.classes, (self._size,), generator=draw)
        return Examples(images.inputs, labels.to(images.targets.device))

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        yield trial_seeds[0], 0, self._size  # the same in every task


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"labels {i + 1}" for i in range(count))
