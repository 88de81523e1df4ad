"""Readings of a trained network as a whole: on test data, corrupted or not, on another dataset, and while it learnt."""

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
    """The trained network in eval mode, with the test inputs, as it takes them, and the targets of one task."""

    kinds = frozenset({"model"})

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, corrupted: Callable[[Corruption], Tensor] | None = None
    ) -> None:
        """corrupted: returns the inputs with a corruption, by its name; None where they are no images."""
        super().__init__()
        self.model, self.inputs, self.targets, self._corrupted = model, inputs, targets, corrupted

    @functools.cached_property
    def accuracy(self) -> float:
        """Of the network on these, once for all measures of what an intervention costs it."""
        from optbench.metrics import prediction

        return prediction.accuracy_of(self.model, self.inputs, self.targets)

    @functools.cached_property
    def corrupted(self) -> Corrupted | None:
        """Its accuracies on corrupted inputs, each taken once."""
        from optbench.metrics import prediction

        made = self._corrupted
        return None if made is None else prediction.Corrupted(self.model, made, self.targets)


class Transferred(Reading):
    """Features of another dataset by the trained network, with its labels."""

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
