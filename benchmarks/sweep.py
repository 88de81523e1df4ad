"""Measure the cost of a learning-rate grid in lock-step, compared with the same trials one by one.

    python benchmarks/sweep.py [--optimizers sgd adamw shampoo] [--repeats 5] [--steps 100]

The protocol is that of permuted-mnist in suites/continual.yaml for mlp-100, with seven learning rates × 2 seeds and
each task limited to a number of steps. Processes are kept between measurements; every repeat measures all variants in
turn.

- `lock-step`: the 14 trials in one cohort, divided as by `optbench run --jobs N`.
- `one by one`: 14 cohorts of one trial.

| on | lock-step | one by one |
|---|---|---|
| 2 cores | on 2 processes of one thread | in a loop over trials, with PyTorch's operations on 2 threads |
| 2 processes | the same | handed out to 2 processes of one thread |
| 1 process | on one process of one thread | the same |

`steps` is the time of the optimizers' steps (batches, gradients, updates: `train_seconds` of the trials) on the process
with the largest such time. `everything` is the time until the last trial has ended, including the generation of tasks,
validation and measurements. Ratios are taken within a repeat. The aim, for SGD and AdamW on 2 cores, is at most 60% of
the time that the steps take one by one.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import multiprocessing.connection
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.plan import Cohort, cohorts, complete, trials
from optbench.store.tables import TrialRow
from optbench.suite import Suite, load_suite

CONTINUAL = Path(__file__).parent.parent / "suites" / "continual.yaml"
EXPERIMENT, MODEL = "permuted-mnist", "mlp-100"
GRIDS = {"sgd": [1e-3, 1.0], "adamw": [1e-5, 1e-2], "shampoo": [1e-2, 10.0]}
POINTS, SEEDS = 7, 2
AIM = 0.6


@dataclass(frozen=True)
class Cost:
    """The seconds of one measurement."""

    steps: float
    """Seconds of the steps on the process that spends most time on them."""
    everything: float


def sweep(optimizer: str, steps: int) -> Suite:
    """Return a suite with only this optimizer's grid."""
    suite = load_suite(CONTINUAL)
    experiment = suite.experiments[EXPERIMENT]
    # Measuring is not part of the comparison, so there are few test examples; validation is unchanged.
    protocol = experiment.protocol.model_copy(update={"max_steps": steps, "test_examples": 500})
    experiment = experiment.model_copy(
        update={
            "models": {MODEL: experiment.models[MODEL]},
            "protocol": protocol,
            "optimizers": {optimizer: {"lr": {"log": GRIDS[optimizer], "points": POINTS}}},
            "metrics": ["average_accuracy"],
        }
    )
    chosen = {"seeds": list(range(SEEDS)), "experiments": {EXPERIMENT: experiment}, "claims": {}}
    return complete(suite.model_copy(update={**chosen, "optimizers": {optimizer: suite.optimizers[optimizer]}}))


def work(connection: multiprocessing.connection.Connection, suite: Suite, threads: int) -> None:
    """Train cohorts received over the connection, and send back the seconds that the steps of each took."""
    import torch

    from optbench.data import load
    from optbench.engine import Workspace, train

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    experiment = suite.experiments[EXPERIMENT]
    setting = Workspace.of(experiment, load(experiment.dataset), suite.seed, torch.device("cpu"))
    connection.send(None)
    while (cohort := connection.recv()) is not None:
        rows = [row for result in train(cohort, setting, lambda progress: None) for row in result.rows]
        connection.send(sum(row.train_seconds for row in rows if isinstance(row, TrialRow)))


