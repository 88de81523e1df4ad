"""Trains a cohort in lock-step through its task sequence and yields what every trial found. Writes nothing.

The loop: a *stack* (`lockstep`) holds the members that are training; they take steps together until the next point at
which one of them has to be evaluated; whoever stops there (early, at its last step, or diverged) leaves with its own
weights and optimizer state, and the others go on in a smaller stack: at once on a CPU, on an accelerator when half have
left. Then the next task begins with all that run.

Legend: P padded parameter count.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from optbench.data import Dataset
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.evaluate import Evaluator, Score
from optbench.engine.execution import Execution
from optbench.engine.faults import of_the_machine
from optbench.engine.gradients import gradients_for
from optbench.engine.interim import Interim, Keep, Write
from optbench.engine.lanes import LaneMember, RefusedError, plain_state
from optbench.engine.lanes.rehearsal import Rehearsal
from optbench.engine.lanes.verification import NOT_ELEMENTWISE, NotElementwise, Verification
from optbench.engine.learning import not_learnt
from optbench.engine.lockstep import LockStep, Machinery
from optbench.engine.measure import measure, score_held_out
from optbench.engine.members import Member, Notify, Progress, Schedule, Stopper, TrialResult
from optbench.engine.plain import NotPlain, Plain, to_plain
from optbench.engine.randomness import SEEDS
from optbench.engine.recording import Recordings
from optbench.engine.sketches import Sketches
from optbench.engine.stack import Layout, digest
from optbench.errors import UsageError
from optbench.metrics import DEFAULT_METRICS
from optbench.models import build, initialise
from optbench.optimizers.explain import explained
from optbench.optimizers.make import resolve_shared
from optbench.optimizers.registry import find
from optbench.plan import Cohort
from optbench.store.tables import CurveRow, SketchRow, TrialRow
from optbench.streams import generator, stream_seed
from optbench.suite.schema import ExperimentSettings
from optbench.tasks import Examples, TaskFamily, TaskSequence

VERIFIED = 2
"""So many members of every setting of a user's elementwise optimizer are verified: one alone may diverge."""


@dataclass(frozen=True)
class Workspace:
    """What all cohorts of one experiment share: built once per process and experiment."""

    experiment: ExperimentSettings
    dataset: Dataset
    family: TaskFamily
    suite_seed: int
    device: torch.device
    execution: Execution

    @staticmethod
    def of(experiment: ExperimentSettings, dataset: Dataset, suite_seed: int, device: torch.device) -> Workspace:
        family = TaskFamily(experiment.tasks, dataset, experiment.protocol, suite_seed, device)
        return Workspace(experiment, dataset, family, suite_seed, device, Execution.on(device))


def train(
    cohort: Cohort,
    setting: Workspace,
    notify: Notify,
    keep: Keep | None = None,
    begun: Mapping[str, Interim] = MappingProxyType({}),
) -> list[TrialResult]:
    """Train all trials of `cohort`, in lock-step; results in the order of its trials.

    keep: as `Keep` has it. begun: what the trials go on from, by their ids; all of them from the same task, or none.

    Trials that differ in nothing but names are trained once. Each of them gets everything that was found, as if it had
    been trained: so the seconds in its rows are those of the one training, not a share of them.

    Raises:
        UsageError: a task has fewer training examples than one batch needs, or the model does not fit the images.
        NotPlain: `begun` does not fit the optimizer as it is now.
    """
    try:
        return _CohortTraining(cohort, setting, notify, begun).run(keep)
    except NotElementwise as error:
        reason = str(error)
    return _CohortTraining(cohort, setting, notify, {}, reason).run(keep)


