"""The small problem for checking optimizers: by default, downsampled MNIST and a small MLP, for a few dozen steps.

Shapes: N examples, B examples in a batch, S pixels per side.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from optbench.data import Dataset, Split, load
from optbench.engine import TrialResult, Workspace, train
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.interim import Interim, Keep
from optbench.engine.user_code import UserCode
from optbench.errors import OptimizerError
from optbench.models import cross_entropy, materialised
from optbench.optimizers.explain import in_words
from optbench.optimizers.load import check_arguments
from optbench.optimizers.make import maker, resolve_made, resolve_spec
from optbench.optimizers.registry import check_settings, complete, find
from optbench.optimizers.spec import OptimizerSpec
from optbench.plan import Cohort, Trial
from optbench.streams import generator
from optbench.suite.protocol import Protocol
from optbench.suite.schema import ExperimentSettings, ModelSettings, TaskSettings
from optbench.tasks.examples import Examples, Part, Parts

EXPERIMENT, MODEL = "check", "mlp"
SUITE_SEED = 0
TASKS = 2
"""Number of tasks: two, with the same examples, so that the lane is rebuilt between them, as in any run."""


@dataclass(frozen=True)
class Size:
    """The sizes of the images, the hidden layer, the data and the batches, and the number of steps."""

    side: int = 7
    """S, a divisor of 28. The default gives 49 pixels, few enough for methods whose cost is a power of the width."""
    hidden: int = 32
    examples: int = 512
    batch_size: int = 32
    steps: int = 24
    """Steps in each of the two tasks."""


SMALL = Size()


class Same:
    """A task sequence for data of any form, with the same examples in every task."""

    names = tuple(f"again {i}" for i in range(TASKS))

    def __init__(self, data: Parts, seed: int) -> None:
        self._parts = data

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        return self._parts[part]


@dataclass(frozen=True, eq=False)
class Problem:
    """An optimizer and the small problem, set up for training as in `optbench run`."""

    target: str
    given: Mapping[str, Any]
    """The hyper-parameters as given, without defaults."""
    hyperparameters: Mapping[str, Any]
    """The given hyper-parameters, completed with the registry's defaults."""
    spec: OptimizerSpec
    size: Size
    workspace: Workspace
    blueprint: Blueprint
    inputs: Tensor
    """(N, ...), the training examples as network inputs; by default (N, 1, S, S) float32."""
    labels: Tensor
    """(N,), or (N, T) for next-token prediction."""

    @staticmethod
    def of(
        target: str,
        hyperparameters: Mapping[str, Any],
        size: Size = SMALL,
        model: ModelSettings | None = None,
        dataset: Dataset | None = None,
    ) -> Problem:
        """Create the problem for an optimizer; load and construct the optimizer once, without training.

        model: the model to train, by default an MLP with one hidden layer.
        dataset: the data to train on, by default downsampled MNIST.

        Raises:
            OptimizerError: the optimizer cannot be loaded, or rejects its hyper-parameters.
            UsageError: the model violates its contract.
        """
        check_settings(target, hyperparameters)
        completed = complete(target, hyperparameters)
        check_arguments(target, completed)
        spec = resolve_spec(find(target), completed)
        experiment = ExperimentSettings(
            tasks=TaskSettings.of(f"{__name__}:Same") if dataset else TaskSettings.of("rotated", angles=[0.0] * TASKS),
            models={MODEL: model or ModelSettings.of("mlp", hidden=[size.hidden])},
            protocol=Protocol(
                batch_size=size.batch_size,
                max_epochs=size.steps * size.batch_size / size.examples,
                max_steps=size.steps,
                evaluate_every=size.steps * size.batch_size / size.examples / 4,
                early_stopping=None,
                validation_examples=size.batch_size,
                test_examples=size.batch_size,
            ),
            metrics=[],
            checkpoints=False,
        )
        workspace = Workspace.of(experiment, dataset or shrunken_mnist(size), SUITE_SEED, torch.device("cpu"))
        examples: Examples = workspace.family.sequence(0).train(0)
        normalise = Normaliser.of(workspace.dataset, experiment.protocol, workspace.device)
        problem = Problem(
            target,
            hyperparameters,
            completed,
            spec,
            size,
            workspace,
            Blueprint.of(experiment, MODEL, workspace.dataset),
            normalise(examples.inputs),
            examples.targets,
        )
        try:
            optimizer = problem.make(problem.network(problem.start(0)))
        except OptimizerError:
            raise
        except Exception as error:  # a user's constructor may raise anything
            works = "" if completed.get("only_matrices") is True else problem._if_only_matrices()
            raise OptimizerError(
                f"{target} rejects its hyper-parameters: {in_words(error, target, completed)}{works}"
            ) from error
        return dataclasses.replace(problem, spec=resolve_made(spec, optimizer, completed))

    def with_settings(self, more: Mapping[str, Any]) -> Problem:
        """Return a problem with the default model and data, and with these optimizer settings added or replaced.

        Raises:
            OptimizerError: the optimizer rejects these settings.
        """
        return Problem.of(self.target, {**self.given, **more}, self.size)

    def _if_only_matrices(self) -> str:
        """Return a hint if the optimizer can be constructed when restricted to matrices, else an empty string."""
        try:
            self.with_settings({"only_matrices": True})
        except OptimizerError:
            return ""
        return "; it works with --set only_matrices=true"

    def in_words(self, error: Exception) -> str:
        """Describe an exception raised by the optimizer: its type, and its message or the line that raised it."""
        return in_words(error, self.target, self.hyperparameters)

    def trial(self, seed: int, changed: Mapping[str, Any] | None = None) -> Trial:
        """Return a trial of this optimizer. changed: hyper-parameters that differ from the problem's."""
        variant = ",".join(f"{name}={value}" for name, value in (changed or {}).items()) or "default"
        return Trial(
            id=f"{EXPERIMENT}/{MODEL}/optimizer/{variant}/seed={seed}",
            experiment=EXPERIMENT,
            model=MODEL,
            optimizer="optimizer",
            variant=variant,
            seed=seed,
            stage="eval",
            target=self.target,
            hyperparameters={**self.hyperparameters, **(changed or {})},
        )

    def train(
        self,
        trials: Sequence[Trial],
        keep: Keep | None = None,
        begun: Mapping[str, Interim] = MappingProxyType({}),
    ) -> list[TrialResult]:
        """Train these trials in one cohort; return their results in order. keep, begun: see `optbench.engine.train`."""
        cohort = Cohort(EXPERIMENT, MODEL, "optimizer", tuple(trials))
        return train(cohort, self.workspace, lambda progress: None, keep, begun)

    def make(
        self,
        network: nn.Module,
        noise: torch.Generator | None = None,
        changed: Mapping[str, Any] | None = None,
    ) -> torch.optim.Optimizer:
        """Construct the optimizer for the parameters of `network`; exceptions raised by its constructor propagate."""
        given = {
            "generator": noise or self.noise(0),
            "model": network,
            "total_steps": TASKS * self.size.steps,
            "examples": self.size.examples,
        }
        settings = {**self.hyperparameters, **(changed or {})}
        with UserCode(self.spec, settings, torch.device("cpu")).aside(0):
            return maker(self.spec, settings, given)(list(network.parameters()))

    def noise(self, seed: int) -> torch.Generator:
        """Return the random generator for `seed`, for optimizers that need one."""
        return generator(SUITE_SEED, seed, "optimizer")

    def start(self, seed: int) -> dict[str, Tensor]:
        """Return the initial weights for `seed`, as in the engine."""
        return self.blueprint.start(SUITE_SEED, seed)

    def network(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a new network with a copy of these weights."""
        network = materialised(self.blueprint.network, torch.device("cpu"))
        network.load_state_dict(dict(weights), strict=False)  # some buffers and aliases are absent
        return network

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs (B, ...) and labels (B, ...) of batch `step`, cycling through the examples in order."""
        size = self.size.batch_size
        start = step % (len(self.labels) // size) * size
        return self.inputs[start : start + size], self.labels[start : start + size]

    @torch.no_grad()
    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Return the network's mean cross-entropy over all training examples in eval mode."""
        logits = self.network(weights).eval()(self.inputs.clone())
        return cross_entropy(logits.double(), self.labels).item()


@functools.lru_cache(maxsize=2)
def shrunken_mnist(size: Size) -> Dataset:
    """Return the first training examples of MNIST and a batch of test examples, downsampled to S pixels per side."""
    mnist = load("mnist")
    factor = mnist.inputs.shape[1] // size.side
    assert factor * size.side == mnist.inputs.shape[1]

    def shrink(split: Split, count: int) -> Split:
        images = nn.functional.avg_pool2d(split.inputs[:count].float(), factor).round().to(torch.uint8)
        return Split(images, split.targets[:count])

    # includes one more batch, which the protocol holds out for validation
    small = shrink(mnist.train, size.examples + size.batch_size)
    pixels = small.inputs.double() / 255
    return Dataset(
        name="mnist",
        train=small,
        test=shrink(mnist.test, size.batch_size),
        classes=mnist.classes,
        mean=(round(pixels.mean().item(), 4),),
        std=(round(pixels.std().item(), 4),),
    )
