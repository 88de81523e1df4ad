"""The training of a cohort in lock-step through its task sequence, without writing to disk.

A *stack* (`lockstep`) holds the members in training. All of them are updated until one is due for evaluation. Members
that then stop (early, at the last step, or because they diverged) keep their weights and optimizer state and leave the
stack. The others continue in a smaller stack: on a CPU immediately, and on an accelerator as soon as half of the
stack has stopped. When all members have stopped, the next task begins with those that have not diverged or failed.

Legend: P padded parameter count, Q padded size of the buffers in floats.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from torch import Tensor

from optbench.counting import count
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.controls import Controls, renews_state
from optbench.engine.evaluate import Evaluator
from optbench.engine.faults import of_the_machine
from optbench.engine.gradients import OtherBitsError
from optbench.engine.interim import CannotResume, Interim, Keep
from optbench.engine.lanes import LaneMember, MemberState
from optbench.engine.lanes.verification import NOT_ELEMENTWISE, NotElementwise, Verification
from optbench.engine.learning import not_learnt, tasks_above_target
from optbench.engine.lockstep import Machinery
from optbench.engine.measure import measure, score_held_out
from optbench.engine.members import Member, Notify, TrialResult
from optbench.engine.online import Online
from optbench.engine.outside import OutsideState
from optbench.engine.passes import Passes
from optbench.engine.randomness import SEEDS
from optbench.engine.rates import unscheduled
from optbench.engine.recording import Recordings
from optbench.engine.resuming import obstacle, proven_state
from optbench.engine.sketches import Sketcher
from optbench.engine.stack import digest
from optbench.engine.steps import Steps
from optbench.engine.task import TaskTraining
from optbench.engine.workspace import Workspace
from optbench.metrics.learning import ABOVE_TARGET, task_list
from optbench.metrics.own import RAISED, resolve
from optbench.models import materialised
from optbench.optimizers.load import load_factory
from optbench.optimizers.make import resolve_shared
from optbench.plan import Cohort, Trial
from optbench.store.tables import MetricRow, SketchRow, TrialRow
from optbench.streams import generator, stream_seed
from optbench.suite.scoring import scored_tasks
from optbench.tasks import Examples, TaskSequence

VERIFIED = 2
"""Number of members verified for each variant of a user's elementwise optimizer (more than one, as one may diverge)."""


def train(
    cohort: Cohort,
    workspace: Workspace,
    notify: Notify,
    keep: Keep | None = None,
    begun: Mapping[str, Interim] = MappingProxyType({}),
) -> list[TrialResult]:
    """Train all trials of `cohort` in lock-step; return results in the order of the cohort's trials.

    keep: see `Keep`. begun: saved states from which trials continue, by trial id; all from the same task, or empty.

    Trials that differ only in names are trained once. Each trial has all results as if it had been trained alone; the
    seconds in the results are not divided among the trials.

    Raises:
        UsageError: a task has fewer training examples than one batch needs, or the model does not fit the data.
        CannotResume: `begun` does not fit the current optimizer.
    """
    apart: str | None = None
    while True:
        training = CohortTraining(cohort, workspace, notify, begun, apart)
        try:
            return training.run(keep)
        except NotElementwise as error:
            apart = str(error)
        except OtherBitsError:
            training.ways.distrust()
        begun = {}