class _CohortTraining:
    def __init__(
        self,
        cohort: Cohort,
        setting: Workspace,
        notify: Notify,
        begun: Mapping[str, Interim],
        apart: str | None = None,
    ) -> None:
        """apart: why every training gets an instance of its own, although the optimizer is declared elementwise."""
        self.setting = setting
        self.protocol = setting.experiment.protocol
        self.notify = notify
        if len(aparts := {interim.apart for interim in begun.values()}) > 1:
            raise NotPlain("some of its trials were trained in another lane")
        self.apart = aparts.pop() if aparts else apart
        settings = [equal[0].hyperparameters for equal in cohort.trainings]
        self.spec = resolve_shared(find(cohort.trials[0].target), settings, believed=self.apart is None)
        try:
            network = build(setting.experiment.models[cohort.model], setting.family.inputs, setting.family.classes)
        except ValueError as error:
            raise UsageError(f"experiments.{cohort.experiment}.models.{cohort.model}: {error}") from error
        self.network = network
        self.layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
        normalise = Normaliser.of(setting.dataset, self.protocol, setting.device)
        buffer = BatchBuffer(self.protocol.batch_size, normalise)
        execution, recordings = setting.execution, Recordings(setting.execution.record)
        gradients = gradients_for(network, self.layout, buffer, recordings, together=execution.together)
        self.machinery = Machinery(self.spec, network, self.layout, buffer, gradients, recordings, execution)
        self.evaluator = Evaluator(network, self.layout, normalise, batched=execution.together)
        self.sketches = Sketches(setting.experiment, self.layout, setting.suite_seed)
        self.sequences: dict[int, TaskSequence] = {
            seed: setting.family.sequence(seed) for seed in {trial.seed for trial in cohort.trials}
        }
        self.places = {trial.id: i for i, trial in enumerate(cohort.trials)}
        self.members: list[Member] = []
        for equal in cohort.trainings:
            trial = equal[0]
            weights = initialise(network, generator(setting.suite_seed, trial.seed, "initial weights"))
            row = self.layout.pack(weights).to(setting.device)
            noise = generator(setting.suite_seed, trial.seed, "optimizer")
            self.members.append(Member(equal, row, digest(weights), noise))
        (self.finished,) = {begun[m.trial.id].task if m.trial.id in begun else 0 for m in self.members}
        for member in self.members:
            if self.finished:
                begun[member.trial.id].restore(member)
        self._rehearsed: tuple[list[Interim], dict[str, Rehearsal], Write] | None = None

    def run(self, keep: Keep | None) -> list[TrialResult]:
        count = self.setting.family.count
        if not self.finished:
            self._measure(0)
            for member in self.members:
                self.sketches.record(member, member.row, task=1, step=0)
        for task in range(self.finished, count):
            if self.protocol.optimizer_state == "reset":
                for member in self.members:
                    member.state = None
            if task == 0 and self.spec.lane == "elementwise" and self.spec.source == "yours":
                self._verify()
            _TaskTraining(self, task).run()
            self.look_at_followers(at_end=True)
            self._measure(task + 1)
            self.finished = task + 1
            if keep is not None and self.finished < count:
                keep(self._take)
        results = [result for member in self.members for result in self._results(member)]
        return sorted(results, key=lambda result: self.places[result.trial.id])

    def lane_member(self, member: Member, task: int) -> LaneMember:
        """What a lane is told of a member in `task`, 0..T-1."""
        keeps = self.protocol.optimizer_state == "keep"
        made = 0 if keeps else task  # when its optimizer is made, or was
        return LaneMember(
            member.trial.hyperparameters,
            member.state,
            member.generator,
            self._total_steps(member, task),
            self._examples(member, made),
            partial(self._draws, member.trial.seed, {"made": made}, task),
        )

    def _draws(self, trial_seed: int, tasks: Mapping[str, int], task: int, purpose: str) -> int:
        """The seed of what an optimizer draws outside of steps: a stream of its own for each purpose and task."""
        name = f"optimizer/{purpose}/task {tasks.get(purpose, task)}"
        return stream_seed(self.setting.suite_seed, trial_seed, name) % SEEDS

    def _examples(self, member: Member, task: int) -> int:
        """Training examples of `task`, for an optimizer that is given their number."""
        if "examples" not in self.spec.needs:
            return 0
        return len(self.sequences[member.trial.seed].train(task))

    def look_at_followers(self, *, at_end: bool = False) -> None:
        """What members' followers have found, if anything. at_end: of the task, after which they follow no more.

        Raises:
            NotElementwise: the optimizer does not do what it is declared to do.
        """
        for member in self.members:
            for follower in member.followers:
                if isinstance(follower, Verification) and follower.difference:
                    raise NotElementwise(follower.difference)
        if self._rehearsed is not None:
            interims, rehearsals, write = self._rehearsed
            if at_end or all(rehearsal.over for rehearsal in rehearsals.values()):
                self._rehearsed = None
                write([self._judged(interim, rehearsals.get(interim.trials[0])) for interim in interims])
        if at_end:
            for member in self.members:
                member.followers = []

    def _verify(self) -> None:
        """Two members of every setting are trained by instances of their own as well, for one task."""
        settings: dict[str, int] = {}
        for member in self.members:
            key = repr(sorted(member.trial.hyperparameters.items()))
            settings[key] = settings.get(key, 0) + 1
            if settings[key] <= VERIFIED:
                lane_member = self.lane_member(member, 0)
                try:
                    member.followers = [Verification(self.spec, lane_member, self.network, member.row, self.layout)]
                except Exception as error:  # what its constructor raises is its lane's to report
                    if of_the_machine(error):
                        raise

    def _take(self, write: Write) -> None:
        """As `Keep` has it."""
        interims, rehearsals = [], {}
        for member in self.members:
            try:
                state, rehearsal = self._written(member)
            except NotPlain as error:
                member.unkept = str(error)
            if member.unkept is not None:
                interims.append(Interim.unkept(member, self.finished, member.unkept))
                continue
            interims.append(dataclasses.replace(Interim.of(member, self.finished, state), apart=self.apart))
            if rehearsal is not None:
                rehearsals[member.trial.id] = rehearsal
                member.followers = [rehearsal]
        if rehearsals:
            self._rehearsed = interims, rehearsals, write
        else:
            write(interims)

    def _written(self, member: Member) -> tuple[Plain, Rehearsal | None]:
        """A member's optimizer state as plain data, and what has still to be seen of it.

        Raises:
            NotPlain: it cannot be written down, or not restored.
        """
        if not member.running or self.protocol.optimizer_state == "reset" or member.unkept is not None:
            return to_plain(None), None
        before = self.lane_member(member, self.finished)
        plain = plain_state(self.spec, before, self.network)
        if self.spec.lane != "per-member" or before.state is None:
            return plain, None
        return plain, Rehearsal(self.spec, before, plain, self.network, member.row, self.layout)

    def _judged(self, interim: Interim, rehearsal: Rehearsal | None) -> Interim:
        """What is kept of a member after its rehearsal."""
        if rehearsal is None:
            return interim
        if rehearsal.reason is None and rehearsal.steps:
            return dataclasses.replace(interim, seconds=rehearsal.seconds)
        member = next(member for member in self.members if member.trial.id == interim.trials[0])
        if rehearsal.reason is None:
            return Interim.unkept(member, interim.task, "it raised before its state could be tried")
        member.unkept = rehearsal.reason
        return dataclasses.replace(Interim.unkept(member, interim.task, rehearsal.reason), seconds=rehearsal.seconds)

    def _total_steps(self, member: Member, task: int) -> int:
        """Steps of all tasks, or of `task` where each begins with a fresh optimizer, if nothing stops them sooner."""
        if "total_steps" not in self.spec.needs:
            return 0  # nobody asks, and counting makes the tasks
        sequence = self.sequences[member.trial.seed]
        tasks = [task] if self.protocol.optimizer_state == "reset" else range(self.setting.family.count)
        per_epoch = [len(sequence.train(i)) // self.protocol.batch_size for i in tasks]
        return sum(Schedule.of(self.protocol, steps).total for steps in per_epoch)

    def _measure(self, after_task: int) -> None:
        metrics = self.setting.experiment.metrics
        names = DEFAULT_METRICS if metrics is None else metrics
        count = self.setting.family.count
        held_out = score_held_out(self.members, self.sequences, count, after_task, self.evaluator, names)
        for member, scores in zip(self.members, held_out, strict=True):
            measure(
                member,
                self.sequences[member.trial.seed],
                count,
                after_task,
                self.evaluator,
                self.layout,
                names,
                self.setting.suite_seed,
                scores,
            )

    def _results(self, member: Member) -> list[TrialResult]:
        finished = member.running
        row = TrialRow(
            status="ok" if finished else member.status,
            error_type=member.failure[0] if member.failure else None,
            error_message=member.failure[1] if member.failure else None,
            last_step=member.last_step,
            steps=member.steps,
            parameters=self.layout.parameters,
            device=str(self.setting.device),
            hyperparameters="",  # each trial's own follow
            init_hash=member.init_hash,
            train_seconds=member.train_seconds,
            optimizer_seconds=member.optimizer_seconds,
            optimizer_state_bytes=member.optimizer_state_bytes,
            checkpoint=None,
            fallbacks=member.fallbacks,
            note="; ".join(self._notes(member)) or None,
        )
        weights = self.layout.unpack(member.row) if finished else None
        unsketched = [found for found in member.rows if not isinstance(found, SketchRow)]
        results = []
        for trial in member.trials:
            own = dataclasses.replace(row, hyperparameters=json.dumps(dict(trial.hyperparameters)))
            rows = member.rows if self.sketches.follows(trial) else unsketched
            results.append(TrialResult(trial, (own, *rows), weights))
        return results

    def _notes(self, member: Member) -> list[str]:
        found = [f"{member.fallbacks} factorisations replaced"] if member.fallbacks else []
        refused = sorted(self.machinery.recordings.refused.items())
        found += not_learnt(member.rows).notes if member.running else []
        if self.apart is not None:
            found.append(f"{NOT_ELEMENTWISE}: {self.apart}")
        return found + [f"{name} not recorded: {reason}" for name, reason in refused]


class _TaskTraining:
    """One task of a cohort, from the first step to the last member's stop."""

    def __init__(self, cohort: _CohortTraining, task: int) -> None:
        self.cohort = cohort
        self.task = task
        protocol = cohort.protocol
        self.active = [member for member in cohort.members if member.running]
        self.streams: dict[str, BatchStream] = {}
        self.schedules: dict[str, Schedule] = {}
        self.stoppers: dict[str, Stopper] = {}
        self.held_out: dict[str, Examples] = {}
        self.losses: dict[str, list[float]] = {}
        arrays: dict[object, tuple[Examples, Examples]] = {}
        orders: dict[tuple[int, int], BatchStream] = {}
        patience = protocol.early_stopping.patience if protocol.early_stopping else None
        on_test = protocol.early_stopping is not None and protocol.early_stopping.on == "test"
        for member in self.active:
            trial, sequence = member.trial, cohort.sequences[member.trial.seed]
            key = sequence.key(task)
            if key not in arrays:  # members of one seed, or of a sequence that all seeds share, read the same arrays
                arrays[key] = (sequence.train(task), sequence.test(task) if on_test else sequence.validation(task))
            examples, held_out = arrays[key]
            if (trial.seed, trial.order) not in orders:  # one object for all that meet the same batches
                seeds = (cohort.setting.suite_seed, trial.seed)
                stream = BatchStream(examples, protocol.batch_size, *seeds, task, trial.order)
                orders[trial.seed, trial.order] = stream
            stream = orders[trial.seed, trial.order]
            if stream.steps_per_epoch == 0:
                raise UsageError(
                    f"experiments.{trial.experiment}.protocol.batch_size: {protocol.batch_size} is more than the "
                    f"{len(examples)} training examples of task {task + 1}"
                )
            self.streams[trial.id] = stream
            self.schedules[trial.id] = Schedule.of(protocol, stream.steps_per_epoch)
            self.stoppers[trial.id] = Stopper(patience)
            self.held_out[trial.id] = held_out
            self.losses[trial.id] = []

    def run(self) -> None:
        step, first = 0, True
        while self.active:
            step = self._train_stack(step, begin=first)
            first = False

    def _train_stack(self, step: int, *, begin: bool) -> int:
        """Train the active members together from `step` until too few of them are left; the step reached."""
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
                if i in stretch.raised:
                    self._leave(member, "failed", step, stretch.raised[i])
                elif self._went_on(member, [row[i] for row in stretch.losses], stretch.finite[i], before, step):
                    try:
                        due[i] = stack.measured(i)
                    except Exception as error:  # a user's optimizer may raise when it changes its mode, too
                        if of_the_machine(error):
                            raise
                        self._leave(member, "failed", step, error)
            scores = cohort.evaluator.score(list(due.values()), [self.held_out[here[i].trial.id] for i in due])
            for (i, row), score in zip(due.items(), scores, strict=True):
                self._evaluated(here[i], row, score, step)
            for i in [i for i, member in here.items() if member not in self.active]:
                self._take_out(stack, i, here.pop(i))
            cohort.look_at_followers()
        for i, member in here.items():
            self._take_out(stack, i, member)
        return step

    def _stack(self, step: int, *, begin: bool) -> LockStep | None:
        """The active members side by side; those whose settings their optimizer refuses have left. None: all have."""
        cohort = self.cohort
        while members := list(self.active):
            try:
                return LockStep(
                    cohort.machinery,
                    [member.row for member in members],
                    [cohort.lane_member(member, self.task) for member in members],
                    [self.streams[member.trial.id] for member in members],
                    begin=begin,
                    followers=[member.followers for member in members],
                )
            except RefusedError as refused:
                for i, error in refused.errors.items():
                    self._leave(members[i], "failed", step, error)
        return None

    def _take_out(self, stack: LockStep, i: int, member: Member) -> None:
        """Give a member what it has come to in the stack: because it has stopped, or for a smaller one."""
        best = self.stoppers[member.trial.id].best_row
        if member.running and member not in self.active:  # its task is over: what was best, or is measured now
            member.row = best if best is not None else stack.measured(i).clone()
        else:
            member.row = stack.row(i)
        member.state = stack.state(i)
        member.optimizer_state_bytes, member.fallbacks = stack.state_bytes(i), stack.fallbacks(i)

    def _went_on(self, member: Member, losses: list[float], finite: bool, before: int, step: int) -> bool:
        """Account for the steps from `before` to `step`; whether the member goes on, and is to be evaluated now.

        losses: of these steps. finite: whether its weights are.
        """
        bad = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None or not finite:
            self._leave(member, "diverged", step if bad is None else before + bad + 1, None)
            return False
        self.losses[member.trial.id] += losses
        return step == self.schedules[member.trial.id].next_evaluation(step - 1)

    def _evaluated(self, member: Member, row: Tensor, score: Score, step: int) -> None:
        """Take note of what the weights `row` came to on held-out data after `step`, and see whether it stops."""
        schedule = self.schedules[member.trial.id]
        recent, self.losses[member.trial.id] = self.losses[member.trial.id], []
        member.rows.append(
            CurveRow(
                task=self.task + 1,
                step=step,
                epoch=step / schedule.steps_per_epoch,
                train_loss=sum(recent) / len(recent),
                eval_loss=score.loss if math.isfinite(score.loss) else None,
                eval_accuracy=score.accuracy,
            )
        )
        self.cohort.sketches.record(member, row, self.task + 1, step)
        stop = self.stoppers[member.trial.id].see(score.loss, row) or step == schedule.total
        if stop:
            member.steps += step
            member.last_step = member.steps
            self.active.remove(member)
        self._notify(member, 1.0 if stop else step / schedule.total, score.accuracy)

    def _leave(self, member: Member, status: str, step: int, error: Exception | None) -> None:
        """A member that diverged or failed at `step` of this task is frozen there; the others do not notice."""
        member.status = status
        member.failure = explained(error, member.trial.target, member.trial.hyperparameters) if error else None
        member.steps += step
        member.last_step = member.steps
        self.active.remove(member)
        self._notify(member, 1.0, None)

    def _notify(self, member: Member, fraction: float, accuracy: float | None) -> None:
        count = self.cohort.setting.family.count
        done = (self.task + fraction) / count if member.running else 1.0
        status = "done" if member.running and done == 1.0 else member.status
        for trial in member.trials:
            self.cohort.notify(Progress(trial.id, self.task + 1, done, accuracy, status))
