"""Data shared by all cohorts of one experiment."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from optbench.data import Dataset
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.execution import Execution
from optbench.engine.gradients import Ways
from optbench.engine.transfer import Transfer
from optbench.suite.schema import ExperimentSettings
from optbench.tasks import TaskFamily


@dataclass(frozen=True)
class Workspace:
    """Data shared by all cohorts of one experiment, built once per process and experiment."""

    experiment: ExperimentSettings
    dataset: Dataset
    family: TaskFamily
    suite_seed: int
    device: torch.device
    execution: Execution
    transfer: Transfer | None = None
    _ways: dict[str, Ways] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The ways to compute gradients, by model name."""

    @staticmethod
    def of(
        experiment: ExperimentSettings,
        dataset: Dataset,
        suite_seed: int,
        device: torch.device,
        other: Dataset | None = None,
    ) -> Workspace:
        """Build the workspace. other: the dataset of `experiment.transfer`."""
        family = TaskFamily(experiment.tasks, dataset, experiment.protocol, suite_seed, device)
        transfer = None if other is None else Transfer.of(other, suite_seed, device)
        return Workspace(experiment, dataset, family, suite_seed, device, Execution.on(device), transfer)

    def blueprint(self, experiment: str, model: str) -> Blueprint:
        """Return the blueprint of the model `model`. experiment: the experiment's name, for messages."""
        return Blueprint.of(self.experiment, model, self.dataset, f"experiments.{experiment}.models.{model}")

    def ways(self, model: str, blueprint: Blueprint) -> Ways:
        """Return the ways to compute gradients of a model; they are determined once per model."""
        if model not in self._ways:
            protocol = self.experiment.protocol
            normalise = Normaliser.of(self.dataset, protocol, self.device)
            examples, together = self.family.parts.train, self.execution.together
            self._ways[model] = Ways(
                blueprint, examples, normalise, self.suite_seed, together=together, precision=protocol.precision
            )
        return self._ways[model]
