"""The innermost loop of training, which updates the members of a stack together, step by step.

Legend: A members in the stack, P padded parameter count, Q padded size of the buffers in floats, K steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from optbench.engine.anchors import Anchor, Anchors
from optbench.engine.autocast import logits_in
from optbench.engine.averaging import Averages, Averaging
from optbench.engine.batches import BatchBuffer, BatchStream
from optbench.engine.clipping import Clip
from optbench.engine.execution import Execution
from optbench.engine.gradients import Bound, GradientsFactory
from optbench.engine.hits import Hits
from optbench.engine.lanes import Evaluate, LaneMember, MemberState, build_lane
from optbench.engine.lanes.verification import Verification
from optbench.engine.passes import Passes
from optbench.engine.penalties import Penalties, Penalty
from optbench.engine.randomness import kept
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.engine.stopwatch import Stopwatch
from optbench.engine.updates import Watch
from optbench.models import cross_entropy
from optbench.optimizers.spec import OptimizerSpec
from optbench.store.tables import UpdateRow
from optbench.suite.protocol import Precision


@dataclass(frozen=True)
class Machinery:
    """Components shared by all stacks of a cohort."""

    spec: OptimizerSpec
    network: nn.Module
    """A network of the members' architecture, without weights."""
    layout: Layout
    buffer: BatchBuffer
    gradients: GradientsFactory
    recordings: Recordings
    execution: Execution
    clip_norm: float | None = None
    precision: Precision = "float32"
    """Precision of forward passes in training. Like `clip_norm`, this is a setting of the protocol."""

    @property
    def keeps_who_stopped(self) -> bool:
        """True if stopped members stay in the stack for a time, because one call processes all members anyway."""
        return self.execution.together and self.spec.lane != "per-member"


@dataclass(frozen=True)
class Stretch:
    """The results of consecutive steps of a stack, on the host."""

    losses: list[list[float]]
    """K rows of A losses."""
    accuracies: list[list[float]]
    """K rows of A accuracies on batches, each measured before the update; empty unless requested."""
    finite: list[bool]
    """For each member, True if all its weights are finite at the end."""
    raised: dict[int, Exception]
    """Exceptions raised by members' optimizers or models in the last step, by member."""
    seconds: float
    """Seconds of training, excluding `watching_seconds`."""
    optimizer_seconds: float
    watching_seconds: float
    updates: Mapping[int, list[UpdateRow]]
    """Watched updates, by member."""


