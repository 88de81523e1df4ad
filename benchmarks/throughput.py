"""Measure member-steps per second of the lock-step engine, of a plain training loop and of the matrix products alone.

    python benchmarks/throughput.py [--device cpu] [--members 1 10 30] [--rounds 5] [--seconds 1.0]
    python benchmarks/throughput.py --model cnn --optimizers sgd adamw --members 5
    python benchmarks/throughput.py --device cuda --members 1 10 100 1000
    python benchmarks/throughput.py --device cuda --members 100 --optimizers sgd --profile

The network is an MLP 784-100-10 with batches of 128 on permuted MNIST. `--model` selects another network: `cnn`, or one
from `benchmarks/networks.py`, which are trained like a user's models. There is then no floor, and `--batch` can be
small, so that the overhead of framework calls dominates. On a CPU, every variant runs on one process per core with one
thread each, and the members are spread over the processes; on a CUDA device there is one process. Variants are
interleaved: each round measures all of them once. The script prints median [min, max] over the rounds.

- `engine`: the work of `optbench run` between two evaluations: batches, gradients, updates, and reading the losses.
- `loop`: plain PyTorch, one network at a time, with float inputs in memory, autograd and unmodified `torch.optim`. For
  Shampoo (including `newton`, which computes roots by matrix products), the loop uses pytorch-optimizer's class, and
  both refresh all roots every 10 steps. On a CUDA device, the loop has at most 4 networks (1 for Shampoo), since its
  speed does not depend on their number.
- `floor`: only the matrix products of forward and backward passes, batched or one by one, whichever is faster. On a
  CUDA device, the time of the update's memory traffic is added, at the bandwidth of a large copy measured in the same
  rounds: weights and moments are read and written once, gradients are read once. Shampoo's factors are not counted.
- `unrecorded` (CUDA): the engine without CUDA graphs.

On a CUDA device the members have at most 10 seeds, as in a suite with a sweep, and share the batches of their seed; the
engine's peak memory is also printed. On a CPU every member has its own seed. A variant that raises an exception is left
out and the reason is printed; the exit code is then 1.

`--profile` instead prints how the time of the engine is divided between operations, without CUDA graphs, which hide the
names of operations.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing as mp
import multiprocessing.connection
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

BATCH, WIDTH, CLASSES = 128, 100, 10
REFRESH = 10
# The same refresh interval for every side, as in the loop.
SHAMPOO: dict[str, Any] = {"lr": 0.05, "epsilon": 1e-4, "precondition_frequency": REFRESH, "small_side": 0}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"lr": 0.1}),
    "adamw": ("adamw", {"lr": 1e-3}),
    "shampoo": ("shampoo", SHAMPOO),
    "newton": ("shampoo", SHAMPOO | {"root": "newton"}),
}
"""Printed name -> target and settings."""

Steps = Callable[[int, int], None]
"""steps(first, count)"""


MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "hidden": [WIDTH]},
    "cnn": {"kind": "cnn"},
    "transformer": {"kind": "networks:Transformer"},
    "unbiased-transformer": {"kind": "networks:Transformer", "bias": False},
    "unbiased-mlp": {"kind": "networks:Unbiased"},
    "residual": {"kind": "networks:Residual"},
    "batch-norm": {"kind": "networks:Residual", "norm": True},
}


@dataclass(frozen=True)
class Workload:
    """The model that is trained, and its batch size."""

    model: str = "mlp"
    batch: int = BATCH


def engine(optimizer: str, members: int, where: str, work: Workload, *, recorded: bool = True) -> Steps:
    """Return a function that takes steps of `members` members in lock-step."""
    import copy
    import dataclasses

    import torch

    from optbench.data import load
    from optbench.engine import Workspace
    from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
    from optbench.engine.lanes import LaneMember
    from optbench.engine.lockstep import LockStep, Machinery
    from optbench.engine.passes import Passes
    from optbench.engine.recording import Recordings
    from optbench.optimizers.registry import complete, find
    from optbench.streams import generator
    from optbench.suite import schema

    device = torch.device(where)
    experiment = schema.ExperimentSettings.model_validate(
        {
            "dataset": "mnist",
            "tasks": {"kind": "permuted"},
            "models": {"net": MODELS[work.model]},
            "protocol": {"batch_size": work.batch},
        }
    )
    workspace = Workspace.of(experiment, load("mnist"), 0, device)
    family, blueprint = workspace.family, workspace.blueprint("throughput", "net")
    network, layout = blueprint.network, blueprint.layout
    buffer = BatchBuffer(work.batch, Normaliser.of(workspace.dataset, experiment.protocol, device))
    rows = [layout.pack(blueprint.start(0, seed)).to(device) for seed in range(members)]
    ways = workspace.ways("net", blueprint)
    execution = dataclasses.replace(workspace.execution, together=ways.together)
    if not recorded:
        execution = dataclasses.replace(execution, record=None)
    recordings = Recordings(execution.record)
    gradients = ways.factory(buffer, recordings)
    target, settings = SETTINGS[optimizer]
    machinery = Machinery(find(target), network, layout, buffer, gradients, recordings, execution)
    whole = [LaneMember(complete(target, settings), None, generator(0, i, "optimizer"), 0) for i in range(members)]
    seeds = members if where == "cpu" else min(members, SEEDS)
    of_seed = [BatchStream(family.sequence(seed).train(0), work.batch, 0, seed, 0) for seed in range(seeds)]
    streams = [of_seed[i % seeds] for i in range(members)]
    passes = []
    if not blueprint.ours:
        passes = [Passes(copy.deepcopy(network), layout, row, lambda step, evaluation: step) for row in rows]
    stack = LockStep(machinery, rows, whole, streams, begin=True, passes=passes)

    def steps(first: int, count: int) -> None:
        stretch = stack.run(first, first + count, range(members))
        assert not stretch.raised, stretch.raised
        assert not recordings.refused, recordings.refused

    return steps


def loop(optimizer: str, members: int, where: str, work: Workload) -> Steps:
    """Return a function that takes steps of `members` networks in a plain training loop."""
    import torch
    from torch import nn

    from optbench.data import load
    from optbench.suite import schema

    dataset = load("mnist")
    inputs = ((dataset.train.inputs.flatten(1) / 255 - 0.1307) / 0.3081)[:, torch.randperm(784)].to(where)
    labels = dataset.train.targets.to(where)

    def make(parameters: Any) -> torch.optim.Optimizer:
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, **SETTINGS["sgd"][1])
        if optimizer == "adamw":
            return torch.optim.AdamW(parameters, **SETTINGS["adamw"][1])
        from pytorch_optimizer import Shampoo

        # With roots this stale, our learning rate would make this class diverge while it is timed.
        return Shampoo(parameters, lr=1e-5, preconditioning_compute_steps=REFRESH)

    def network() -> nn.Module:
        if work.model == "mlp":
            return nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)).to(where)
        settings = schema.ModelSettings.model_validate(MODELS[work.model])
        made: nn.Module = settings.make(dataset.inputs, CLASSES)
        return made.to(where)

    if work.model != "mlp":
        inputs = inputs.view(dataset.train.inputs.shape)
    networks = [network() for _ in range(members)]
    optimizers = [make(network.parameters()) for network in networks]
    orders = [torch.randperm(len(labels)).to(where) for _ in networks]
    per_epoch = len(labels) // work.batch

    def steps(first: int, count: int) -> None:
        for t in range(first, first + count):
            step(t)

    def step(t: int) -> None:
        start = t % per_epoch * work.batch
        for network, update, order in zip(networks, optimizers, orders, strict=True):
            batch = order[start : start + work.batch]
            update.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            update.step()

    return steps


MOMENTS = {"sgd": 0, "adamw": 2, "shampoo": 0, "newton": 0}
"""Number of state tensors as large as the weights."""
COPIED = 2**28
"""Number of values in the copy that measures the bandwidth: 1 GiB."""


def floor(optimizer: str, members: int, where: str, work: Workload, *, batched: bool) -> Steps:
    """Return a function that computes only the matrix products of the steps."""
    import torch

    x, w1, w2 = (torch.randn(members, *s, device=where) for s in ((BATCH, 784), (WIDTH, 784), (CLASSES, WIDTH)))
    z1, h, z2 = (torch.randn(members, BATCH, n, device=where) for n in (WIDTH, WIDTH, CLASSES))
    g1, g2, out1, out2, dh = (torch.empty_like(t) for t in (w1, w2, z1, z2, h))
    products = [(x, w1.mT, out1), (h, w2.mT, out2), (z2.mT, h, g2), (z2, w2, dh), (z1.mT, x, g1)]
    pairs = [[(a[i], b[i], out[i]) for a, b, out in products] for i in range(members)]

    def together(first: int, count: int) -> None:
        for _ in range(count):
            for a, b, out in products:
                torch.bmm(a, b, out=out)

    def one_by_one(first: int, count: int) -> None:
        for _ in range(count):
            for member in pairs:
                for a, b, out in member:
                    torch.mm(a, b, out=out)

    return together if batched else one_by_one


def copy(optimizer: str, members: int, where: str, work: Workload) -> Steps:
    """Return a function whose step is a large copy."""
    import torch

    source = torch.ones(COPIED, device=where)
    target = torch.empty_like(source)

    def steps(first: int, count: int) -> None:
        for _ in range(count):
            target.copy_(source)

    return steps


def traffic(optimizer: str) -> int:
    """Return the minimum number of bytes that the update of one member reads and writes."""
    weights = WIDTH * 784 + WIDTH + CLASSES * WIDTH + CLASSES
    return 4 * weights * (3 + 2 * MOMENTS[optimizer])


VARIANTS: dict[str, Callable[[str, int, str, Workload], Steps]] = {
    "engine": engine,
    "unrecorded": partial(engine, recorded=False),
    "loop": loop,
    "floor, batched": partial(floor, batched=True),
    "floor, one by one": partial(floor, batched=False),
    "copy": copy,
}
ON_CPU = ("engine", "loop", "floor, batched", "floor, one by one")
ON_CUDA = ("engine", "unrecorded", "loop", "floor, batched", "copy")
SEEDS = 10
WARM_UP = 6 * REFRESH
"""Number of untimed steps at the start, for buffers, caches and recordings of every kind of step."""
LOOPED = 4
"""Maximum number of networks in the loop on a CUDA device; one for Shampoo."""


def worker(connection: multiprocessing.connection.Connection) -> None:
    """Build and time variants as ordered over the connection; send back each result, or an exception as one line."""
    import torch

    torch.set_num_threads(1)
    steps: Steps | None = None
    wait: Callable[[], object] = lambda: None  # noqa: E731
    t = 0
    while True:
        order = connection.recv()
        try:
            result: float = 0
            if order[0] == "build":
                _, variant, optimizer, members, where, work, t = order
                steps = None
                gc.collect()
                if where != "cpu":
                    wait = torch.cuda.synchronize
                    torch.cuda.init()  # type: ignore[no-untyped-call]  # untyped in torch
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                steps = VARIANTS[variant](optimizer, members, where, work)
                steps(0, t)
                wait()
                result = torch.cuda.max_memory_allocated() if where != "cpu" else 0
            elif order[0] == "time":
                assert steps is not None
                count, started = order[1], time.perf_counter()
                steps(t, count)
                wait()
                t += count
                result = time.perf_counter() - started
        except Exception as error:
            connection.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        else:
            connection.send(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10, 30])
    parser.add_argument("--optimizers", nargs="+", default=list(SETTINGS))
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--batch", type=int, default=BATCH, help="examples per step, for models other than `mlp`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each measurement")
    parser.add_argument("--profile", action="store_true", help="print the engine's most expensive operations")
    arguments = parser.parse_args()
    work = Workload(arguments.model, arguments.batch)
    if work.model == "mlp" and work.batch != BATCH:
        parser.error(f"argument --batch: expected {BATCH} with --model mlp, for its floor, got {work.batch}")
    import torch

    cores = len(os.sched_getaffinity(0))
    what = f"{platform.processor() or platform.machine()}, {cores} processes of one thread"
    if arguments.device != "cpu":
        cores, what = 1, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    print(f"{what}, torch {torch.__version__}")
    what = f"MLP 784-{WIDTH}-{CLASSES}" if work.model == "mlp" else f"{work.model}, {MODELS[work.model]}"
    print(f"{what}, batch {work.batch}; member-steps/s: median [min, max] of {arguments.rounds} rounds\n")
    if arguments.profile:
        for optimizer, members in itertools.product(arguments.optimizers, arguments.members):
            print(f"\n{optimizer}, {members} members\n{profile(optimizer, members, arguments.device, work)}")
        return
    warm_up = WARM_UP if work.model == "mlp" else REFRESH
    names: tuple[str, ...] = ON_CPU if arguments.device == "cpu" else ON_CUDA
    if work.model != "mlp":
        names = tuple(name for name in names if name != "copy" and "floor" not in name)
    columns = COLUMNS[: None if "unrecorded" in names else -1]
    if work.model != "mlp":
        columns = [column for column in columns if "floor" not in column[0]]
    print(f"{'optimizer':10}{'members':>8}" + "".join(f"{name:>{width}}" for name, width in columns))
    complete = True
    with Crew(names, cores, arguments.device, work) as crew:
        for optimizer, members in itertools.product(arguments.optimizers, arguments.members):
            found = measured(crew, optimizer, members, arguments.rounds, arguments.seconds, warm_up=warm_up)
            print(line(found, columns), flush=True)
            complete &= not found.missing
    sys.exit(0 if complete else 1)


COLUMNS = [("engine", 31), ("loop", 26), ("floor", 31), ("engine/loop", 21), ("engine/floor", 20), ("unrecorded", 28)]


@dataclass(frozen=True)
class Measurement:
    """The measurements of one cohort with every variant, taken in turn."""

    optimizer: str
    members: int
    speeds: Mapping[str, Sequence[float]]
    """Variant -> member-steps per second in each round. `floor` is the faster floor, with the memory traffic."""
    peak: int
    """Peak bytes of device memory allocated by the engine, after the first steps; 0 on a CPU."""
    missing: Mapping[str, str]
    """Variant -> the reason why it was not measured."""

    def ratios(self, other: str) -> list[float]:
        """Return the engine's speed relative to another variant in each round; empty if either was not measured."""
        pairs = zip(self.speeds.get("engine", ()), self.speeds.get(other, ()), strict=False)
        return [a / b for a, b in pairs]

    def cells(self) -> dict[str, str]:
        """Return median [min, max] of the measured values, by column."""
        found = {name: (values, "{:,.0f}") for name, values in self.speeds.items()}
        found |= {f"engine/{other}": (self.ratios(other), "{:.2f}") for other in ("loop", "floor")}
        return {name: summary(values, pattern) for name, (values, pattern) in found.items() if values}


