"""The training loss and the test accuracy along the straight line between two solutions.

Batch norm's running statistics are re-estimated at every point, including the ends, from the point's weights and
training examples of all tasks (see `statistics`). With statistics taken from the ends, or averaged over them, points
between the ends would be worse merely because of the statistics (Frankle et al. 2020; Jordan et al. 2022).

Legend: P number of parameters, without padding; N number of training examples of all tasks; W width of the first layer;
K points on a line. A row holds parameters and buffers with padding, as in `stack`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.evaluate import Evaluator
from optbench.engine.landscape import exact_inputs, in_float64
from optbench.engine.statistics import reestimated
from optbench.metrics.landscape import BARRIER_POINTS, interpolate
from optbench.models import cross_entropy
from optbench.models.mlp import Mlp
from optbench.tasks import Examples

POINTS = BARRIER_POINTS
"""K, the number of points on a line, including both ends."""
_FIRST = "layers.0."


@dataclass(frozen=True)
class End:
    """One end of one or more lines, with all values that do not depend on the lines' other ends.

    Attributes:
        weights: (P,) in float64.
        row: the row of the solution, which provides the buffers.
        loss: the mean cross-entropy; NaN if not requested.
        accuracy: the test accuracy; NaN if not requested.
        opened: (N, W), the outputs of an MLP's first layer before normalisation and activation; None for other
            networks, or if the loss is not requested.
    """

    weights: Tensor
    row: Tensor
    loss: float
    accuracy: float
    opened: Tensor | None

    @property
    def bytes(self) -> int:
        """Total bytes of `weights` and `opened`."""
        return sum(t.numel() * t.element_size() for t in (self.weights, self.opened) if t is not None)


class Lines:
    """Evaluates the lines between the solutions of one seed.

    An MLP's first layer takes nine tenths of an evaluation's time, and its outputs are linear in its weights. For the
    loss, the layer is therefore applied only at the ends, and its outputs are interpolated between them. A point then
    takes 0.6 ms instead of 8 ms (1,000 examples, mlp-100, one core), with the same result up to float64 rounding. For
    the accuracy, the layer is applied at every point, because float32 rounding could change predictions near the
    decision boundary.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        train: Sequence[Examples],
        test: Examples | None,
        exact: torch.device,
        statistics: Examples | None = None,
    ) -> None:
        """train: examples for the loss, in parts; empty if the loss is not requested.
        test: examples for the accuracy; None if the accuracy is not requested.
        exact: a device with float64.
        statistics: training examples on which running statistics are re-estimated; None for networks without them.
        """
        self._evaluator = evaluator
        self._layout = evaluator.blueprint.layout
        self._train, self._test = train, test
        self._exact = exact
        self._statistics = statistics
        self._alphas = torch.linspace(0.0, 1.0, POINTS, dtype=torch.float64)
        self._network: nn.Module = evaluator.network
        self._opens = isinstance(evaluator.network, Mlp) and len(evaluator.network.layers) > 0
        if self._opens:
            rest = copy.deepcopy(evaluator.network)
            assert isinstance(rest, Mlp)
            rest.layers[0] = nn.Identity()
            self._network = rest

    @torch.no_grad()
    def end(self, weights: Tensor, row: Tensor) -> End:
        """Evaluate one end of a line. weights: (P,) in float64. row: the same weights with buffers."""
        row = self._estimated(row)
        parameters = self._layout.parts(weights) | self._layout.buffer_views(row)
        opened = None
        if self._train and self._opens:
            layer = parameters[f"{_FIRST}weight"], parameters[f"{_FIRST}bias"]
            opened = torch.cat([nn.functional.linear(self._inputs(part).flatten(1), *layer) for part in self._train])
        (loss,) = self._losses([parameters], [0.0], opened, opened)
        (accuracy,) = self._accuracies([parameters])
        return End(weights, row, loss, accuracy, opened)

    @torch.no_grad()
    def between(self, a: End, b: End) -> tuple[Tensor | None, Tensor | None]:
        """Return losses and accuracies on the line from `a` to `b`, each (K,) in float64; None if not requested."""
        # The values at the ends are known, so only the points between them are evaluated.
        inner = self._alphas[1:-1]
        points = [
            self._point(self._layout.parts(point) | self._buffers(a.row, b.row, alpha))
            for point, alpha in zip(interpolate(a.weights, b.weights, inner), inner.tolist(), strict=True)
        ]
        losses = accuracies = None
        if self._train:
            found = self._losses(points, inner.tolist(), a.opened, b.opened)
            losses = torch.tensor([a.loss, *found, b.loss], dtype=torch.float64)
        if self._test is not None:
            accuracies = torch.tensor([a.accuracy, *self._accuracies(points), b.accuracy], dtype=torch.float64)
        return losses, accuracies

    def _losses(
        self, points: Sequence[dict[str, Tensor]], alphas: Sequence[float], a: Tensor | None, b: Tensor | None
    ) -> list[float]:
        """Return the mean cross-entropy over the training examples of all tasks at each point, in float64.

        a, b: the outputs (N, W) of the first layer at the ends, interpolated at `alphas`; None to apply the layer at
        every point.
        """
        if a is not None:
            points = [{name: w for name, w in point.items() if not name.startswith(_FIRST)} for point in points]
        totals, count = [0.0] * len(points), 0
        # part by part, so that only one part is held as floats
        for part in self._train:
            targets = part.targets.to(self._exact)
            rows = slice(count, count + len(part))  # used only for an MLP, which has one target per example
            inputs = self._inputs(part) if a is None else a[rows]
            for k, point in enumerate(points):
                given = inputs if b is None else torch.lerp(inputs, b[rows], alphas[k])
                floats = {name: exact_inputs(tensor) for name, tensor in point.items()}
                if self._evaluator.blueprint.ours:
                    logits = functional_call(self._network, floats, (given,))
                else:
                    logits = in_float64(self._network, floats, given)
                totals[k] += cross_entropy(logits, targets, reduction="sum").item()
            count += targets.numel()
        return [total / count if count else math.nan for total in totals]

    def _accuracies(self, points: Sequence[dict[str, Tensor]]) -> list[float]:
        """Return the test accuracy at each point, computed in float32 like all accuracies."""
        if self._test is None:
            return [math.nan] * len(points)
        rows = [self._row(point) for point in points]
        return [score.accuracy for score in self._evaluator.score(rows, [self._test] * len(rows))]

    def _inputs(self, part: Examples) -> Tensor:
        return exact_inputs(self._evaluator.normalise(part.inputs))

    def _row(self, point: dict[str, Tensor]) -> Tensor:
        """Convert parameters and buffers to a row on the device of the evaluator."""
        return self._layout.pack(point).to(self._evaluator.normalise.scale.device)

    def _point(self, point: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters and buffers of `point`, with re-estimated running statistics if there are any."""
        if self._statistics is None:
            return point
        return point | self._layout.buffer_views(self._estimated(self._row(point)))

    def _estimated(self, row: Tensor) -> Tensor:
        return row if self._statistics is None else reestimated(self._evaluator, row, self._statistics)

    def _buffers(self, a: Tensor, b: Tensor, alpha: float) -> dict[str, Tensor]:
        """Return buffers at the fraction `alpha` from `a` to `b`; interpolate floats and take other dtypes from `a`."""
        there = self._layout.buffer_views(b)
        found = self._layout.buffer_views(a)
        return {n: torch.lerp(x, there[n], alpha) if x.is_floating_point() else x for n, x in found.items()}