class LockStep:
    """The stacked weights of members and the components that update them together."""

    def __init__(
        self,
        machinery: Machinery,
        rows: Sequence[Tensor],
        members: Sequence[LaneMember],
        streams: Sequence[BatchStream],
        *,
        begin: bool,
        followers: Sequence[Verification | None] = (),
        passes: Sequence[Passes] = (),
        penalties: Sequence[Penalty | None] = (),
        anchors: Sequence[Anchor | None] = (),
        online: bool = False,
        averaging: Averaging | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Stack the members' weights and build their lane.

        Sequences have one element per member; those with a default can also be empty.

        rows: each member's weights and buffers (P + Q,); the buffers are not used.
        begin: True at the start of a task.
        online: True to record accuracies on batches.
        averaging: the averages to continue; None if the protocol does not average weights.
        watch: measures some of the updates; None to measure none.

        Raises:
            RefusedError: a shared optimizer rejects the settings of some members.
        """
        self._machinery = machinery
        self._streams = streams
        self._followers = {i: follower for i, follower in enumerate(followers) if follower is not None}
        self._passes = passes
        self._penalties = Penalties.of(penalties)
        self._anchors = Anchors.of(anchors, machinery.layout)
        self._weights = torch.stack([machinery.layout.weights(row) for row in rows])
        self._averages = None if averaging is None else Averages(averaging, self._weights)
        self._grads = grads = torch.zeros_like(self._weights)
        self._hits = Hits(streams) if online else None
        bound = Bound(self._weights, grads, streams, passes, self._penalties, machinery.precision, self._hits)
        self._gradients = machinery.gradients(bound)
        self._lane = build_lane(
            machinery.spec,
            members,
            machinery.network,
            self._weights,
            grads,
            machinery.layout,
            machinery.recordings,
            begin=begin,
            clip_norm=machinery.clip_norm,
        )
        self._clip: Clip | None = None
        if machinery.clip_norm is not None and machinery.spec.lane != "per-member":
            self._clip = Clip(machinery.clip_norm, grads, machinery.recordings)
        if begin:
            self._lane.begin_task()
        self.raised_early: Mapping[int, Exception] = self._lane.raised_early
        self._stopwatch = Stopwatch(self._weights.device)
        self._watch = watch

    def run(self, step: int, until: int, of: Collection[int]) -> Stretch:
        """Take the steps `step` to `until - 1`, as in `take`, and return their results."""
        started = time.perf_counter()
        losses, raised, accuracies = self.take(step, until, of)
        # the only synchronisation with the device in these steps
        found = torch.cat([losses, accuracies, torch.isfinite(self._weights).all(1).to(losses)[None]]).tolist()
        watching, updates = self._watch.read() if self._watch is not None else (0.0, {})
        seconds = time.perf_counter() - started - watching
        rows, online, finite = found[: len(losses)], found[len(losses) : -1], [bool(each) for each in found[-1]]
        return Stretch(rows, online, finite, raised, seconds, self._stopwatch.read(), watching, updates)

    def take(self, step: int, until: int, of: Collection[int]) -> tuple[Tensor, dict[int, Exception], Tensor]:
        """Enqueue the steps `step` to `until - 1` without synchronisation.

        Return the losses (K, A), the exceptions by member, and the accuracies on each batch before the update: (K, A)
        if requested, otherwise (0, A). Stop after the first step in which a member in `of` raises an exception, and
        ignore the exceptions of other members.
        """
        draws = bool(self._passes) or "random" in self._machinery.spec.needs
        with kept(self._weights.device) if draws else contextlib.nullcontext():
            return self._take(step, until, of)

    def _take(self, step: int, until: int, of: Collection[int]) -> tuple[Tensor, dict[int, Exception], Tensor]:
        losses = torch.empty(until - step, len(self._weights), device=self._weights.device)
        accuracies = torch.empty_like(losses) if self._hits is not None else losses[:0]
        for k in range(until - step):
            for own in self._passes:
                own.begin(step + k)
            if self._penalties is not None:
                self._penalties.begin(step + k)
            broken = self._gradients(step + k, losses[k]) or {}
            if self._hits is not None:
                accuracies[k].copy_(self._hits.shares())
            if self._anchors is not None:
                self._anchors.join(self._grads, self._weights)
            if self._clip is not None:
                self._clip()
            following = {i: follower for i, follower in self._followers.items() if i in of and not follower.over}
            for i, follower in following.items():
                follower.take(self._grads[i])
            if self._watch is not None:
                self._watch.begin(step + k, self._weights, self._grads)
            self._stopwatch.start()
            failures = {**self._lane.step(partial(self._loss, step + k), step + k), **broken}
            self._stopwatch.stop()
            if self._averages is not None:
                self._averages.update()
            if self._watch is not None:
                self._watch.end(step + k, self._weights)
            for i, follower in following.items():
                if i in failures:
                    follower.end()
                else:
                    follower.follow(self._own_loss(step + k, i), self._weights[i])
            raised = {i: error for i, error in failures.items() if i in of}
            if raised:
                return losses[: k + 1], raised, accuracies[: k + 1]
        return losses, {}, accuracies

    def is_averaged(self, i: int) -> bool:
        """Return whether the average of member `i` has begun."""
        return self._averages is not None and self._averages.begun(i)

    def measured(self, i: int) -> Tensor:
        """Return the weights and buffers (P + Q,) at which to measure member `i`, valid until the next step.

        Exceptions that a user's optimizer raises when its mode is switched propagate.
        """
        found = self._lane.measured(i, self._weights[i]) if self._averages is None else self._averages.of(i)
        return self._passes[i].whole(found) if self._passes else found

    def row(self, i: int) -> Tensor:
        """Return a copy of the training weights and buffers (P + Q,) of member `i`."""
        return self._passes[i].whole(self._weights[i]) if self._passes else self._weights[i].clone()

    @property
    def way(self) -> str:
        """How gradients are computed, as in `Gradients.way`."""
        return self._gradients.way

    def state(self, i: int) -> MemberState:
        """Return the optimizer state of member `i`."""
        return self._lane.export(i)

    def state_bytes(self, i: int) -> int:
        return self._lane.state_bytes(i)

    def rate(self, i: int) -> float | None:
        """Return the learning rate of member `i`, as in `Lane.rate`."""
        return self._lane.rate(i)

    def fallbacks(self, i: int) -> int:
        """Return how many matrix factorisations of member `i` failed, as in `Lane.fallbacks`."""
        return self._lane.fallbacks(i)

    def _own_loss(self, step: int, i: int) -> Evaluate:
        """Return a variant of `_loss` for a lane that contains only member `i`; the member's buffers do not change."""
        aside = self._passes[i].aside() if self._passes else None

        def loss(alone: int, network: nn.Module, given: bool) -> Tensor:
            assert alone == 0
            return self._of_batch(step, i, network, given, aside)

        return loss

    def _loss(self, step: int, i: int, network: nn.Module, given: bool) -> Tensor:
        """Return the loss of `network` on member `i`'s batch in `step`: mean cross-entropy plus penalties."""
        return self._of_batch(step, i, network, given, self._passes[i] if self._passes else None)

    def _of_batch(self, step: int, i: int, network: nn.Module, given: bool, passes: Passes | None) -> Tensor:
        inputs, targets = self._machinery.buffer.take(self._streams[i], step)
        watched = self._penalties.added(i, network, targets.ndim) if self._penalties else contextlib.nullcontext(())
        with watched as added:
            logits = logits_in(
                self._machinery.precision,
                inputs.device,
                lambda: passes.again(network, inputs, given) if passes is not None else network(inputs),
            )
        loss = sum(added, cross_entropy(logits, targets))
        return loss + self._anchors.term(i, network) if self._anchors is not None else loss
