"""The measurement of one optimizer on one network, in this process (see `worker`)."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from optbench.costing import memory, networks
from optbench.costing.estimate import estimate
from optbench.costing.job import CostJob
from optbench.costing.result import Holding, Row, Timing
from optbench.costing.sizes import SIZES, Size
from optbench.costing.stopwatch import Clock, RegionTimer
from optbench.engine.contents import parts
from optbench.engine.lanes.per_member import StepCall
from optbench.engine.lanes.reach import state_bytes
from optbench.optimizers.explain import in_words
from optbench.optimizers.make import maker, resolve_made, resolve_spec
from optbench.optimizers.registry import complete, find, user_targets
from optbench.optimizers.spec import OptimizerSpec
from optbench.targets import source_hash

SHORT = 2
"""Number of steps between refreshes while measuring; the cost of refreshes is scaled to the configured interval."""
SHOWN_FACTORS = 4
LEAST = 1 << 30
"""Minimum memory limit of a worker in bytes, because making the estimate needs memory, too."""


class Training:
    """A plain training loop: a network, its batches, and an optimizer that is called as its declared needs require."""

    def __init__(self, job: CostJob, spec: OptimizerSpec, settings: Mapping[str, Any], size: Size) -> None:
        self._size, self._device = size, torch.device(job.device)
        torch.manual_seed(0)
        self.network = networks.network(size, self._device)
        self.optimizer = make(spec, settings, self.network, job.steps)
        made = resolve_made(spec, self.optimizer, settings)
        self._needs, self._call = made.needs, StepCall.of(made, self.optimizer)
        self._given = not (made.needs & {"loss", "create_graph", "model", "around_forward"} or self._call.loss)
        if "modes" in self._needs:
            self.optimizer.train()  # type: ignore[attr-defined]
        self.loss = 0.0

    def step(self, number: int, watch: RegionTimer) -> dict[str, float]:
        """Take step `number`, and return the time, in seconds, of each part of the step."""
        batch = networks.batch(self._size, number, self._device)

        def evaluated(*_: object, **__: object) -> Tensor:
            with watch.gradient(), self._around(), torch.enable_grad():
                loss = networks.loss(self.network(*batch.inputs), batch.targets)
                self.network.zero_grad()
                if "loss" in self._needs:
                    return loss
                loss.backward(create_graph="create_graph" in self._needs)  # type: ignore[no-untyped-call]
            return loss.detach()

        with watch.step() as seconds:
            loss = evaluated() if "loss" not in self._needs or self._call.loss else None
            self._call(self.optimizer, evaluated, loss if self._call.loss else None)
        self.loss = float("nan") if loss is None else float(loss.detach())
        if self._needs & {"create_graph", "loss"}:
            self.network.zero_grad()
        return seconds

    def _around(self) -> AbstractContextManager[Any]:
        optimizer: Any = self.optimizer
        return optimizer.around_forward() if "around_forward" in self._needs else contextlib.nullcontext()


def make(spec: OptimizerSpec, settings: Mapping[str, Any], model: nn.Module, steps: int) -> torch.optim.Optimizer:
    """Construct an optimizer for all parameters of a network.

    Substitutes are passed for the values that only a trial can provide, such as the total number of steps.
    """
    given = {"generator": torch.Generator(), "model": model, "total_steps": steps, "examples": steps}
    return maker(spec, settings, given)(list(model.parameters()))


def measured(job: CostJob) -> Iterator[Row]:
    """Yield rows with the memory estimate and, if the estimate is within the limit, the measurements.

    The last row is final; a row with the results of the first step may precede it. Exceptions are recorded in a row
    instead of being raised.
    """
    idle = memory.resident()
    size = SIZES[job.size].with_batch(job.batch)
    row: dict[str, Any] = {"optimizer": job.name, "target": job.target, "twin": job.twin, "size": job.size}
    row |= {"tokens": size.tokens, "idle": idle, "parameters": 0, "settings": dict(job.settings)}
    try:
        settings = complete(job.target, job.settings)
        row |= {"source_hash": source_hash(sorted(user_targets(job.target, settings)))}
        spec = resolve_spec(find(job.target), settings)
        row |= {"settings": settings, "parameters": sum(p.numel() for p in networks.network(size, "meta").parameters())}
        users, on_cpu = spec.source == "yours", job.device == "cpu"
        if on_cpu:  # before running a user's code, which may allocate any amount
            memory.bound(max(job.limit, LEAST))
        told = estimate(size, lambda model: make(spec, settings, model, job.steps), users=users, planned=on_cpu)
        row |= {"needed": told.total + (idle if on_cpu else 0), "planned_state": told.state}
        if row["needed"] > job.limit:
            yield Row(**row, status="too large")
            return
        for found in _measured(job, spec, settings, size):
            yield Row(**row | found)
    except Exception as error:  # a user's optimizer may raise anything
        text = in_words(error, job.target, job.settings)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in text:
            yield Row(**row, status="too large", note="it exceeded the memory estimate and was stopped at the limit")
            return
        yield Row(**row, status="failed", note=text)


def _measured(job: CostJob, spec: OptimizerSpec, settings: Mapping[str, Any], size: Size) -> Iterator[dict[str, Any]]:
    """Yield the results of the first step, then the results of all steps."""
    every = settings.get(spec.interval) if spec.interval else None
    every = every if isinstance(every, int) and every > 1 else None
    used = {**settings, spec.interval: SHORT} if every else settings
    training = Training(job, spec, used, size)
    device = torch.device(job.device)
    numbers = itertools.count()
    first: dict[str, float] = {}
    timings = []
    for threads in job.threads:
        torch.set_num_threads(threads)
        clock: Clock = "device" if device.type == "cuda" else "processor" if threads == 1 else "wall"
        watch = RegionTimer(clock)
        if not first:
            first = training.step(next(numbers), watch)
            yield _known(training, spec, first) | {"status": "started"}
            begun = time.perf_counter()
            for number in itertools.islice(numbers, job.warm_up):
                if time.perf_counter() - begun > job.seconds:
                    break
                training.step(number, watch)
        after = next(numbers)
        numbers = itertools.count(after)
        steps, renewed = _steps(job, training, watch, numbers, bool(every))
        timings.append(_timing(threads, clock, after, steps, every, renewed))
    bad = training.loss != training.loss
    yield _known(training, spec, first) | {
        "split": any(t.statistics + t.roots > 0 for t in timings),
        "timings": tuple(timings),
        "note": "the loss is not a number, so the times may not be those of normal training" if bad else "",
    }


def _known(training: Training, spec: OptimizerSpec, first: Mapping[str, float]) -> dict[str, Any]:
    """Return the fields of a row that are known after the first step: peak memory, state, and the first step's time."""
    device = next(training.network.parameters()).device
    return {
        "peak": memory.peak() if device.type == "cpu" else torch.cuda.max_memory_allocated(device),
        "state": state_bytes(training.optimizer, training.network, users=spec.source == "yours"),
        "holdings": tuple(_holdings(training)),
        "first": sum(seconds for name, seconds in first.items() if name != "gradient"),
    }