def measured(
    crew: Crew,
    optimizer: str,
    members: int,
    rounds: int,
    seconds: float,
    *,
    deadline: float = float("inf"),
    skip: Collection[str] = (),
    warm_up: int = WARM_UP,
) -> Measurement:
    """Time every variant in turn, each for about `seconds` per round.

    A variant that raises an exception, or does not finish by `deadline` (as given by `time.perf_counter`), is left out
    and listed in `missing`. Rounds that would end after the deadline are not started. If no round fits, the result
    comes from the few steps that estimate the time of a step. If the engine cannot be measured, nothing else is.

    skip: variants that are not measured.
    warm_up: number of untimed steps at the start.
    """
    on_cuda = crew.device != "cpu"
    looped = min(members, 1 if SETTINGS[optimizer][0] == "shampoo" else LOOPED) if on_cuda else members
    names = [name for name in crew.names if name not in skip]
    counts = {name: looped if name == "loop" else members for name in names}
    missing: dict[str, str] = {}

    def alive(action: Callable[[str], float]) -> dict[str, float]:
        found = {}
        for name in names:
            if name in missing:
                continue
            try:
                found[name] = action(name)
            except TeamError as error:
                missing[name] = str(error)
        return found

    def build(name: str) -> float:
        crew[name].build(optimizer, shares(counts[name], crew.processes), warm_up)
        return 0.0

    alive(build)
    peaks = alive(lambda name: sum(crew[name].answers(deadline)))
    if "engine" in missing:
        return Measurement(optimizer, members, {}, 0, missing)
    interval = alive(lambda name: crew[name].time(REFRESH, deadline))
    # Complete refresh intervals, so that every measurement includes its share of roots.
    steps = {name: max(1, round(seconds / each)) * REFRESH for name, each in interval.items()}
    a_round = sum(each * steps[name] / REFRESH for name, each in interval.items())
    taken: dict[str, list[float]] = {name: [] for name in names}  # seconds per step, one value per round
    for turn in range(rounds):
        fits = time.perf_counter() + a_round < deadline
        if turn and not fits:
            break
        if fits:
            found = alive(lambda name: crew[name].time(steps[name], deadline) / steps[name])
        else:
            found = {name: each / REFRESH for name, each in interval.items()}
        for name, each in found.items():
            taken[name].append(each)
    taken = {name: values for name, values in taken.items() if values}
    floors = [name for name in taken if "floor" in name]
    if floors and (not on_cuda or "copy" in taken):
        taken["floor"] = taken[min(floors, key=lambda name: statistics.median(taken[name]))]
    if on_cuda and "floor" in taken:
        moved = members * traffic(optimizer) / (8 * COPIED)  # relative to the bytes that a copy reads and writes
        pairs = zip(taken["floor"], taken["copy"], strict=False)
        taken["floor"] = [products + moved * copied for products, copied in pairs]
    speeds = {name: [counts.get(name, members) / each for each in values] for name, values in taken.items()}
    return Measurement(optimizer, members, speeds, int(peaks.get("engine", 0)), missing)


