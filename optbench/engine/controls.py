"""What wrappers whose base takes the steps do to a training: to its losses, and to its network between tasks."""

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
    """What the wrappers in the lane `its base's` do to members of a cohort; tasks count from 0."""

    blueprint: Blueprint
    suite_seed: int

    def penalty(self, trial: Trial, task: int) -> Penalty | None:
        """What is added to the loss by the features."""
        if (settings := trial.around.get("rank-penalty")) is None:
            return None
        suite, seed = self.suite_seed, trial.seed

        def draws(step: int) -> int:
            return stream_seed(suite, seed, f"rank-penalty/task {task}/step {step}") % SEEDS

        return Penalty(settings["strength"], settings["rotated"], draws, self.blueprint.features)

    def anchor(self, member: Member) -> Anchor | None:
        """What is added to the loss by the distance from the initial weights, of a fresh network from its own."""
        if (settings := member.trial.around.get("l2-init")) is None:
            return None
        return Anchor(settings["strength"], self.blueprint.layout.weights(member.start))

    def renew(self, member: Member, task: int) -> None:
        """Give a member the weights that it begins `task` with; those of the first task are its initial weights."""
        if task == 0 or not member.running:
            return
        if renews_state(member.trial):
            member.row = member.start = self._fresh(member, task)
            member.raw = None  # an average begins anew, too
        elif (settings := member.trial.around.get("shrink-and-perturb")) is not None:
            layout = self.blueprint.layout
            noise = layout.weights(self._fresh(member, task)) * settings["perturb"]

            def moved(row: Tensor) -> Tensor:
                row = row.clone()
                layout.weights(row).mul_(settings["shrink"]).add_(noise)
                return row

            # An average of weights that are all moved so is moved so itself.
            member.row, member.raw = moved(member.row), None if member.raw is None else moved(member.raw)

    def _fresh(self, member: Member, task: int) -> Tensor:
        """Initial weights and buffers (P + Q,) of a new network: the same for every optimizer of a trial seed."""
        tensors = self.blueprint.start(self.suite_seed, member.trial.seed, task)
        return self.blueprint.layout.pack(tensors).to(member.row.device)


def renews_state(trial: Trial) -> bool:
    """True if each task begins with a new optimizer, whatever the protocol says."""
    return "fresh-network" in trial.around