def _steps(
    job: CostJob, training: Training, watch: RegionTimer, numbers: Iterator[int], paired: bool
) -> tuple[list[dict[str, float]], float | None]:
    """Take `job.steps` steps, or fewer if time runs out, and return the times of each step's parts.

    Also return the mean share of roots renewed per step; None if the optimizer does not store the ages of roots.

    paired: whether every other step has a refresh. If so, one more step is taken if time runs out after an odd number
        of steps.
    """
    found: list[dict[str, float]] = []
    shares: list[float] = []
    begun = time.perf_counter()
    while len(found) < job.steps and (
        len(found) < SHORT or time.perf_counter() - begun < job.seconds or (paired and len(found) % SHORT)
    ):
        found.append(training.step(next(numbers), watch))
        shares += _renewed(training.optimizer)
    return found, statistics.mean(shares) if shares else None


def _renewed(optimizer: torch.optim.Optimizer) -> Iterator[float]:
    """Yield the share of Shampoo's roots that the last step renewed, i.e. those of age 0.

    Yield nothing if the optimizer does not store the ages of roots.
    """
    ages = [
        v.flatten()
        for s in optimizer.state.values()
        if isinstance(s, Mapping)
        for k, v in s.items()
        if "_age" in str(k)
    ]
    if ages:
        yield (torch.cat(ages) == 0).double().mean().item()


def _timing(
    threads: int,
    clock: Clock,
    after: int,
    steps: Sequence[Mapping[str, float]],
    every: int | None,
    renewed: float | None,
) -> Timing:
    """Summarise measured steps; mean times are weighted as if one step in `every` had a refresh.

    steps: the times of the measured steps; if `every` is not None, every other step has a refresh.
    every: number of steps between refreshes in normal training; None if there are no refreshes.
    """
    whole = [s["statistics"] + s["roots"] + s["update"] for s in steps]
    groups = [list(range(len(steps)))]
    if every:
        groups = sorted(([*range(0, len(steps), 2)], [*range(1, len(steps), 2)]), key=lambda g: _mean(whole, g))
    ordinary = groups[0]

    def amortised(name: str) -> float:
        values = [s[name] for s in steps]
        if not every:
            return _mean(values, ordinary)
        return ((every - 1) * _mean(values, ordinary) + _mean(values, groups[1])) / every

    plain = [whole[i] for i in ordinary]
    return Timing(
        threads=threads,
        clock=clock,
        after=after,
        steps=len(steps),
        gradient=statistics.mean(s["gradient"] for s in steps),
        statistics=amortised("statistics"),
        roots=amortised("roots"),
        update=amortised("update"),
        ordinary=statistics.median(plain),
        low=min(plain),
        high=max(plain),
        refresh=_mean(whole, groups[1]) if every else None,
        every=every,
        renewed=renewed,
    )


def _mean(values: Sequence[float], places: Sequence[int]) -> float:
    return statistics.mean(values[i] for i in places)


def _holdings(training: Training) -> Iterator[Holding]:
    """Yield the size of the state for each kind of parameter: embeddings and heads, matrices, and vectors.

    State that the optimizer does not store in `state[parameter]` is not counted.
    """
    named = dict(training.network.named_parameters())
    kinds = networks.kinds(training.network)
    for kind in dict.fromkeys(kinds.values()):
        own = [p for name, p in named.items() if kinds[name] == kind]
        bytes_, sides = 0, set[int]()
        for p in own:
            held = list(_tensors(training.optimizer.state.get(p, {})))
            bytes_ += sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())
            squares = (t.shape[-1] for t in held if t.ndim > 1 and t.shape[-1] == t.shape[-2] and t.shape != p.shape)
            sides |= {n for n in squares if n > 1}
        yield Holding(
            kind=kind,
            weights=sum(p.numel() for p in own),
            bytes=bytes_,
            factors=tuple(sorted(sides, reverse=True)[:SHOWN_FACTORS]),
        )


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif not isinstance(held, int | float | str | bool | type(None)):
        for _, inner in parts(held):
            yield from _tensors(inner)
