"""The choice of how to compute a model's gradients, based on tests."""

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
    """The ways to compute gradients of one model, for all cohorts that train it on the same data and device.

    Tests on first use determine whether `torch.func` works, and whether it changes the bits of results.
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
        """examples: training examples for the tests.
        together: True to use one call for all members if possible, as on accelerators.
        precision: the precision of forward passes; explicit backpropagation is used only for float32.
        """
        self._blueprint = blueprint
        self._tried = blueprint, examples, normalise, suite_seed, precision
        self._wanted = together
        self._written_out = MlpGradients.supports(blueprint.network) and precision == "float32"

    @cached_property
    def alone(self) -> str | None:
        """The reason why members cannot be trained together; None if none is known. Tested on first use."""
        # Built-in networks are known to work in float32.
        known = self._blueprint.ours and self._tried[-1] == "float32"
        if self._blueprint.alone is None and self._wanted and not known:
            return together_refused(*self._tried)
        return self._blueprint.alone

    @property
    def together(self) -> bool:
        """True if one call processes all members."""
        return self._wanted and self.alone is None

    @cached_property
    def _kept(self) -> int | None:
        """The result of `together_alike`, or None if `torch.func` must not be used on a CPU."""
        return None if self._written_out or self.alone is not None else together_alike(*self._tried)

    def distrust(self) -> None:
        """Compute gradients member by member from now on, after `torch.func` gave different bits."""
        self._kept = None

    def factory(self, buffer: BatchBuffer, recordings: Recordings) -> GradientsFactory:
        """Return a factory that selects the fastest way to compute gradients for the stacks of one cohort."""
        network, layout = self._blueprint.network, self._blueprint.layout
        if self.together:
            way = MlpTogether if self._written_out else Vmap

            def together(bound: Bound) -> Gradients:
                # A penalty's matrix decomposition synchronises with the device, which cannot be recorded.
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
