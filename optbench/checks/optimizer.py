"""The optimizer contract, as a table of checks that examine the evidence."""

from __future__ import annotations

import contextlib
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from optbench.checks.evidence import Evidence, difference, largest_difference
from optbench.checks.finding import Finding, Outcome
from optbench.checks.plain import PlainTraining
from optbench.checks.problem import Problem
from optbench.checks.remedies import what_works
from optbench.engine.lanes.verification import NOT_ELEMENTWISE
from optbench.optimizers.load import load_factory
from optbench.optimizers.registry import check_settings
from optbench.optimizers.spec import Need, OptimizerSpec

Found = tuple[Outcome, str]

ABSURD = 1e30
"""A value whose square overflows float32. Ten times the value, which bias correction can produce, does not overflow."""
LOSING = ("lr", "learning_rate", "weight_decay")
"""Hyper-parameters for which an absurd value makes a trial diverge, in the order in which they are tried."""
TIMED_BLOCKS = 5
BLOCK_STEPS = 10
"""Steps per timed block; enough to include work done only every tenth step."""
TIMING_SECONDS = 3.0
"""Seconds after which no further block is timed."""
BYTES_PER_NUMBER = 4

ASKS: Mapping[Need, str] = {
    "closure": "a closure that re-evaluates the loss and gradients",
    "create_graph": "gradients that can be differentiated again",
    "modes": "train() before steps and eval() before measuring",
    "generator": "the trial's random generator",
    "model": "the network, including its hooks",
    "total_steps": "the total number of steps",
    "around_forward": "around_forward() around each forward and backward pass",
}


@dataclass(frozen=True)
class Check:
    """One requirement of the contract; the check is skipped unless the prerequisite named in `after` succeeded."""

    name: str
    look: Callable[[Evidence], Found | None]
    """Function that performs the check; it returns None if there is nothing to report."""
    after: Literal["nothing", "training", "determinism"] = "nothing"
    can_fail: bool = True
    only_if_seen: bool = False
    """Whether to omit the line if the check was skipped."""


