"""Member-steps per second of the lock-step engine, beside a loop written by hand and beside the bare products.

    python benchmarks/throughput.py [--device cpu] [--members 1 10 30] [--rounds 5] [--seconds 1.0]
    python benchmarks/throughput.py --device cuda --members 1 10 100 1000

Network: MLP 784-100-10, batch 128, permuted MNIST. On a CPU every variant runs on one process per core with one thread
each, and the members are spread over the processes; on a CUDA device there is one process. Variants are interleaved:
each round measures all of them once, and what is printed is the median over rounds with the smallest and the largest.

- `engine`: what `optbench run` does between two evaluations: batches, gradients, updates.
- `loop`: plain PyTorch, one network after the other: float inputs in memory, autograd, `torch.optim` as it comes.
  For Shampoo the loop uses pytorch-optimizer's, and both refresh all roots every 10 steps. On a CUDA device it has at
  most 4 networks, as its member-steps per second do not depend on how many there are.
- `floor`: only the matrix products of forward and backward, batched or one by one, whichever is faster. On a CUDA
  device with the memory traffic of the update beside them: weights, gradients and states once read and once written.

On a CUDA device the members are of at most 10 seeds, as in a suite with a sweep, and share the batches of their seed;
the engine's peak memory is printed, too. On a CPU every member has a seed of its own.
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
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1},
    "adamw": {"lr": 1e-3},
    # One refresh interval for every side, as in the loop.
    "shampoo": {"lr": 0.05, "epsilon": 1e-4, "precondition_frequency": REFRESH, "small_side": 0},
}

Step = Callable[[int], None]


def engine(optimizer: str, members: int, where: str) -> Step:
    """One step of `members` members in lock-step."""
    import torch

    from optbench.data import load
    from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
    from optbench.engine.gradients import gradients_for
    from optbench.engine.lanes import LaneMember, build_lane
    from optbench.engine.stack import Layout
    from optbench.models import build, initialise
    from optbench.optimizers.registry import complete, find
    from optbench.streams import generator
    from optbench.suite import schema
    from optbench.tasks import TaskFamily

    protocol, device = schema.Protocol(batch_size=BATCH), torch.device(where)
    dataset = load("mnist")
    family = TaskFamily(schema.Permuted(kind="permuted"), dataset, protocol, 0, device)
    network = build(schema.Mlp(kind="mlp", hidden=[WIDTH]), family.shape, family.classes)
    layout = Layout.of({name: p.shape for name, p in network.named_parameters()})
    buffer = BatchBuffer(BATCH, family.shape, Normaliser.of(dataset, protocol, device))
    rows = [layout.pack(initialise(network, generator(0, seed, "initial weights"))) for seed in range(members)]
    weights = torch.stack(rows).to(device)
    grads, losses = torch.zeros_like(weights), torch.zeros(members, device=device)
    gradients = gradients_for(network, layout, buffer, device)(weights, grads)
    settings = complete(optimizer, SETTINGS[optimizer])
    whole = [LaneMember(settings, None, generator(0, seed, "optimizer"), 0) for seed in range(members)]
    lane = build_lane(find(optimizer), whole, network, weights, grads, layout, begin=True)
    lane.begin_task()
    seeds = members if where == "cpu" else min(members, SEEDS)
    of_seed = [BatchStream(family.sequence(seed).train(0), BATCH, 0, seed, 0) for seed in range(seeds)]
    streams = [of_seed[i % seeds] for i in range(members)]

    def step(t: int) -> None:
        gradients(streams, t, losses)
        lane.step(_needs_gradients_only)

    return step


def _needs_gradients_only(member: int, network: Any) -> Any:
    raise AssertionError("the measured optimizers ask for gradients only")


def loop(optimizer: str, members: int, where: str) -> Step:
    """One step of each of `members` networks, as one would write it by hand."""
    import torch
    from torch import nn

    from optbench.data import load

    dataset = load("mnist")
    inputs = ((dataset.train.images.flatten(1) / 255 - 0.1307) / 0.3081)[:, torch.randperm(784)].to(where)
    labels = dataset.train.labels.to(where)

    def make(parameters: Any) -> torch.optim.Optimizer:
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, **SETTINGS["sgd"])
        if optimizer == "adamw":
            return torch.optim.AdamW(parameters, **SETTINGS["adamw"])
        from pytorch_optimizer import Shampoo

        return Shampoo(parameters, lr=0.05, preconditioning_compute_steps=REFRESH)

    networks = [
        nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)).to(where) for _ in range(members)
    ]
    optimizers = [make(network.parameters()) for network in networks]
    orders = [torch.randperm(len(labels)).to(where) for _ in networks]
    per_epoch = len(labels) // BATCH

    def step(t: int) -> None:
        start = t % per_epoch * BATCH
        for network, update, order in zip(networks, optimizers, orders, strict=True):
            batch = order[start : start + BATCH]
            update.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # of torch
            update.step()

    return step


MOMENTS = {"sgd": 0, "adamw": 2, "shampoo": 0}
"""Matrices of state as large as the weights; Shampoo's factors, which are larger, are left out of the floor."""