def line(found: Measurement, columns: Sequence[tuple[str, int]]) -> str:
    """Return a row of the table."""
    cells = found.cells()
    row = "".join(f"{cells.get(name, '-'):>{width}}" for name, width in columns)
    peak = f"  peak {found.peak / 2**20:,.0f} MiB" if found.peak else ""
    reasons = "".join(f"\n    {name} not measured: {reason}" for name, reason in found.missing.items())
    return f"{found.optimizer:10}{found.members:8}{row}{peak}{reasons}"


def profile(optimizer: str, members: int, where: str, work: Workload) -> str:
    """Return a table of operations, the most expensive first."""
    import torch
    from torch.profiler import ProfilerActivity

    torch.set_num_threads(1)
    steps = engine(optimizer, members, where, work, recorded=False)
    steps(0, WARM_UP)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if where != "cpu" else [])]
    with torch.profiler.profile(activities=activities) as found:
        steps(WARM_UP, 2 * REFRESH)
    order = "self_cpu_time_total" if where == "cpu" else "self_cuda_time_total"
    table: str = found.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50)
    return table


def shares(members: int, processes: int) -> list[int]:
    """Return the number of members for each process that has any."""
    cuts = [members * i // processes for i in range(processes + 1)]
    return [b - a for a, b in itertools.pairwise(cuts) if b > a]


LATE = "not finished in time"


class TeamError(Exception):
    """A variant raised an exception, ended, or took too long; its processes are not used again."""


class Crew:
    """One team per variant, kept between cohorts because a process takes seconds to start (torch, CUDA, data)."""

    def __init__(self, names: Sequence[str], processes: int, device: str, work: Workload = Workload()) -> None:
        self.names, self.processes, self.device, self.work = names, processes, device, work
        self._teams: dict[str, Team] = {}

    def __getitem__(self, name: str) -> Team:
        if name not in self._teams or self._teams[name].broken:
            self._teams[name] = Team(name, self.processes, self.device, self.work)
        return self._teams[name]

    def start(self) -> None:
        """Start all processes and wait for them, so that the deadline of a cohort does not include their start."""
        for team in [self[name] for name in self.names]:
            team.ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for team in self._teams.values():
            team.stop()


class Team:
    """The processes that measure one variant."""

    def __init__(self, variant: str, processes: int, device: str, work: Workload) -> None:
        context = mp.get_context("spawn")
        self.variant, self.device, self.work, self.broken = variant, device, work, False
        self.connections, self.processes = [], []
        self.busy: list[multiprocessing.connection.Connection] = []
        """The connections of the processes that have members."""
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that our end reaches end of file when the process dies
            self.connections.append(ours)
            self.processes.append(process)

    def ready(self) -> None:
        """Wait until every process has imported torch."""
        self.busy = self.connections
        for connection in self.busy:
            connection.send(("start",))
        self.answers(float("inf"))

    def build(self, optimizer: str, shares: list[int], warm_up: int) -> None:
        """Make the first processes build a share each and take `warm_up` steps; `answers` returns the peak memory."""
        self.busy = self.connections[: len(shares)]
        for connection, share in zip(self.busy, shares, strict=True):
            connection.send(("build", self.variant, optimizer, share, self.device, self.work, warm_up))

    def time(self, steps: int, deadline: float) -> float:
        """Return the seconds until the last process has taken `steps` steps."""
        for connection in self.busy:
            connection.send(("time", steps))
        return max(self.answers(deadline))

    def answers(self, deadline: float) -> list[float]:
        found: list[float] = []
        for connection in self.busy:
            left = deadline - time.perf_counter()
            try:
                if not connection.poll(None if left == float("inf") else max(0.0, left)):
                    raise self._broken(LATE)
                answer = connection.recv()
            except (EOFError, ConnectionError):
                raise self._broken("its process ended") from None
            if isinstance(answer, str):
                raise self._broken(answer)
            found.append(answer)
        return found

    def _broken(self, reason: str) -> TeamError:
        self.broken = True
        self.stop()
        return TeamError(reason)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()  # faster than a regular exit, and the processes have nothing to save
            process.join()


def summary(values: Sequence[float], pattern: str) -> str:
    low, middle, high = (pattern.format(v) for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}, {high}]"


if __name__ == "__main__":
    main()
