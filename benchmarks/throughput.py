"""Member-steps per second of the lock-step engine, beside a loop written by hand and beside the bare products.

    python benchmarks/throughput.py [--members 1 10 30] [--rounds 5] [--seconds 1.0]

Network: MLP 784-100-10, batch 128, permuted MNIST. Every variant runs on one process per core with one thread each;
the members are spread over the processes. Variants are interleaved: each round measures all of them once, and what is
printed is the median over rounds with the smallest and the largest.

- `engine`: what `optbench run` does between two evaluations: batches, gradients, updates.
- `loop`: plain PyTorch, one network after the other: float inputs in memory, autograd, `torch.optim` as it comes.
  For Shampoo the loop uses pytorch-optimizer's, and both refresh all roots every 10 steps.
- `floor`: only the matrix products of forward and backward, batched or one by one, whichever is faster.
"""

from __future__ import annotations

import argparse
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


def engine(optimizer: str, members: int) -> Step:
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

    protocol, device = schema.Protocol(batch_size=BATCH), torch.device("cpu")
    dataset = load("mnist")
    family = TaskFamily(schema.Permuted(kind="permuted"), dataset, protocol, 0, device)
    network = build(schema.Mlp(kind="mlp", hidden=[WIDTH]), family.shape, family.classes)
    layout = Layout.of({name: p.shape for name, p in network.named_parameters()})
    buffer = BatchBuffer(BATCH, family.shape, Normaliser.of(dataset, protocol, device))
    rows = [layout.pack(initialise(network, generator(0, seed, "initial weights"))) for seed in range(members)]
    weights = torch.stack(rows)
    grads, losses = torch.zeros_like(weights), torch.zeros(members)
    gradients = gradients_for(network, layout, buffer, device)(weights, grads)
    settings = complete(optimizer, SETTINGS[optimizer])
    whole = [LaneMember(settings, None, generator(0, seed, "optimizer"), 0) for seed in range(members)]
    lane = build_lane(find(optimizer), whole, network, weights, grads, layout, begin=True)
    lane.begin_task()
    streams = [BatchStream(family.sequence(seed).train(0), BATCH, 0, seed, 0) for seed in range(members)]

    def step(t: int) -> None:
        gradients(streams, t, losses)
        lane.step(_needs_gradients_only)

    return step


def _needs_gradients_only(member: int, network: Any) -> Any:
    raise AssertionError("the measured optimizers ask for gradients only")


def loop(optimizer: str, members: int) -> Step:
    """One step of each of `members` networks, as one would write it by hand."""
    import torch
    from torch import nn

    from optbench.data import load

    dataset = load("mnist")
    inputs = ((dataset.train.images.flatten(1) / 255 - 0.1307) / 0.3081)[:, torch.randperm(784)]
    labels = dataset.train.labels

    def make(parameters: Any) -> torch.optim.Optimizer:
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, **SETTINGS["sgd"])
        if optimizer == "adamw":
            return torch.optim.AdamW(parameters, **SETTINGS["adamw"])
        from pytorch_optimizer import Shampoo

        return Shampoo(parameters, lr=0.05, preconditioning_compute_steps=REFRESH)

    networks = [nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)) for _ in range(members)]
    optimizers = [make(network.parameters()) for network in networks]
    orders = [torch.randperm(len(labels)) for _ in networks]
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


def floor(optimizer: str, members: int, *, batched: bool) -> Step:
    """The matrix products of one step and nothing else."""
    import torch

    x, w1, w2 = (torch.randn(members, *s) for s in ((BATCH, 784), (WIDTH, 784), (CLASSES, WIDTH)))
    z1, h, z2 = (torch.randn(members, BATCH, n) for n in (WIDTH, WIDTH, CLASSES))
    g1, g2, out1, out2, dh = (torch.empty_like(t) for t in (w1, w2, z1, z2, h))
    products = [(x, w1.mT, out1), (h, w2.mT, out2), (z2.mT, h, g2), (z2, w2, dh), (z1.mT, x, g1)]
    pairs = [[(a[i], b[i], out[i]) for a, b, out in products] for i in range(members)]

    def together(t: int) -> None:
        for a, b, out in products:
            torch.bmm(a, b, out=out)

    def one_by_one(t: int) -> None:
        for member in pairs:
            for a, b, out in member:
                torch.mm(a, b, out=out)

    return together if batched else one_by_one