def floor(optimizer: str, members: int, where: str, *, batched: bool) -> Step:
    """The matrix products of one step, on a CUDA device with the traffic of the update, and nothing else."""
    import torch

    x, w1, w2 = (torch.randn(members, *s, device=where) for s in ((BATCH, 784), (WIDTH, 784), (CLASSES, WIDTH)))
    z1, h, z2 = (torch.randn(members, BATCH, n, device=where) for n in (WIDTH, WIDTH, CLASSES))
    g1, g2, out1, out2, dh = (torch.empty_like(t) for t in (w1, w2, z1, z2, h))
    products = [(x, w1.mT, out1), (h, w2.mT, out2), (z2.mT, h, g2), (z2, w2, dh), (z1.mT, x, g1)]
    pairs = [[(a[i], b[i], out[i]) for a, b, out in products] for i in range(members)]
    weights = members * (WIDTH * 784 + WIDTH + CLASSES * WIDTH + CLASSES)
    traffic = torch.zeros(2 + MOMENTS[optimizer], weights, device=where) if where != "cpu" else None

    def together(t: int) -> None:
        for a, b, out in products:
            torch.bmm(a, b, out=out)
        if traffic is not None:
            traffic.add_(1.0)

    def one_by_one(t: int) -> None:
        for member in pairs:
            for a, b, out in member:
                torch.mm(a, b, out=out)

    return together if batched else one_by_one


VARIANTS: dict[str, Callable[[str, int, str], Step]] = {
    "engine": engine,
    "loop": loop,
    "floor, batched": lambda optimizer, members, where: floor(optimizer, members, where, batched=True),
    "floor, one by one": lambda optimizer, members, where: floor(optimizer, members, where, batched=False),
}
SEEDS = 10
LOOPED = 4
"""Networks of the loop on a CUDA device."""


def worker(connection: multiprocessing.connection.Connection) -> None:
    """Builds what it is told and times it when it is told."""
    import torch

    torch.set_num_threads(1)
    step: Step = lambda t: None  # noqa: E731
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
            step, t = VARIANTS[variant](optimizer, members, where), 0
            for t in range(12):  # warm-up: buffers, caches, the first refreshes
                step(t)
            wait()
            connection.send(torch.cuda.max_memory_allocated() if where != "cpu" else 0)
        else:
            steps, started = order[1], time.perf_counter()
            for later in range(t + 1, t + 1 + steps):
                step(later)
            wait()
            t += steps
            connection.send(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10, 30])
    parser.add_argument("--optimizers", nargs="+", default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    arguments = parser.parse_args()
    import torch

    cores = len(os.sched_getaffinity(0))
    what = f"{platform.processor() or platform.machine()}, {cores} processes of one thread"
    if arguments.device != "cpu":
        cores, what = 1, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    print(f"{what}, torch {torch.__version__}")
    print(f"MLP 784-{WIDTH}-{CLASSES}, batch {BATCH}; member-steps/s: median [min, max] of {arguments.rounds} rounds\n")
    print(
        f"{'optimizer':10}{'members':>8}{'engine':>26}{'loop':>26}{'floor':>26}{'engine/loop':>20}{'engine/floor':>20}"
    )
    for optimizer in arguments.optimizers:
        for members in arguments.members:
            report(optimizer, members, cores, arguments)


def report(optimizer: str, members: int, cores: int, arguments: argparse.Namespace) -> None:
    """Measure all variants for one cohort and print a line."""
    rounds, seconds, device = arguments.rounds, arguments.seconds, arguments.device
    names = [name for name in VARIANTS if device == "cpu" or name != "floor, one by one"]
    counts = {name: min(members, LOOPED) if name == "loop" and device != "cpu" else members for name in names}
    teams = {name: Team(name, optimizer, shares(counts[name], cores), device) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    steps = {name: max(REFRESH, round(seconds / team.time(REFRESH) * REFRESH)) for name, team in teams.items()}
    for _ in range(rounds):
        for name, team in teams.items():
            # Whole refresh intervals, so that every measurement holds its share of roots.
            count = -(-steps[name] // REFRESH) * REFRESH
            speeds[name].append(counts[name] * count / team.time(count))
    for team in teams.values():
        team.stop()
    best = max((name for name in names if "floor" in name), key=lambda name: statistics.median(speeds[name]))
    speeds["floor"] = speeds[best]
    cells = [summary(speeds[name], "{:,.0f}") for name in ("engine", "loop", "floor")]
    ratios = [[a / b for a, b in zip(speeds["engine"], speeds[o], strict=True)] for o in ("loop", "floor")]
    cells += [summary(ratio, "{:.2f}") for ratio in ratios]
    widths = (26, 26, 26, 20, 20)
    peak = f"  peak {teams['engine'].peak / 2**20:,.0f} MiB" if device != "cpu" else ""
    line = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
    print(f"{optimizer:10}{members:8}{line}{peak}", flush=True)


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
