"""The training of a cohort on one task: the members' steps, evaluations and early stopping.

Legend: P padded parameter count, Q padded size of the buffers in floats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optbench.engine.averaging import Averaging
from optbench.engine.batches import BatchStream
from optbench.engine.evaluate import Score, finite
from optbench.engine.faults import ModelError, of_the_machine
from optbench.engine.lanes import RefusedError
from optbench.engine.lockstep import LockStep, Stretch
from optbench.engine.members import Member, Schedule, Stopper
from optbench.engine.statistics import reestimated, running
from optbench.engine.updates import Watch, watched
from optbench.errors import UsageError
from optbench.optimizers.explain import explained
from optbench.plan.progress import Progress
from optbench.store.tables import CurveRow, EarlierRow
from optbench.streams import generator
from optbench.tasks import Examples, TaskSequence

if TYPE_CHECKING:
    from optbench.engine.train import CohortTraining


SUBSET = 5000
"""Maximum number of training examples on which the training loss is evaluated, equal to the default number of
validation examples."""


def training_subset(examples: Examples, suite_seed: int) -> Examples:
    """Draw at most `SUBSET` training examples of a task, at the same indices in every trial; keep their order."""
    return examples.drawn(SUBSET, generator(suite_seed, None, "training loss"))


class TaskTraining:
    """Trains a cohort on one task, from the first step until all members have stopped."""

    def __init__(self, cohort: CohortTraining, task: int) -> None:
        self.cohort = cohort
        self.task = task
        protocol = cohort.protocol
        self.active = [member for member in cohort.members if member.running]
        self.streams: dict[str, BatchStream] = {}
        self.schedules: dict[str, Schedule] = {}
        self.stoppers: dict[str, Stopper] = {}
        self.scored: dict[str, Examples] = {}
        self.losses: dict[str, list[float]] = {}
        self.scores: dict[str, Score] = {}  # the score of the weights that would be kept if the task ended now
        arrays: dict[object, tuple[Examples, Examples]] = {}
        orders: dict[tuple[int, int], BatchStream] = {}
        early = protocol.early_stopping
        self.averages = protocol.weight_averaging is not None
        self.validates = early is None or early.on == "validation"
        self.passes = {member.trial.id: cohort.passes(member, task) for member in self.active}
        self.penalties = {member.trial.id: cohort.controls.penalty(member.trial, task) for member in self.active}
        self.anchors = {member.trial.id: cohort.controls.anchor(member) for member in self.active}
        for member in self.active:
            trial, sequence = member.trial, cohort.sequences[member.trial.seed]
            key = sequence.key(task)
            if key not in arrays:  # members of one seed, or with a sequence shared by all seeds, use the same arrays
                arrays[key] = sequence.train(task), self._scored(sequence)
            examples, scored = arrays[key]
            if (trial.seed, trial.order) not in orders:  # one object for all members with the same batches
                orders[trial.seed, trial.order] = cohort.stream(trial, examples, task)
            stream = orders[trial.seed, trial.order]
            if stream.steps_per_epoch == 0:
                raise UsageError(
                    f"experiments.{trial.experiment}.protocol.batch_size: expected at most the {len(examples)} "
                    f"training examples of task {task + 1}, got {protocol.batch_size}"
                )
            self.streams[trial.id] = stream
            self.schedules[trial.id] = Schedule.of(protocol, stream.steps_per_epoch)
            self.stoppers[trial.id] = Stopper.of(protocol)
            self.scored[trial.id] = scored
            self.losses[trial.id] = []

    def _scored(self, sequence: TaskSequence) -> Examples:
        """Return the examples for evaluations during the task: validation, test, or a fixed subset of training data."""
        early = self.cohort.protocol.early_stopping
        if early is None or early.on == "validation":
            return sequence.validation(self.task)
        if early.on == "test":
            return sequence.test(self.task)
        return training_subset(sequence.train(self.task), self.cohort.workspace.suite_seed)

    def run(self) -> None:
        step, first = 0, True
        while self.active:
            step = self._train_stack(step, begin=first)
            first = False

    def _train_stack(self, step: int, *, begin: bool) -> int:
        """Train the active members together from `step` until too few of them remain; return the step reached."""
        cohort, stack = self.cohort, self._stack(step, begin=begin)
        if stack is None:
            return step
        members = list(self.active)
        here = dict(enumerate(members))
        for i, error in stack.raised_early.items():
            self._leave(members[i], "failed", step, error)
            self._take_out(stack, i, here.pop(i))
        while len(here) > (len(members) // 2 if cohort.machinery.keeps_who_stopped else len(members) - 1):
            until = min(self.schedules[member.trial.id].next_evaluation(step) for member in here.values())
            stretch = stack.run(step, until, here)
            before, step = step, step + len(stretch.losses)
            due: dict[int, Tensor] = {}
            for i, member in here.items():
                member.train_seconds += stretch.seconds / len(here)
                member.optimizer_seconds += stretch.optimizer_seconds / len(here)
                member.evaluation_seconds += stretch.watching_seconds / len(here)
                member.rows += stretch.updates.get(i, [])
                if i in stretch.raised:
                    self._leave(member, "failed", step, stretch.raised[i])
                elif self._went_on(member, i, stretch, before, step):
                    try:
                        due[i] = self._measured(stack, i, member)
                    except Exception as error:  # a user's optimizer may also raise when its mode is switched
                        if of_the_machine(error):
                            raise
                        self._leave(member, "failed", step, error)
            started = time.perf_counter()
            scores = cohort.evaluator.try_score(list(due.values()), [self.scored[here[i].trial.id] for i in due])
            raised = self._score_earlier(due, here, step)
            share = (time.perf_counter() - started) / max(1, len(due))
            for (i, row), score in zip(due.items(), scores, strict=True):
                here[i].evaluation_seconds += share
                found = raised.get(i, score)
                if isinstance(found, Exception):
                    self._leave(here[i], "failed", step, ModelError(found))
                else:
                    self._evaluated(here[i], row, found, step, stack.rate(i), stack.row(i) if self.averages else None)
            for i in [i for i, member in here.items() if member not in self.active]:
                self._take_out(stack, i, here.pop(i))
            cohort.look_at_followers()
        for i, member in here.items():
            self._take_out(stack, i, member)
        return step

    def _stack(self, step: int, *, begin: bool) -> LockStep | None:
        """Stack the active members, except those whose settings are rejected; return None if no members remain."""
        cohort = self.cohort
        while members := list(self.active):
            try:
                return LockStep(
                    cohort.machinery,
                    [member.trained for member in members],
                    [cohort.lane_member(member, self.task) for member in members],
                    [self.streams[member.trial.id] for member in members],
                    begin=begin,
                    followers=[member.follower for member in members],
                    passes=[own for member in members if (own := self.passes[member.trial.id]) is not None],
                    penalties=[self.penalties[member.trial.id] for member in members],
                    anchors=[self.anchors[member.trial.id] for member in members],
                    online=cohort.online is not None,
                    averaging=Averaging.of(cohort.protocol.weight_averaging, cohort.layout, members),
                    watch=self._watch(members) if cohort.watches else None,
                )
            except RefusedError as refused:
                for i, error in refused.errors.items():
                    self._leave(members[i], "failed", step, error)
        return None

    def _watch(self, members: Sequence[Member]) -> Watch:
        count = self.cohort.workspace.family.count
        due = [watched(count, self.task, self.schedules[member.trial.id].total) for member in members]
        return Watch(self.cohort.layout, self.task, due)

    def _take_out(self, stack: LockStep, i: int, member: Member) -> None:
        """Copy a member's weights and optimizer state from the stack when the member stops or the stack is rebuilt."""
        stopper = self.stoppers[member.trial.id]
        over = member.running and member not in self.active  # its task has ended: use the best weights
        if over and stopper.best_row is not None:
            member.row, member.raw = stopper.best_row, stopper.best_raw
        elif self.averages:
            member.row = (self._measured(stack, i, member) if over else stack.measured(i)).clone()
            member.raw = stack.row(i) if stack.is_averaged(i) else None
        else:
            member.row = self._measured(stack, i, member).clone() if over else stack.row(i)
        if over:
            member.validated = self.scores[member.trial.id] if self.validates else None
        member.state = stack.state(i)
        member.optimizer_state_bytes, member.fallbacks = stack.state_bytes(i), stack.fallbacks(i)
        member.gradients = stack.way

    def _measured(self, stack: LockStep, i: int, member: Member) -> Tensor:
        """Return the weights and buffers (P + Q,) at which to measure a member.

        If these are averages rather than the training weights, running statistics are re-estimated on training examples
        of the task. The protocol can require averages, and some optimizers compute them.

        Raises:
            ModelError: the user's model raised an exception.
            Exception: any exception that a user's optimizer raises when its mode is switched.
        """
        row, layout, evaluator = stack.measured(i), self.cohort.layout, self.cohort.evaluator
        if not running(evaluator.network) or torch.equal(layout.weights(row), layout.weights(stack.row(i))):
            return row
        try:
            return reestimated(evaluator, row, self.streams[member.trial.id].examples)
        except Exception as error:
            if of_the_machine(error):
                raise
            raise ModelError(error) from error

    def _went_on(self, member: Member, i: int, stretch: Stretch, before: int, step: int) -> bool:
        """Record the steps from `before` to `step`; return True if the member continues and is due for evaluation.

        i: the member's index in the stack. stretch: the results of these steps.
        """
        losses, finite = [row[i] for row in stretch.losses], stretch.finite[i]
        bad = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None or not finite:
            self._leave(member, "diverged", step if bad is None else before + bad + 1, None)
            return False
        self.losses[member.trial.id] += losses
        if self.cohort.online is not None:
            self.cohort.online.see(member, losses, [row[i] for row in stretch.accuracies])
        return step == self.schedules[member.trial.id].next_evaluation(step - 1)

    def _score_earlier(self, due: Mapping[int, Tensor], here: Mapping[int, Member], step: int) -> dict[int, Exception]:
        """Score due members on earlier tasks, if the protocol requests it.

        Return the exceptions raised by members' models, by member.

        due: the weights to score, by the member's index in the stack. here: all members in the stack, by index.
        """
        raised: dict[int, Exception] = {}
        for task in range(self.task) if self.cohort.protocol.follow_earlier else ():
            examples = [self.cohort.sequences[here[i].trial.seed].validation(task) for i in due]
            for i, score in zip(due, self.cohort.evaluator.try_score(list(due.values()), examples), strict=True):
                if isinstance(score, Exception):
                    raised[i] = score
                    continue
                loss, bits = (finite(value) for value in (score.loss, score.bits_per_byte))
                here[i].rows.append(EarlierRow(self.task + 1, step, task + 1, loss, score.accuracy, bits))
        return raised

    def _evaluated(
        self, member: Member, row: Tensor, score: Score, step: int, rate: float | None, raw: Tensor | None
    ) -> None:
        """Record the score of the weights `row` after `step` steps, and end the member's task if the member must stop.

        rate: the learning rate, from `Lane.rate`. raw: the training weights, if `row` is an average of them.
        """
        schedule = self.schedules[member.trial.id]
        recent, self.losses[member.trial.id] = self.losses[member.trial.id], []
        member.rows.append(
            CurveRow(
                task=self.task + 1,
                step=step,
                epoch=step / schedule.steps_per_epoch,
                train_loss=sum(recent) / len(recent),
                eval_loss=finite(score.loss),
                eval_accuracy=score.accuracy,
                eval_bits_per_byte=finite(score.bits_per_byte),
                lr=finite(rate),
            )
        )
        self.cohort.sketches.record(member, row, self.task + 1, step)
        stopper = self.stoppers[member.trial.id]
        best = stopper.best_row
        stop = stopper.see(score.loss, row, raw) or step == schedule.total
        if stopper.best_row is None or stopper.best_row is not best:
            self.scores[member.trial.id] = score
        if stop:
            member.steps += step
            member.last_step = member.steps
            self.active.remove(member)
        self._notify(member, 1.0 if stop else step / schedule.total, score.accuracy)

    def _leave(self, member: Member, status: str, step: int, error: Exception | None) -> None:
        """End the training of a member that diverged or failed at `step`, without affecting other members."""
        member.status = status
        if isinstance(error, ModelError):
            member.fail(error.error)
        elif error is not None:
            member.failure = explained(error, *member.trial.stepping)
        member.steps += step
        member.last_step = member.steps
        self.active.remove(member)
        self._notify(member, 1.0, None)

    def _notify(self, member: Member, fraction: float, accuracy: float | None) -> None:
        count = self.cohort.workspace.family.count
        done = (self.task + fraction) / count if member.running else 1.0
        status = "done" if member.running and done == 1.0 else member.status
        for trial in member.trials:
            self.cohort.notify(Progress(trial.id, self.task + 1, done, accuracy, status))