class CohortTraining:
    """The training of a cohort's members in lock-step, task by task."""

    def __init__(
        self,
        cohort: Cohort,
        workspace: Workspace,
        notify: Notify,
        begun: Mapping[str, Interim],
        apart: str | None = None,
    ) -> None:
        """apart: the reason why an optimizer declared elementwise has an instance per member; None if it does not."""
        self.workspace = workspace
        self.protocol = workspace.experiment.protocol
        self.notify = notify
        if len(aparts := {interim.apart for interim in begun.values()}) > 1:
            raise CannotResume("expected all trials of the cohort from the same lane, got trials from different lanes")
        self.apart = aparts.pop() if aparts else apart
        settings = [equal[0].settings for equal in cohort.trainings]
        self.spec = resolve_shared(cohort.trials[0].spec, settings, believed=self.apart is None)
        self.blueprint = workspace.blueprint(cohort.experiment, cohort.model)
        self.network, self.layout = self.blueprint.network, self.blueprint.layout
        self.controls = Controls(self.blueprint, workspace.suite_seed)
        self.metrics = resolve(workspace.experiment.metrics)
        normalise = Normaliser.of(workspace.dataset, self.protocol, workspace.device)
        buffer = BatchBuffer(self.protocol.batch_size, normalise)
        self.ways = workspace.ways(cohort.model, self.blueprint)
        execution = dataclasses.replace(workspace.execution, together=self.ways.together)
        recordings = Recordings(execution.record)
        gradients = self.ways.factory(buffer, recordings)
        parts = self.spec, self.network, self.layout, buffer, gradients, recordings, execution
        self.machinery = Machinery(*parts, self.protocol.clip_norm, self.protocol.precision)
        token_bytes = workspace.dataset.token_bytes
        self.evaluator = Evaluator(self.blueprint, normalise, batched=execution.together, token_bytes=token_bytes)
        self.sketches = Sketcher(workspace.experiment, self.layout, workspace.suite_seed)
        self.sequences: dict[int, TaskSequence] = {
            seed: workspace.family.sequence(seed) for seed in {trial.seed for trial in cohort.trials}
        }
        asked = any(metric.kind == "online" for metric in self.metrics)
        self.watches = any(metric.kind == "updates" for metric in self.metrics)
        self.online = Online(self.evaluator, self.sequences, workspace.suite_seed) if asked else None
        self.places = {trial.id: i for i, trial in enumerate(cohort.trials)}
        self.members: list[Member] = []
        starts: dict[int, dict[str, Tensor]] = {}
        for equal in cohort.trainings:
            trial = equal[0]
            if trial.seed not in starts:
                starts[trial.seed] = self.blueprint.start(workspace.suite_seed, trial.seed)
            weights = starts[trial.seed]
            row = self.layout.pack(weights).to(workspace.device)
            noise = generator(workspace.suite_seed, trial.seed, "optimizer")
            self.members.append(Member(equal, row, digest(weights), noise))
        (self.finished,) = {begun[m.trial.id].task if m.trial.id in begun else 0 for m in self.members}
        for member in self.members:
            if self.finished:
                begun[member.trial.id].restore(member)
        self._obstacles: dict[str, str | None] = {}
        self._steps = Steps(self.protocol, self.sequences, workspace.family.count)
        # read before any instance is constructed
        self._outside = OutsideState(map(load_factory, cohort.trials[0].user_optimizers))

    def run(self, keep: Keep | None) -> list[TrialResult]:
        tasks = self.workspace.family.count
        if not self.finished:
            self._measure(0)
            for member in self.members:
                self.sketches.record(member, member.row, task=1, step=0)
        for task in range(self.finished, tasks):
            for member in self.members:
                if not self._keeps_state(member):
                    member.state = None
                self.controls.renew(member, task)
            if self.online is not None:
                self.online.begin(self.members, task)
            if task == 0 and self.spec.lane == "elementwise" and self.spec.source == "yours":
                self._verify()
            TaskTraining(self, task).run()
            self.look_at_followers(at_end=True)
            if self.online is not None:
                self.online.end(self.members, task)
            self._measure(task + 1)
            self.finished = task + 1
            if keep is not None and self.finished < tasks:
                keep(lambda: [self._interim(member) for member in self.members])
        results = [result for member in self.members for result in self._results(member)]
        return sorted(results, key=lambda result: self.places[result.trial.id])

    def stream(self, trial: Trial, examples: Examples, task: int) -> BatchStream:
        """Return the batches of a trial in `task`, 0..T-1."""
        seeds = self.workspace.suite_seed, trial.seed
        return BatchStream(examples, self.protocol.batch_size, *seeds, task, trial.order, self.protocol.augment)

    def lane_member(self, member: Member, task: int) -> LaneMember:
        """Return the information that a lane receives about a member in `task`, 0..T-1."""
        kept = self._keeps_state(member)
        made = 0 if kept else task  # the task at which its optimizer is constructed
        return LaneMember(
            member.trial.settings,
            member.state,
            member.generator,
            # only for optimizers that need it, because counting generates the tasks
            self._steps.of_optimizer(member, task, kept=kept) if "total_steps" in self.spec.needs else 0,
            len(self.sequences[member.trial.seed].train(made)) if "examples" in self.spec.needs else 0,
            partial(self._draws, member.trial.seed, {"made": made}, task),
            self.blueprint.ends,
            self._steps.curve(member, task),
        )

    def _keeps_state(self, member: Member) -> bool:
        """Return whether a member's optimizer is kept across tasks."""
        return self.protocol.optimizer_state == "keep" and not renews_state(member.trial)

    def passes(self, member: Member, task: int, row: Tensor | None = None) -> Passes | None:
        """Return the forward passes of a member in `task`, 0..T-1; None for a plain network.

        row: the weights and buffers (P + Q,) to start from; None for those from which the member's training continues.
        """
        if self.blueprint.plain:
            return None
        suite, trial = self.workspace.suite_seed, member.trial.seed

        def draws(step: int, evaluation: int) -> int:
            return stream_seed(suite, trial, f"forward/task {task}/step {step}/evaluation {evaluation}") % SEEDS

        # A built-in network has no weights yet; a user's module stays on the device where it was constructed.
        ours = self.blueprint.ours
        network = materialised(self.network, self.workspace.device) if ours else copy.deepcopy(self.network)
        return Passes(network, self.layout, member.trained if row is None else row, draws)

    def _draws(self, trial_seed: int, tasks: Mapping[str, int], task: int, purpose: str) -> int:
        """Return the seed for an optimizer's random numbers outside of steps, different for each purpose and task.

        tasks: maps some purposes to the task that is used instead of `task`.
        """
        name = f"optimizer/{purpose}/task {tasks.get(purpose, task)}"
        return stream_seed(self.workspace.suite_seed, trial_seed, name) % SEEDS

    def look_at_followers(self, *, at_end: bool = False) -> None:
        """Check the results of members' verifications, and end the verifications if `at_end` is True.

        Raises:
            NotElementwise: the optimizer is wrongly declared elementwise.
        """
        for member in self.members:
            if member.follower is not None and member.follower.difference:
                raise NotElementwise(member.follower.difference)
            if at_end:
                member.follower = None

    def _verify(self) -> None:
        """Set up the verification of up to `VERIFIED` members per variant during the first task."""
        settings: dict[str, int] = {}
        for member in self.members:
            key = repr(sorted(member.trial.settings.items()))
            settings[key] = settings.get(key, 0) + 1
            if settings[key] <= VERIFIED:
                lane_member = self.lane_member(member, 0)
                try:
                    row = self.layout.weights(member.row)
                    member.follower = Verification(self.spec, lane_member, self.network, row, self.layout)
                except Exception as error:  # the lane reports an exception of the constructor
                    if of_the_machine(error):
                        raise

    def _interim(self, member: Member) -> Interim:
        state = None
        if member.unkept is None:
            try:
                state = self._state(member)
            except CannotResume as error:
                member.unkept = " ".join(str(error).split())
        return Interim.of(member, self.finished, state, self.apart)

    def _state(self, member: Member) -> MemberState:
        """Return the state of a member's optimizer, consisting of containers, tensors and numbers.

        Raises:
            CannotResume: the optimizer cannot be resumed from this state.
        """
        if not member.running or member.state is None or not self._keeps_state(member):
            return None
        if self.spec.lane != "per-member":
            return member.state
        if name := self._outside.changed():
            raise CannotResume(f"the optimizer keeps state outside of its instances: {name}")
        if (reason := self.obstacle(member)) is not None:
            raise CannotResume(reason)
        return proven_state(self.machinery, self.lane_member(member, self.finished), member.trained)

    def obstacle(self, member: Member) -> str | None:
        """Return why members with the settings of `member` cannot be resumed, according to a test; None if they can."""
        settings = member.trial.settings.items()
        key = repr([(name, bool(value) if isinstance(value, int | float) else value) for name, value in settings])
        if key not in self._obstacles:
            stream = self.stream(member.trial, self.sequences[member.trial.seed].train(0), 0)
            noise = generator(self.workspace.suite_seed, member.trial.seed, "optimizer")
            fresh = dataclasses.replace(self.lane_member(member, 0), state=None, generator=noise)
            self._obstacles[key] = obstacle(
                self.machinery, fresh, member.start, stream, partial(self.passes, member, 0)
            )
        return self._obstacles[key]

    def _measure(self, after_task: int) -> None:
        started = time.perf_counter()
        scored = [i - 1 for i in scored_tasks(self.protocol.score, self.workspace.family.count, after_task)]
        held_out = score_held_out(self.members, self.sequences, after_task, self.evaluator, self.metrics, scored)
        share = (time.perf_counter() - started) / len(self.members)
        for member, scores in zip(self.members, held_out, strict=True):
            started = time.perf_counter()
            before, sequence = len(member.rows), self.sequences[member.trial.seed]
            workspace = self.workspace
            context = after_task, self.evaluator, self.metrics, workspace.suite_seed, scores, scored, workspace.transfer
            try:
                measure(member, sequence, *context)
            except Exception as error:
                if not self.blueprint.answers_for(error):
                    raise
                del member.rows[before:]
                member.fail(error)
                measure(member, sequence, *context)  # appends the null values of a failed trial
            member.evaluation_seconds += share + time.perf_counter() - started

    def _results(self, member: Member) -> list[TrialResult]:
        finished = member.running
        above = tasks_above_target(member.rows, self.protocol) if finished else None
        row = TrialRow(
            status="ok" if finished else member.status,
            error_type=member.failure[0] if member.failure else None,
            error_message=member.failure[1] if member.failure else None,
            last_step=member.last_step,
            steps=member.steps,
            parameters=self.layout.parameters,
            device=str(self.workspace.device),
            hyperparameters="",  # set for each trial below
            init_hash=member.init_hash,
            train_seconds=member.train_seconds,
            optimizer_seconds=member.optimizer_seconds,
            optimizer_state_bytes=member.optimizer_state_bytes,
            checkpoint=None,
            fallbacks=member.fallbacks,
            note="; ".join(self._notes(member)) or None,
            gradients=member.gradients,
            evaluation_seconds=member.evaluation_seconds,
            tasks_above_target=None if above is None else len(above),
        )
        weights = self.blueprint.checkpoint(member.row) if finished else None
        unsketched = [found for found in member.rows if not isinstance(found, SketchRow)]
        results = []
        for trial in member.trials:
            own = dataclasses.replace(row, hyperparameters=json.dumps(dict(trial.hyperparameters)))
            rows = member.rows if self.sketches.follows(trial) else unsketched
            results.append(TrialResult(trial, (own, *rows), weights))
        return results

    def _notes(self, member: Member) -> list[str]:
        found = [f"{count(member.fallbacks, 'matrix factorisation')} failed"] if member.fallbacks else []
        refused = sorted(self.machinery.recordings.refused.items())
        if member.running:
            found += not_learnt(member.rows).notes
            if above := tasks_above_target(member.rows, self.protocol):
                found.append(f"{ABOVE_TARGET} ({task_list(above)})")
        raised = {
            r.metric: r.note for r in member.rows if isinstance(r, MetricRow) and (r.note or "").startswith(RAISED)
        }
        found += [f"{name} {note}" for name, note in raised.items()]
        if note := unscheduled(self.protocol.schedule, member.trial, member.rows):
            found.append(note)
        if self.ways.alone is not None:
            found.append(f"trained member by member: {self.ways.alone}")
        if self.apart is not None:
            found.append(f"{NOT_ELEMENTWISE}: {self.apart}")
        return found + [f"{name} not recorded: {reason}" for name, reason in refused]
