"""Sketches of weights, recorded in training for pairs of optimizers whose distance a suite requests (`twins`)."""

from __future__ import annotations

from itertools import chain

from torch import Tensor

from optbench.engine.landscape import flat
from optbench.engine.members import Member
from optbench.engine.stack import Layout
from optbench.metrics.sketch import CountSketch
from optbench.plan import Trial
from optbench.store.tables import SketchRow
from optbench.streams import generator
from optbench.suite.schema import ExperimentSettings


class Sketcher:
    """Records weight sketches of those members of a cohort whose optimizer has a twin.

    All networks in a suite with the same number of weights use one random sketch, so that any two can be compared.
    """

    def __init__(self, experiment: ExperimentSettings, layout: Layout, suite_seed: int) -> None:
        self._followed = frozenset(chain.from_iterable(experiment.twins or ()))
        self._layout = layout
        self._suite_seed = suite_seed
        self._sketch: CountSketch | None = None

    def follows(self, trial: Trial) -> bool:
        """Return whether a trial records sketches. Controls record none."""
        return trial.optimizer in self._followed and not trial.is_control

    def record(self, member: Member, row: Tensor, task: int, step: int) -> None:
        """Append the sketch of the member's weights after `step` steps of `task`, 1..T.

        Do nothing if none of the member's trials records sketches.

        row: the weights and buffers, with padding; the buffers are not used.
        """
        if not any(map(self.follows, member.trials)):
            return
        weights = flat(self._layout, row)
        if self._sketch is None:
            count = self._layout.parameters
            draws = generator(self._suite_seed, 0, f"sketch of {count} weights")
            self._sketch = CountSketch.draw(count, draws, weights.device)
        member.rows.append(SketchRow(task, step, tuple(self._sketch(weights).tolist())))
