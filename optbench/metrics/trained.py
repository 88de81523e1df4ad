"""Readings of a trained network: on test data, on corrupted test data, on another dataset, and during training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from optbench.metrics.measuring import Reading

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optbench.data.corruption import Corruption
    from optbench.metrics.prediction import Corrupted
    from optbench.metrics.reaching import Curve
    from optbench.metrics.transfer import Probe


class Model(Reading):
    """The trained network in eval mode, with the test inputs and targets of one task."""

    kinds = frozenset({"model"})

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, corrupted: Callable[[Corruption], Tensor] | None = None
    ) -> None:
        """corrupted: a function that returns the inputs with a given corruption; None if the inputs are not images."""
        super().__init__()
        self.model, self.inputs, self.targets, self._corrupted = model, inputs, targets, corrupted

    @functools.cached_property
    def accuracy(self) -> float:
        """The accuracy of the unmodified network, computed once for all metrics that use it as a reference."""
        from optbench.metrics import prediction

        return prediction.accuracy_of(self.model, self.inputs, self.targets)

    @functools.cached_property
    def corrupted(self) -> Corrupted | None:
        """The network's accuracies on corrupted inputs, each computed once; None if the inputs are not images."""
        from optbench.metrics import prediction

        made = self._corrupted
        return None if made is None else prediction.Corrupted(self.model, made, self.targets)


class Transferred(Reading):
    """Features of another dataset computed by the trained network, with labels."""

    kinds = frozenset({"transfer"})

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe


class Learning(Reading):
    """The evaluations during the last task."""

    kinds = frozenset({"curve"})

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve = curve