def findings(target: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Check an optimizer by training with it on the small problem.

    Raises:
        OptimizerError: the optimizer cannot be loaded, or rejects its hyper-parameters; raised before any training.
    """
    check_settings(target, settings)
    return check(Problem.of(target, settings))


def check(problem: Problem, checks: Sequence[Check] | None = None) -> Iterator[Finding]:
    """Run checks (by default, those for optimizers) on one thread; exceptions in user code become findings."""
    evidence = Evidence(problem)
    for entry in CHECKS if checks is None else checks:
        with _as_in_a_worker():
            found = _found(entry, evidence)
        if found is not None and not (entry.only_if_seen and found[0] == "skipped"):
            yield Finding(entry.name, *found)


def _found(entry: Check, evidence: Evidence) -> Found | None:
    if entry.after != "nothing" and evidence.alone.obstacle:
        return "skipped", f"not checked: it {evidence.alone.obstacle.partition(':')[0]}"
    if entry.after == "determinism" and not evidence.deterministic:
        return "skipped", "not checked: it is not deterministic, so training runs cannot be compared"
    try:
        return entry.look(evidence)
    except Exception as error:  # in a plain loop, too, an optimizer may raise any exception
        raised = f"it raised in a plain PyTorch loop: {evidence.problem.in_words(error)}"
        return ("failed", raised) if entry.can_fail else ("skipped", f"not checked: {raised}")


@contextlib.contextmanager
def _as_in_a_worker() -> Iterator[None]:
    """Use one thread and deterministic algorithms, as workers do to guarantee bit-identical results."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def _loads(evidence: Evidence) -> Found:
    problem = evidence.problem
    factory: Any = load_factory(problem.spec.target)
    settings = ", ".join(f"{name}={value}" for name, value in problem.given.items()) or "its defaults"
    return "passed", f"{getattr(factory, '__name__', problem.target)} takes {settings}"


def lowers_the_loss(evidence: Evidence) -> Found:
    problem, ending = evidence.problem, evidence.alone
    if ending.obstacle:
        return "failed", ending.obstacle + what_works(problem)
    assert ending.result is not None
    assert ending.result.weights is not None
    start, end, steps = problem.start(ending.result.trial.seed), ending.result.weights, ending.row.steps
    shared = start.keys() & end.keys()  # excludes non-persistent buffers and aliases of weights
    if largest_difference({name: start[name] for name in shared}, end) is None:
        return "failed", f"the weights are unchanged after {steps} steps" + what_works(problem)
    before, after = problem.loss(start), problem.loss(end)
    numbers = f"the loss on the training examples is {before:.7g} initially and {after:.7g} after {steps} steps"
    return ("passed", numbers) if after < before else ("failed", numbers + what_works(problem))


def deterministic(evidence: Evidence) -> Found:
    other, drawn = evidence.again
    differs = difference(evidence.alone, other)
    if differs is None:
        return "passed", "two training runs with the same seed agree bit for bit"
    source = f"; it draws from the global generator of {' and '.join(drawn)}" if drawn else ""
    return "failed", f"two training runs with the same seed differ: {differs}{source}"


def resume(evidence: Evidence) -> Found:
    resumed, refused = evidence.resumed
    if refused is not None:
        return "information", f"an interrupted trial is trained again from the start, with the same results: {refused}"
    differs = difference(evidence.alone, resumed)
    if differs is None:
        return "passed", "a trial resumed between two tasks agrees bit for bit with an uninterrupted one"
    return "failed", f"a trial resumed between two tasks differs from an uninterrupted one: {differs}"


def alone_and_among_others(evidence: Evidence) -> Found:
    differs = difference(evidence.alone, evidence.among)
    if differs is None:
        return "passed", "a trial trained alone agrees bit for bit with the same trial trained between two others"
    return "failed", f"a trial trained alone differs from the same trial trained between two others: {differs}"


def _diverged_neighbour(evidence: Evidence) -> Found:
    tried = []
    for name, changed in _absurd_settings(evidence.problem):
        ending, lost = evidence.among_diverged(changed)
        differs = difference(evidence.alone, ending)
        if differs is not None:
            neighbours = f"two others with {name}={ABSURD:g}"
            return "failed", f"a trial trained alone differs from the same trial between {neighbours}: {differs}"
        if lost:
            neighbours = f"two others that diverge ({name}={ABSURD:g})"
            return "passed", f"a trial trained alone agrees bit for bit with the same trial between {neighbours}"
        tried.append(name)
    if tried:
        return "skipped", f"not checked: setting {' or '.join(tried)} to {ABSURD:g} does not make a neighbour diverge"
    return "skipped", f"not checked: it has no {' or '.join(LOSING)} that can be set to {ABSURD:g}"


def _absurd_settings(problem: Problem) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each hyper-parameter in `LOSING` that accepts the value `ABSURD`, with settings that give it this value.

    If the optimizer is batched, its own hyper-parameters are included only if they can differ between members.
    Hyper-parameters of base optimizers are included under names such as `base.lr`.
    """
    takes = {*problem.hyperparameters, *inspect.signature(load_factory(problem.spec.target)).parameters}
    if problem.spec.lane == "batched":
        takes &= problem.spec.per_member
    bases = {outer: inner for outer, inner in problem.hyperparameters.items() if isinstance(inner, Mapping)}
    for name in LOSING:
        found: dict[str, dict[str, Any]] = {name: {name: ABSURD}} if name in takes else {}
        found |= {f"{o}.{name}": {o: {**base, name: ABSURD}} for o, base in bases.items() if name in base}
        for label, changed in found.items():
            try:
                problem.make(problem.network(problem.start(0)), changed=changed)
            except Exception:  # the constructor rejects the value
                continue
            yield label, changed


def _gradients(evidence: Evidence) -> Found:
    needs = evidence.problem.spec.needs
    if needs & {"closure", "create_graph", "model", "loss", "around_forward"}:
        return "skipped", "not checked: its gradients are recomputed for every step"
    steps = evidence.plain
    if not steps.changed_gradients:
        return "passed", "step() does not change the gradients"
    changes = (
        f"step() changes the gradients of {steps.changed_gradients} of {len(steps.training.parameters)} parameters"
    )
    if evidence.problem.spec.lane == "per-member":
        return "passed", f"{changes}, which is harmless because it receives copies"
    return "passed", f"{changes}, which is harmless because they are recomputed for each step"


def _rebinding(evidence: Evidence) -> Found | None:
    steps = evidence.plain
    if not steps.rebound:
        return None
    count = f"{steps.rebound} of {len(steps.training.parameters)} parameters"
    return (
        "information",
        f"step() replaces the memory of {count}, which is harmless because the lane copies the weights back",
    )


def _draws(evidence: Evidence) -> Found | None:
    if not (drawn := evidence.plain.drawn):
        return None
    source = f"the global generator of {' and '.join(drawn)}"
    return "information", f"from {source}, which is seeded from the trial's generator before each step"


def _asks_for(evidence: Evidence) -> Found | None:
    needs = _stepping(evidence.problem).needs
    wishes = [words for need, words in ASKS.items() if need in needs]
    return ("information", f"{'; '.join(wishes)}: provided") if wishes else None


def _stepping(problem: Problem) -> OptimizerSpec:
    """Return the spec of the optimizer that takes the steps: the checked one, or its base."""
    return problem.trial(0).spec if problem.spec.lane == "its base's" else problem.spec


def _lane(evidence: Evidence) -> Found:
    spec = _stepping(evidence.problem)
    yours = spec.source == "yours"
    note = (evidence.alone.row.note or "") if evidence.alone.result else ""
    if spec.lane == "elementwise" and yours and NOT_ELEMENTWISE in note:
        return "failed", note[note.index(NOT_ELEMENTWISE) :]
    if spec.lane == "elementwise":
        why = "the update of each weight depends only on its own history, so members share one instance"
        why += " (as declared, and verified in every trial's first task)" if yours else ""
    elif spec.lane == "batched":
        why = "it supports the member axis, so members share one instance"
    else:
        why = "an unmodified instance for each member"
        why += ", because it declares no other lane" if yours else ""
    whose = "" if evidence.problem.spec.lane == spec.lane else "its base's, "
    return "information", f"{whose}{spec.lane}: {why}"


def _state(evidence: Evidence) -> Found:
    row = evidence.alone.row
    size = row.optimizer_state_bytes / row.parameters
    return "information", f"{size:.1f} bytes per parameter ({size / BYTES_PER_NUMBER:.1f} float32 numbers)"


def _step_time(evidence: Evidence) -> Found:
    trainings = [PlainTraining(evidence.problem), PlainTraining(Problem.of("adamw", {}, evidence.problem.size))]
    blocks: list[list[float]] = [[], []]
    started = time.perf_counter()
    for training in trainings:
        training.begin_task()
        training.run(0, 2)  # the first step creates the state
    for block in range(TIMED_BLOCKS):
        for training, seconds in zip(trainings, blocks, strict=True):
            seconds.append(_block_seconds(training, block))
        if time.perf_counter() - started > TIMING_SECONDS:
            break
    own, adamw = (statistics.median(seconds) / BLOCK_STEPS for seconds in blocks)
    included = ", including evaluations of its closure" if "closure" in evidence.problem.spec.needs else ""
    return "information", f"{own / adamw:.1f} × AdamW's ({own * 1e6:.0f} and {adamw * 1e6:.0f} µs{included})"


def _block_seconds(training: PlainTraining, block: int) -> float:
    """Return the seconds taken by the updates of one block, excluding gradient computation."""
    seconds = 0.0
    for step in range(block * BLOCK_STEPS, (block + 1) * BLOCK_STEPS):
        training.gradients(step)
        with training.draws():
            before = time.perf_counter()
            training.step(step)
            seconds += time.perf_counter() - before
    return seconds


CHECKS: tuple[Check, ...] = (
    Check("loads", _loads),
    Check("lowers the loss", lowers_the_loss),
    Check("deterministic", deterministic, after="training"),
    Check("resume", resume, after="determinism"),
    Check("independence", alone_and_among_others, after="determinism"),
    Check("diverged neighbour", _diverged_neighbour, after="determinism"),
    Check("gradients", _gradients, after="training", can_fail=False),
    Check("p.data", _rebinding, after="training", can_fail=False, only_if_seen=True),
    Check("draws", _draws, after="determinism", can_fail=False, only_if_seen=True),
    Check("needs", _asks_for, can_fail=False, only_if_seen=True),
    Check("lane", _lane),
    Check("state", _state, after="training", can_fail=False),
    Check("step time", _step_time, after="training", can_fail=False),
)