VARIANTS: dict[str, Callable[[str, int], Step]] = {
    "engine": engine,
    "loop": loop,
    "floor, batched": lambda optimizer, members: floor(optimizer, members, batched=True),
    "floor, one by one": lambda optimizer, members: floor(optimizer, members, batched=False),
}


def worker(connection: multiprocessing.connection.Connection) -> None:
    """Builds what it is told and times it when it is told."""
    import torch

    torch.set_num_threads(1)
    step: Step = lambda t: None  # noqa: E731
    t = 0
    while True:
        order = connection.recv()
        if order is None:
            return
        if order[0] == "build":
            step, t = VARIANTS[order[1]](order[2], order[3]), 0
            for t in range(12):  # warm-up: buffers, caches, the first refreshes
                step(t)
            connection.send(None)
        else:
            steps, started = order[1], time.perf_counter()
            for later in range(t + 1, t + 1 + steps):
                step(later)
            t += steps
            connection.send(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10, 30])
    parser.add_argument("--optimizers", nargs="+", default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    arguments = parser.parse_args()
    import torch

    cores = len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {cores} processes of one thread, torch {torch.__version__}")
    print(f"MLP 784-{WIDTH}-{CLASSES}, batch {BATCH}; member-steps/s: median [min, max] of {arguments.rounds} rounds\n")
    print(
        f"{'optimizer':10}{'members':>8}{'engine':>26}{'loop':>26}{'floor':>26}{'engine/loop':>20}{'engine/floor':>20}"
    )
    for optimizer in arguments.optimizers:
        for members in arguments.members:
            report(optimizer, members, cores, arguments.rounds, arguments.seconds)


def report(optimizer: str, members: int, cores: int, rounds: int, seconds: float) -> None:
    """Measure all variants for one cohort and print a line."""
    shares = [members * (i + 1) // cores - members * i // cores for i in range(cores)]
    shares = [share for share in shares if share]
    teams = {name: Team(name, optimizer, shares) for name in VARIANTS}
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    steps = {name: max(REFRESH, round(seconds / team.time(REFRESH) * REFRESH)) for name, team in teams.items()}
    for _ in range(rounds):
        for name, team in teams.items():
            # Whole refresh intervals, so that every measurement holds its share of roots.
            count = -(-steps[name] // REFRESH) * REFRESH
            speeds[name].append(members * count / team.time(count))
    for team in teams.values():
        team.stop()
    best = max(("floor, batched", "floor, one by one"), key=lambda name: statistics.median(speeds[name]))
    speeds["floor"] = speeds[best]
    cells = [summary(speeds[name], "{:,.0f}") for name in ("engine", "loop", "floor")]
    ratios = [[a / b for a, b in zip(speeds["engine"], speeds[o], strict=True)] for o in ("loop", "floor")]
    cells += [summary(ratio, "{:.2f}") for ratio in ratios]
    widths = (26, 26, 26, 20, 20)
    print(f"{optimizer:10}{members:8}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)), flush=True)


class Team:
    """The processes of one variant; they stay, so that variants can take turns."""

    def __init__(self, variant: str, optimizer: str, shares: list[int]) -> None:
        context = mp.get_context("spawn")
        self.connections, self.processes = [], []
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(theirs,), daemon=True)
            process.start()
            ours.send(("build", variant, optimizer, share))
            self.connections.append(ours)
            self.processes.append(process)
        for connection in self.connections:
            connection.recv()

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