class Team:
    """Processes that wait for cohorts of one suite. threads: the number of threads in each process."""

    def __init__(self, suite: Suite, threads: Sequence[int]) -> None:
        context = mp.get_context("spawn")
        self.connections, self.processes = [], []
        for count in threads:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, suite, count), daemon=True)
            process.start()
            self.connections.append(ours)
            self.processes.append(process)
        for connection in self.connections:
            connection.recv()

    def train(self, units: Sequence[Cohort], processes: Sequence[int]) -> Cost:
        """Train all units on these processes; each process gets the next unit as soon as it is free."""
        waiting, began = list(reversed(units)), time.perf_counter()
        spent = dict.fromkeys(processes, 0.0)
        busy = set()
        for i in processes[: len(units)]:
            self.connections[i].send(waiting.pop())
            busy.add(i)
        while busy:
            for ready in multiprocessing.connection.wait([self.connections[i] for i in busy]):
                i = next(i for i in busy if self.connections[i] is ready)
                spent[i] += self.connections[i].recv()
                if waiting:
                    self.connections[i].send(waiting.pop())
                else:
                    busy.remove(i)
        return Cost(max(spent.values()), time.perf_counter() - began)

    def stop(self) -> None:
        for connection, process in zip(self.connections, self.processes, strict=True):
            connection.send(None)
            process.join()


def measure(optimizer: str, steps: int, repeats: int) -> dict[str, list[Cost]]:
    """Return the costs of each variant, one per repeat."""
    suite = sweep(optimizer, steps)
    planned = trials(suite)
    (whole,) = cohorts(planned)
    alone = [cohort for trial in planned for cohort in cohorts([trial])]
    team = Team(suite, [1, 1, 2])
    ways = {
        "lock-step on 2": (whole.split(2), [0, 1]),
        "singles on 2 threads": (alone, [2]),
        "singles on 2": (alone, [0, 1]),
        "lock-step on 1": ([whole], [0]),
        "singles on 1": (alone, [0]),
    }
    team.train(whole.split(3), [0, 1, 2])  # warm-up
    found: dict[str, list[Cost]] = {}
    for _ in range(repeats):
        for way, (units, processes) in ways.items():
            found.setdefault(way, []).append(team.train(units, processes))
    team.stop()
    return found


ROWS = (
    ("steps", "2 cores", "lock-step on 2", "singles on 2 threads"),
    ("steps", "2 processes", "lock-step on 2", "singles on 2"),
    ("steps", "1 process", "lock-step on 1", "singles on 1"),
    ("everything", "2 cores", "lock-step on 2", "singles on 2 threads"),
    ("everything", "2 processes", "lock-step on 2", "singles on 2"),
)


def report(optimizer: str, found: dict[str, list[Cost]]) -> None:
    """Print a line for each comparison."""
    for what, where, ours, theirs in ROWS:
        times = [[getattr(cost, what) for cost in found[way]] for way in (ours, theirs)]
        ratios = [100 * a / b for a, b in zip(*times, strict=True)]
        cells = "".join(f"{summary(values, '{:.2f}'):>22}" for values in times)
        aim = ""
        if (what, where) == ("steps", "2 cores") and optimizer != "shampoo":
            aim = f"  aim {100 * AIM:.0f}: {'met' if statistics.median(ratios) <= 100 * AIM else 'missed'}"
        print(f"{optimizer:9}{what:12}{where:13}{cells}{summary(ratios, '{:.0f}'):>18}{aim}", flush=True)


def summary(values: Sequence[float], pattern: str) -> str:
    """Return `median [min, max]`."""
    low, middle, high = (pattern.format(v) for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="maximum number of steps per task")
    arguments = parser.parse_args()
    import torch

    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {cores} cores, load {load:.1f} before; ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(
        f"{EXPERIMENT}, {MODEL}: {POINTS} learning rates x {SEEDS} seeds, at most {arguments.steps} steps a task;",
        end="",
    )
    print(f" median [min, max] of {arguments.repeats} repeats\n")
    header = "".join(f"{name:>22}" for name in ("lock-step (s)", "one by one (s)"))
    print(f"{'optimizer':9}{' time of':12}{'on':13}{header}{'ratio (%)':>18}")
    for optimizer in arguments.optimizers:
        report(optimizer, measure(optimizer, arguments.steps, arguments.repeats))


if __name__ == "__main__":
    main()
