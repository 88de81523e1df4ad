"""Optimizer wrappers that leave all steps to their base optimizer, and change the loss or, between tasks, the network.

Legend: P padded parameter count, Q padded size of the buffers in floats.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optbench.engine.anchors import Anchor
from optbench.engine.blueprint import Blueprint
from optbench.engine.members import Member
from optbench.engine.penalties import Penalty
from optbench.engine.randomness import SEEDS
from optbench.plan import Trial
from optbench.streams import stream_seed


@dataclass(frozen=True)
class Controls:
    """Applies wrappers whose lane is `its base's` to the members of a cohort. Tasks are numbered from 0."""

    blueprint: Blueprint
    suite_seed: int

    def penalty(self, trial: Trial, task: int) -> Penalty | None:
        """Return the feature penalty of a trial in `task`; None if the trial has none."""
        if (settings := trial.around.get("rank-penalty")) is None:
            return None
        suite, seed = self.suite_seed, trial.seed

        def draws(step: int) -> int:
            return stream_seed(suite, seed, f"rank-penalty/task {task}/step {step}") % SEEDS

        return Penalty(settings["strength"], settings["rotated"], draws, self.blueprint.features)

    def anchor(self, member: Member) -> Anchor | None:
        """Return the penalty on a member's distance from its network's initial weights; None if the member has none."""
        if (settings := member.trial.around.get("l2-init")) is None:
            return None
        return Anchor(settings["strength"], self.blueprint.layout.weights(member.start))

    def renew(self, member: Member, task: int) -> None:
        """Replace or perturb a running member's weights before any task except the first, if a wrapper requires it."""
        if task == 0 or not member.running:
            return
        if renews_state(member.trial):
            member.row = member.start = self._fresh(member, task)
            member.raw = None  # an average restarts, too
        elif (settings := member.trial.around.get("shrink-and-perturb")) is not None:
            layout = self.blueprint.layout
            noise = layout.weights(self._fresh(member, task)) * settings["perturb"]

            def moved(row: Tensor) -> Tensor:
                row = row.clone()
                layout.weights(row).mul_(settings["shrink"]).add_(noise)
                return row

            # mapping an average is the same as averaging mapped weights
            member.row, member.raw = moved(member.row), None if member.raw is None else moved(member.raw)

    def _fresh(self, member: Member, task: int) -> Tensor:
        """Return the weights and buffers (P + Q,) of a new network, which depend only on the seeds and the task."""
        tensors = self.blueprint.start(self.suite_seed, member.trial.seed, task)
        return self.blueprint.layout.pack(tensors).to(member.row.device)


def renews_state(trial: Trial) -> bool:
    """Return whether each task begins with a new optimizer, regardless of the protocol."""
    return "fresh-network" in trial.around
