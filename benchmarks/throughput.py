"""Member-steps per second of the lock-step engine, beside a loop written by hand and beside the bare products.

    python benchmarks/throughput.py [--device cpu] [--members 1 10 30] [--rounds 5] [--seconds 1.0]
    python benchmarks/throughput.py --device cuda --members 1 10 100 1000
    python benchmarks/throughput.py --device cuda --members 100 --optimizers sgd --profile

Network: MLP 784-100-10, batch 128, permuted MNIST. On a CPU every variant runs on one process per core with one thread
each, and the members are spread over the processes; on a CUDA device there is one process. Variants are interleaved:
each round measures all of them once, and what is printed is the median over rounds with the smallest and the largest.

- `engine`: what `optbench run` does between two evaluations: batches, gradients, updates, and reading the losses.
- `loop`: plain PyTorch, one network after the other: float inputs in memory, autograd, `torch.optim` as it comes.
  For Shampoo (`newton`: with roots by products) the loop uses pytorch-optimizer's, and both refresh all roots every 10
  steps. On a CUDA device it has at most 4 networks, as its member-steps per second do not depend on how many there are.
- `floor`: only the matrix products of forward and backward, batched or one by one, whichever is faster. On a CUDA
  device the time of the update's memory traffic is added, at the bandwidth of a large copy measured in the same rounds:
  weights and moments read and written once, gradients read once. Shampoo's factors are left out.
- `unrecorded` (CUDA): the engine without CUDA graphs.

On a CUDA device the members are of at most 10 seeds, as in a suite with a sweep, and share the batches of their seed;
the engine's peak memory is printed, too. On a CPU every member has a seed of its own.

`--profile` prints instead which operations the time of the engine goes to, without CUDA graphs, which hide their names.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing as mp
import multiprocessing.connection
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

BATCH, WIDTH, CLASSES = 128, 100, 10
REFRESH = 10
# One refresh interval for every side, as in the loop.
SHAMPOO: dict[str, Any] = {"lr": 0.05, "epsilon": 1e-4, "precondition_frequency": REFRESH, "small_side": 0}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"lr": 0.1}),
    "adamw": ("adamw", {"lr": 1e-3}),
    "shampoo": ("shampoo", SHAMPOO),
    "newton": ("shampoo", SHAMPOO | {"root": "newton"}),
}
"""By the name it is printed under: target and settings."""

Steps = Callable[[int, int], None]
"""steps(first, count)"""


def engine(optimizer: str, members: int, where: str, *, recorded: bool = True) -> Steps:
    """The steps of `members` members in lock-step."""
    import dataclasses

    import torch

    from optbench.data import load
    from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
    from optbench.engine.execution import Execution
    from optbench.engine.gradients import gradients_for
    from optbench.engine.lanes import LaneMember
    from optbench.engine.lockstep import LockStep, Machinery
    from optbench.engine.recording import Recordings
    from optbench.engine.stack import Layout
    from optbench.models import build, initialise
    from optbench.optimizers.registry import complete, find
    from optbench.streams import generator
    from optbench.suite import schema
    from optbench.tasks import TaskFamily

    protocol, device = schema.Protocol(batch_size=BATCH), torch.device(where)
    dataset = load("mnist")
    family = TaskFamily(schema.TaskSettings.of("permuted"), dataset, protocol, 0, device)
    network = build(schema.ModelSettings.of("mlp", hidden=[WIDTH]), family.inputs, family.classes)
    layout = Layout.of({name: p.shape for name, p in network.named_parameters()})
    buffer = BatchBuffer(BATCH, Normaliser.of(dataset, protocol, device))
    rows = [layout.pack(initialise(network, generator(0, seed, "initial weights"))) for seed in range(members)]
    execution = Execution.on(device)
    if not recorded:
        execution = dataclasses.replace(execution, record=None)
    recordings = Recordings(execution.record)
    gradients = gradients_for(network, layout, buffer, recordings, together=execution.together)
    target, settings = SETTINGS[optimizer]
    machinery = Machinery(find(target), network, layout, buffer, gradients, recordings, execution)
    whole = [LaneMember(complete(target, settings), None, generator(0, i, "optimizer"), 0) for i in range(members)]
    seeds = members if where == "cpu" else min(members, SEEDS)
    of_seed = [BatchStream(family.sequence(seed).train(0), BATCH, 0, seed, 0) for seed in range(seeds)]
    streams = [of_seed[i % seeds] for i in range(members)]
    stack = LockStep(machinery, [row.to(device) for row in rows], whole, streams, begin=True)

    def steps(first: int, count: int) -> None:
        stretch = stack.run(first, first + count, range(members))
        assert not stretch.raised
        assert not recordings.refused, recordings.refused

    return steps


def loop(optimizer: str, members: int, where: str) -> Steps:
    """The steps of each of `members` networks, as one would write them by hand."""
    import torch
    from torch import nn

    from optbench.data import load

    dataset = load("mnist")
    inputs = ((dataset.train.inputs.flatten(1) / 255 - 0.1307) / 0.3081)[:, torch.randperm(784)].to(where)
    labels = dataset.train.targets.to(where)

    def make(parameters: Any) -> torch.optim.Optimizer:
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, **SETTINGS["sgd"][1])
        if optimizer == "adamw":
            return torch.optim.AdamW(parameters, **SETTINGS["adamw"][1])
        from pytorch_optimizer import Shampoo

        # A rate at which it goes on for as long as it is timed: with roots this stale it diverges at ours.
        return Shampoo(parameters, lr=1e-5, preconditioning_compute_steps=REFRESH)

    networks = [
        nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)).to(where) for _ in range(members)
    ]
    optimizers = [make(network.parameters()) for network in networks]
    orders = [torch.randperm(len(labels)).to(where) for _ in networks]
    per_epoch = len(labels) // BATCH

    def steps(first: int, count: int) -> None:
        for t in range(first, first + count):
            step(t)

    def step(t: int) -> None:
        start = t % per_epoch * BATCH
        for network, update, order in zip(networks, optimizers, orders, strict=True):
            batch = order[start : start + BATCH]
            update.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # of torch
            update.step()

    return steps


MOMENTS = {"sgd": 0, "adamw": 2, "shampoo": 0, "newton": 0}
"""Matrices of state as large as the weights."""
COPIED = 2**28
"""Numbers in the copy that the bandwidth is measured by: 1 GiB."""


def floor(optimizer: str, members: int, where: str, *, batched: bool) -> Steps:
    """The matrix products of the steps, and nothing else."""
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


def copy(optimizer: str, members: int, where: str) -> Steps:
    """A large copy as one step."""
    import torch

    source = torch.ones(COPIED, device=where)
    target = torch.empty_like(source)

    def steps(first: int, count: int) -> None:
        for _ in range(count):
            target.copy_(source)

    return steps


def traffic(optimizer: str) -> int:
    """Bytes that the update of one member reads and writes at least."""
    weights = WIDTH * 784 + WIDTH + CLASSES * WIDTH + CLASSES
    return 4 * weights * (3 + 2 * MOMENTS[optimizer])


VARIANTS: dict[str, Callable[[str, int, str], Steps]] = {
    "engine": engine,
    "unrecorded": lambda optimizer, members, where: engine(optimizer, members, where, recorded=False),
    "loop": loop,
    "floor, batched": lambda optimizer, members, where: floor(optimizer, members, where, batched=True),
    "floor, one by one": lambda optimizer, members, where: floor(optimizer, members, where, batched=False),
    "copy": copy,
}
ON_CPU = ("engine", "loop", "floor, batched", "floor, one by one")
ON_CUDA = ("engine", "unrecorded", "loop", "floor, batched", "copy")
SEEDS = 10
WARM_UP = 6 * REFRESH
"""Steps before any is timed: buffers, caches, recordings of every kind of step."""
LOOPED = 4
"""Networks of the loop on a CUDA device."""


def worker(connection: multiprocessing.connection.Connection) -> None:
    """Builds what it is told and times it when it is told."""
    import torch

    torch.set_num_threads(1)
    steps: Steps = lambda first, count: None  # noqa: E731
    wait: Callable[[], object] = lambda: None  # noqa: E731
    t = 0
    while True:
        order = connection.recv()
        if order is None:
            return
        if order[0] == "build":
            _, variant, optimizer, members, where = order
            if where != "cpu":
                wait = torch.cuda.synchronize
            steps, t = VARIANTS[variant](optimizer, members, where), WARM_UP
            steps(0, t)
            wait()
            connection.send(torch.cuda.max_memory_allocated() if where != "cpu" else 0)
        else:
            count, started = order[1], time.perf_counter()
            steps(t, count)
            wait()
            t += count
            connection.send(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10, 30])
    parser.add_argument("--optimizers", nargs="+", default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--profile", action="store_true", help="what the engine's time goes to")
    arguments = parser.parse_args()
    import torch

    cores = len(os.sched_getaffinity(0))
    what = f"{platform.processor() or platform.machine()}, {cores} processes of one thread"
    if arguments.device != "cpu":
        cores, what = 1, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    print(f"{what}, torch {torch.__version__}")
    print(f"MLP 784-{WIDTH}-{CLASSES}, batch {BATCH}; member-steps/s: median [min, max] of {arguments.rounds} rounds\n")
    if arguments.profile:
        for optimizer, members in itertools.product(arguments.optimizers, arguments.members):
            print(f"\n{optimizer}, {members} members\n{profile(optimizer, members, arguments.device)}")
        return
    columns = COLUMNS[: None if arguments.device != "cpu" else -1]
    print(f"{'optimizer':10}{'members':>8}" + "".join(f"{name:>{width}}" for name, width in columns))
    for optimizer, members in itertools.product(arguments.optimizers, arguments.members):
        report(optimizer, members, cores, arguments)


COLUMNS = [("engine", 31), ("loop", 26), ("floor", 31), ("engine/loop", 21), ("engine/floor", 20), ("unrecorded", 28)]


def report(optimizer: str, members: int, cores: int, arguments: argparse.Namespace) -> None:
    """Measure all variants for one cohort and print a line."""
    rounds, seconds, device = arguments.rounds, arguments.seconds, arguments.device
    names = ON_CPU if device == "cpu" else ON_CUDA
    counts = {name: min(members, LOOPED) if name == "loop" and device != "cpu" else members for name in names}
    teams = {name: Team(name, optimizer, shares(counts[name], cores), device) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}  # seconds a step, one value a round
    steps = {name: max(REFRESH, round(seconds / team.time(REFRESH) * REFRESH)) for name, team in teams.items()}
    for _ in range(rounds):
        for name, team in teams.items():
            # Whole refresh intervals, so that every measurement holds its share of roots.
            count = -(-steps[name] // REFRESH) * REFRESH
            taken[name].append(team.time(count) / count)
    for team in teams.values():
        team.stop()
    best = min((name for name in names if "floor" in name), key=lambda name: statistics.median(taken[name]))
    taken["floor"] = taken[best]
    if device != "cpu":
        moved = members * traffic(optimizer) / (8 * COPIED)  # of the bytes of a copy, which reads and writes
        taken["floor"] = [
            products + moved * copied for products, copied in zip(taken[best], taken["copy"], strict=True)
        ]
    speeds = {name: [counts.get(name, members) / each for each in taken[name]] for name in taken}
    cells: dict[str, str] = {
        name: summary(speeds[name], "{:,.0f}") for name in ("engine", "loop", "floor", "unrecorded") if name in speeds
    }
    for other in ("loop", "floor"):
        ratios = [a / b for a, b in zip(speeds["engine"], speeds[other], strict=True)]
        cells[f"engine/{other}"] = summary(ratios, "{:.2f}")
    line = "".join(f"{cells[name]:>{width}}" for name, width in COLUMNS if name in cells)
    peak = f"  peak {teams['engine'].peak / 2**20:,.0f} MiB" if device != "cpu" else ""
    print(f"{optimizer:10}{members:8}{line}{peak}", flush=True)


def profile(optimizer: str, members: int, where: str) -> str:
    """A table of operations, the dearest first."""
    import torch
    from torch.profiler import ProfilerActivity

    torch.set_num_threads(1)
    steps = engine(optimizer, members, where, recorded=False)
    steps(0, WARM_UP)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if where != "cpu" else [])]
    with torch.profiler.profile(activities=activities) as found:
        steps(WARM_UP, 2 * REFRESH)
    order = "self_cpu_time_total" if where == "cpu" else "self_cuda_time_total"
    table: str = found.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50)
    return table


def shares(members: int, processes: int) -> list[int]:
    """How many members each process has, of those that have any."""
    cuts = [members * i // processes for i in range(processes + 1)]
    return [b - a for a, b in itertools.pairwise(cuts) if b > a]


class Team:
    """The processes of one variant; they stay, so that variants can take turns."""

    def __init__(self, variant: str, optimizer: str, shares: list[int], device: str) -> None:
        context = mp.get_context("spawn")
        self.connections, self.processes = [], []
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(theirs,), daemon=True)
            process.start()
            ours.send(("build", variant, optimizer, share, device))
            self.connections.append(ours)
            self.processes.append(process)
        self.peak = sum(connection.recv() for connection in self.connections)
        """Bytes of device memory, at most, after the first steps."""

    def time(self, steps: int) -> float:
        """Seconds until the last process has done `steps` steps."""
        for connection in self.connections:
            connection.send(("time", steps))
        return float(max(connection.recv() for connection in self.connections))

    def stop(self) -> None:
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join()


def summary(values: list[float], pattern: str) -> str:
    low, middle, high = (pattern.format(v) for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}, {high}]"


if __name__ == "__main__":
    main()
