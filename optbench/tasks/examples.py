"""Examples on the device, and the split of a dataset into training, validation and test parts.

Shapes: N examples, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optbench.data.text import NO_LIMIT
from optbench.data.windows import Text, consecutive_windows
from optbench.errors import UsageError
from optbench.late import torch
from optbench.streams import generator

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from optbench.data.dataset import Dataset, InputSpec, Split
    from optbench.suite.protocol import Augment, Protocol

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


# compared by identity, and weakly referenceable (so no slots), because sequences share these arrays
@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their targets on one device; read-only, because trials share them.

    Attributes:
        inputs: (N, ...) as in the dataset: uint8 in 0..255, float32, or int64 tokens.
        targets: int64, (N,) classes, or (N, T) with one per position.
        places: int64, (H W,): the original position of each pixel; None if unchanged.
        mirrored: like `inputs`, but made from mirror images of the originals; None if mirroring `inputs` gives
            the same result.
        cues: as in `Split`.
    """

    inputs: Tensor
    targets: Tensor
    places: Tensor | None = None
    mirrored: Tensor | None = None
    cues: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def positions(self) -> int:
        """The number of targets per example: T for a sequence, else 1."""
        return self.targets[0].numel() if len(self.targets) else 1

    def few(self, most: int) -> int:
        """Return how many examples to use: at least one, at most `most`, and if possible at most 8 · `most` targets."""
        return min(most, max(1, 8 * most // self.positions))

    def select(self, index: Tensor) -> Examples:
        """Return the examples at `index`, int64 of shape (K,) on the same device."""
        inputs, targets = self.inputs.index_select(0, index), self.targets.index_select(0, index)
        mirrored, cues = (None if each is None else each.index_select(0, index) for each in (self.mirrored, self.cues))
        return Examples(inputs, targets, self.places, mirrored, cues)

    def drawn(self, most: int, stream: Generator) -> Examples:
        """Return at most `most` examples, drawn at random, in their original order.

        The draw is random because examples may be sorted by class.
        """
        return self if len(self) <= most else self.select(_places(len(self), most, stream).to(self.targets.device))


@dataclass(frozen=True, eq=False)
class Parts:
    """The three disjoint parts of a dataset: `validation` is held out of the training half; `test` is the test half.

    Attributes:
        classes: the number of classes.
        spec: the form of one model input.
        texts: a text dataset's domains by name, with held-out text limited by the protocol; None for other datasets.
        token_bytes: as in `Dataset`.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: int
    spec: InputSpec
    texts: Mapping[str, Text] | None = None
    token_bytes: Tensor | None = None

    def __getitem__(self, part: Part) -> Examples:
        examples: Examples = getattr(self, part)
        return examples


def check_enough(examples_per_task: int, examples: int) -> None:
    """Raise UsageError if a task needs more training examples than are available."""
    if examples_per_task > examples:
        raise UsageError(
            f"tasks.examples_per_task: expected at most {examples}, the number of training examples after the "
            f"validation split, got {examples_per_task}"
        )


def drawn_examples(plain: Examples, size: int, suite_seed: int, trial_seed: int, task: int | None) -> Examples:
    """Draw `size` examples without replacement for a trial seed and task, and return them in published order.

    task: 0..T-1; None for the same examples in every task.
    """
    name = "examples of every task" if task is None else f"examples of task {task}"
    return plain.drawn(size, generator(suite_seed, trial_seed, name))


def split_dataset(dataset: Dataset, protocol: Protocol, suite_seed: int, device: torch.device) -> Parts:
    """Split a dataset according to the protocol and move the parts to the device.

    The random choice depends only on the suite seed, so that all trials of a suite use the same parts.
    A smaller `train_examples` or `test_examples` selects a subset of the examples that a larger value selects, and
    neither setting affects the validation examples. Within a part, the examples keep their published order.

    The parts of a text dataset are consecutive windows of each domain's sections. Held-out parts contain at most the
    first `validation_examples` and `test_examples` windows of each domain.

    Raises:
        UsageError: as in `check_dataset`.
    """
    check_dataset(protocol, dataset)
    if dataset.texts is not None:
        return _text_parts(dataset, dataset.texts, protocol, device)
    total, held_out = len(dataset.train), protocol.validation_examples
    order = torch.randperm(total, generator=generator(suite_seed, None, "validation split"))
    validation, rest = order[:held_out], order[held_out:].sort().values
    train = rest[_subset("train", protocol.train_examples, len(rest), suite_seed)]
    test = _subset("test", protocol.test_examples, len(dataset.test), suite_seed)
    return Parts(
        train=_on_device(dataset.train, train, device),
        validation=_on_device(dataset.train, validation.sort().values, device),
        test=_on_device(dataset.test, test, device),
        classes=dataset.classes,
        spec=dataset.inputs,
    )


def _text_parts(dataset: Dataset, texts: Mapping[str, Text], protocol: Protocol, device: torch.device) -> Parts:
    (context,) = dataset.train.inputs.shape[1:]

    def first(tokens: Tensor, windows: int | None) -> Tensor:
        return tokens if windows is None else tokens[: windows * context + 1]

    def examples(windows: list[Tensor]) -> Examples:
        joined = torch.cat(windows).to(device)
        return Examples(joined[:, :-1], joined[:, 1:])

    most = protocol.validation_examples, protocol.test_examples
    texts = {n: Text(t.train, first(t.validation, most[0]), first(t.test, most[1])) for n, t in texts.items()}
    return Parts(
        train=Examples(dataset.train.inputs.to(device), dataset.train.targets.to(device)),
        validation=examples([consecutive_windows(text.validation, context) for text in texts.values()]),
        test=examples([consecutive_windows(text.test, context) for text in texts.values()]),
        classes=dataset.classes,
        spec=dataset.inputs,
        texts=texts,
        token_bytes=dataset.token_bytes,
    )


def check_dataset(protocol: Protocol, dataset: Dataset) -> None:
    """Check a protocol against the examples of a dataset.

    Raises:
        UsageError: the protocol requests more examples than exist, leaves none for training, or sets
            `train_examples` for a text dataset.
    """
    if dataset.texts is None:
        check_sizes(protocol, len(dataset.train), len(dataset.test), dataset.name)
    elif protocol.train_examples is not None:
        raise UsageError(f"protocol.train_examples: {NO_LIMIT}")


def check_augment(augment: Augment | None, dataset: Dataset) -> None:
    """Check that the images of a dataset can be augmented as requested.

    Raises:
        UsageError: the inputs are not images, or are too small for the crop.
    """
    if augment is None:
        return
    if len(shape := dataset.inputs.shape) != 3:
        got = f"inputs of shape {tuple(shape)} from {dataset.name}"
        raise UsageError(f"protocol.augment: expected images of shape (C, H, W), got {got}")
    if augment.crop >= (side := min(shape[1:])):
        whose = f"the shorter side of the images of {dataset.name}"
        raise UsageError(f"protocol.augment.crop: expected less than {side}, {whose}, got {augment.crop}")


def check_sizes(protocol: Protocol, train: int, test: int, name: str) -> None:
    """Check a protocol against the sizes of a dataset called `name`, without loading its data or importing torch.

    Raises:
        UsageError: the protocol requests more examples than exist, or leaves none for training.
    """
    held_out = protocol.validation_examples
    if held_out >= train:
        default = "" if "validation_examples" in protocol.model_fields_set else " (the default)"
        raise UsageError(
            f"protocol.validation_examples: expected at most {train - 1}, so that some of the {train} training "
            f"examples of {name} remain, got {held_out}{default}"
        )
    for part, wanted, available in (
        ("train", protocol.train_examples, train - held_out),
        ("test", protocol.test_examples, test),
    ):
        if wanted is not None and wanted > available:
            left = f"the number of {part} examples of {name}" + (
                " after the validation split" if part == "train" else ""
            )
            raise UsageError(f"protocol.{part}_examples: expected at most {available}, {left}, got {wanted}")


def check_task_size(protocol: Protocol, examples_per_task: int, train: int) -> None:
    """Check the number of examples that each task draws from `train` training examples, without loading data.

    Raises:
        UsageError: the number is more than remains after the validation split, or less than a batch.
    """
    check_enough(examples_per_task, protocol.train_examples or train - protocol.validation_examples)
    if (batch := protocol.batch_size) > examples_per_task:
        most = f"{examples_per_task}, the number of examples in a task"
        raise UsageError(f"protocol.batch_size: expected at most {most}, got {batch}")


def _subset(part: str, wanted: int | None, available: int, suite_seed: int) -> Tensor:
    """Return the sorted indices of a random subset of `wanted` examples, or of all examples if `wanted` is None."""
    if wanted is None:
        return torch.arange(available)
    return _places(available, wanted, generator(suite_seed, None, f"{part} subset"))


def _places(available: int, most: int, stream: Generator) -> Tensor:
    """Draw at most `most` of the indices 0..available-1; return them in ascending order."""
    return torch.randperm(available, generator=stream)[:most].sort().values


def _on_device(split: Split, index: Tensor, device: torch.device) -> Examples:
    chosen = Examples(split.inputs, split.targets, cues=split.cues).select(index)
    cues = None if chosen.cues is None else chosen.cues.to(device)
    return Examples(chosen.inputs.to(device), chosen.targets.to(device), cues=cues)
