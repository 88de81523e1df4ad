"""Transfer to another dataset: how useful a trained network's features are for other data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from optbench.data import Dataset, Split, load
from optbench.engine.evaluate import Evaluator
from optbench.errors import UsageError
from optbench.metrics.transfer import Labelled, Probe
from optbench.streams import generator
from optbench.suite.schema import ExperimentSettings
from optbench.tasks import Examples

TRAIN, VALIDATION, TEST = 5000, 2000, 10_000
"""Maximum numbers of examples in the parts of the other dataset."""


def load_transfer(experiment: ExperimentSettings, data_dir: Path | None) -> Dataset | None:
    """Load an experiment's other dataset, whose files must exist; return None if there is no other dataset."""
    return None if experiment.transfer is None else load(experiment.transfer, data_dir, download=False)


@dataclass(frozen=True, eq=False)
class Transfer:
    """The training, validation and test examples of an experiment's other dataset, on the device.

    Inputs are stored before normalisation. Targets are classes of the other dataset, for which networks have no
    outputs.
    """

    parts: tuple[Examples, Examples, Examples]
    classes: int

    @staticmethod
    def of(dataset: Dataset, suite_seed: int, device: torch.device) -> Transfer:
        """Draw the examples of each part at random; they are the same for every trial of a suite.

        At most 2/7 of the training data, but at least one example, are held out as validation data, for the
        choice of the probe's penalty.
        """
        order = torch.randperm(len(dataset.train), generator=generator(suite_seed, None, "transfer"))
        held_out = min(VALIDATION, max(1, 2 * len(order) // 7))
        of_test = torch.randperm(len(dataset.test), generator=generator(suite_seed, None, "transfer test"))
        train = _examples(dataset.train, order[held_out:][:TRAIN], device)
        validation = _examples(dataset.train, order[:held_out], device)
        return Transfer((train, validation, _examples(dataset.test, of_test[:TEST], device)), dataset.classes)

    def probe(self, evaluator: Evaluator, row: torch.Tensor) -> Probe:
        """Return a probe's data: the features that a network computes for all parts.

        row: the network's weights and buffers, with padding.
        """

        def read(examples: Examples) -> Labelled:
            # The targets are placeholders, because the network may have no outputs for the other dataset's classes.
            score = evaluator.read(row, Examples(examples.inputs, torch.zeros_like(examples.targets)))
            return Labelled(score.features, examples.targets.to(score.features.device))

        train, validation, test = map(read, self.parts)
        return Probe(train, validation, test, self.classes)


def check_transfer(dataset: Dataset, other: Dataset) -> None:
    """Check that networks for `dataset` accept the inputs of `other`, and that `other` has one class per example.

    Raises:
        UsageError: the inputs differ, or `other` has several targets per example or fewer than two training examples.
    """
    ours, theirs = dataset.inputs, other.inputs
    if ours != theirs or dataset.train.inputs.dtype != other.train.inputs.dtype:
        what = f"expected inputs like those of {dataset.name}, {_said(dataset)}"
        raise UsageError(f"transfer: {what}, got {_said(other)} of {other.name}")
    if other.train.targets.ndim > 1:
        shape = tuple(other.train.targets.shape)
        raise UsageError(f"transfer: expected one target per example of {other.name}, got targets of shape {shape}")
    if len(other.train) < 2:
        raise UsageError(f"transfer: expected at least 2 training examples of {other.name}, got {len(other.train)}")


def _said(dataset: Dataset) -> str:
    return f"{str(dataset.train.inputs.dtype).removeprefix('torch.')} {tuple(dataset.inputs.shape)}"


def _examples(half: Split, index: torch.Tensor, device: torch.device) -> Examples:
    index = index.sort().values
    return Examples(half.inputs[index].to(device), half.targets[index].to(device))
