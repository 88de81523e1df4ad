"""Which way gradients of a model are taken, and what was found out by trying."""

from __future__ import annotations

from functools import cached_property

from optbench.engine.batches import BatchBuffer, Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.gradients.bound import Bound, Gradients, GradientsFactory
from optbench.engine.gradients.chosen import Choice, ChosenGradients
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.mlp import MlpGradients
from optbench.engine.gradients.mlp_together import MlpTogether
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.tried import together_alike, together_refused
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.recording import Recordings
from optbench.suite.protocol import Precision
from optbench.tasks import Examples


class Ways:
    """The ways to gradients of one model, for all cohorts that train it on the same data and device.

    Whether `torch.func` can take them, and to the bits of each member alone, is tried once: when it is first needed.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        examples: Examples,
        normalise: Normaliser,
        suite_seed: int,
        *,
        together: bool,
        precision: Precision = "float32",
    ) -> None:
        """examples: for training. together: one call for all members where that can be, as an accelerator needs it.

        precision: of forward passes; those written out are of float32 alone.
        """
        self._blueprint = blueprint
        self._tried = blueprint, examples, normalise, suite_seed, precision
        self._wanted = together
        self._written_out = MlpGradients.supports(blueprint.network) and precision == "float32"

    @cached_property
    def alone(self) -> str | None:
        """Why members cannot be trained together, where that is wanted and as far as is known; None if they can."""
        # Of our own networks it is known, in float32.
        known = self._blueprint.ours and self._tried[-1] == "float32"
        if self._blueprint.alone is None and self._wanted and not known:
            return together_refused(*self._tried)
        return self._blueprint.alone

    @property
    def together(self) -> bool:
        """Whether one call serves all members, whatever it takes."""
        return self._wanted and self.alone is None

    @cached_property
    def _kept(self) -> int | None:
        """As `together_alike` has it; None if `torch.func` may not be taken for members that need not be together."""
        return None if self._written_out or self.alone is not None else together_alike(*self._tried)

    def distrust(self) -> None:
        """Take gradients member by member from now on: `torch.func` gave other bits after it had been chosen."""
        self._kept = None

    def factory(self, buffer: BatchBuffer, recordings: Recordings) -> GradientsFactory:
        """The fastest way, for the stacks of one cohort."""
        network, layout = self._blueprint.network, self._blueprint.layout
        if self.together:
            way = MlpTogether if self._written_out else Vmap

            def together(bound: Bound) -> Gradients:
                # A decomposition of a matrix waits for the device, which cannot be recorded.
                record = recordings if bound.penalties is None else Recordings(None)
                return TogetherGradients(way(network, layout, bound), bound, buffer.normalise, record)

            return together
        each = MlpGradients if self._written_out else LoopGradients
        choice = Choice()

        def gradients(bound: Bound) -> Gradients:
            members = len(bound.streams)
            kept = self._kept if members > 1 and bound.penalties is None else None
            if kept is not None and choice.open(members * bound.streams[0].batch_size * kept):
                return ChosenGradients(network, layout, buffer, bound, choice)
            return each(network, layout, buffer, bound)

        return gradients
