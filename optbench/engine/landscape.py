"""The loss landscape around a trained network, measured for one member at a time, in float64 and eval mode.

Legend: P number of parameters, without padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.attention import unfused
from optbench.engine.evaluate import Evaluator
from optbench.engine.faults import of_the_machine
from optbench.engine.randomness import seeded
from optbench.engine.stack import Layout
from optbench.errors import spoken
from optbench.metrics import Measurement, Metric
from optbench.metrics.landscape import Loss
from optbench.metrics.measuring import Ask, Reading, measurement
from optbench.models import cross_entropy
from optbench.precision import exact, exact_device
from optbench.tasks import Examples

EXAMPLES = 1000
"""Number of training examples on which the loss is computed. In every trial, these are a task's first examples.

With these examples, a Hessian-vector product takes 15 ms for mlp-100 on one core. The trace and an eigenvalue take
about fifty products, or one second. With all 55,000 examples of MNIST, they would take longer than training.
"""


def training_loss(evaluator: Evaluator, examples: Examples, row: Tensor) -> Loss:
    """Return the mean cross-entropy on the first `EXAMPLES` of `examples`, as a float64 function of weights (P,).

    Fewer examples are used if they are long sequences (see `Examples.few`). The weights are concatenated in the order
    of the layout, as in `flat`. Buffers are taken from `row`, and the network is in eval mode. Running statistics are
    therefore constant while weights change: batch norm is a fixed affine map of each channel, and examples are
    independent.

    row: the weights and buffers of a member, with padding.
    """
    network, layout = evaluator.network, evaluator.blueprint.layout
    # Stored inputs are normalised in float32 first, to get exactly the inputs used in training.
    few = slice(examples.few(EXAMPLES))
    inputs = exact_inputs(evaluator.normalise(examples.inputs[few]))
    targets = examples.targets[few].to(inputs.device)
    buffers = {name: exact_inputs(view) for name, view in layout.buffer_views(row).items()}

    def loss(weights: Tensor) -> Tensor:
        parameters = layout.parts(weights)
        if evaluator.blueprint.ours:
            with unfused():
                return cross_entropy(functional_call(network, {**parameters, **buffers}, (inputs,)), targets)
        return cross_entropy(in_float64(network, {**parameters, **buffers}, inputs), targets)

    return loss


def in_float64(network: nn.Module, given: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the logits of a user's model in eval mode with parameters and buffers `given`, which are not modified."""
    # copied and seeded as in `Evaluator`
    given = {name: tensor if tensor.requires_grad else tensor.clone() for name, tensor in given.items()}
    with unfused(), seeded(0, inputs.device):
        logits: Tensor = functional_call(network, given, (inputs.clone(),))
        return logits


def exact_inputs(values: Tensor) -> Tensor:
    """Move values to `exact_device`, converting floats to float64; tokens, counts and masks keep their dtype."""
    return exact(values) if values.is_floating_point() else values.detach().to(exact_device(values.device))


def flat(layout: Layout, row: Tensor) -> Tensor:
    """Return the weights (P,) of a member's row in float64, concatenated without padding."""
    return exact(torch.cat([view.detach().flatten() for view in layout.views(row).values()]))


class Landscape(Reading):
    """A network's final and initial weights (P,), as returned by `flat`, and its training loss."""

    kinds = frozenset({"landscape"})

    def __init__(
        self,
        weights: Tensor,
        start: Tensor,
        make_loss: Callable[[], Loss],
        draws: Callable[[], torch.Generator],
        *,
        ours: bool = True,
    ) -> None:
        """make_loss: builds the loss; called only if a metric uses the loss.
        draws: returns a new generator, seeded for the trial, so that a metric's values do not depend on other metrics.
        ours: True if the network is built in.
        """
        super().__init__()
        self.weights, self.start = weights, start
        self._make_loss, self._draws, self._ours = make_loss, draws, ours

    def measure(self, metric: Metric, ask: Ask | None) -> list[Measurement]:
        """Measure a metric; return NaN with a note if a user's model raises an exception."""
        try:
            return super().measure(metric, ask)
        except Exception as error:
            if self._ours or of_the_machine(error):
                raise
            said = " ".join(f"the model raised {type(error).__name__}: {spoken(error)}".split())
            return [measurement(metric, None, math.nan, said)]

    @functools.cached_property
    def loss(self) -> Loss:
        return self._make_loss()

    @property
    def generator(self) -> torch.Generator:
        """A new generator at every access, always with the same seed for a trial."""
        return self._draws()
