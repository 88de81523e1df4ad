"""Measure processor seconds per task and peak memory, to see whether a task's cost depends on the number of tasks.

    python benchmarks/many_tasks.py [--optimizer sgd] [--seeds 5] [--tasks 120]

The tasks are permuted MNIST pooled to 14 × 14, with 5,000 images per task in batches of 16, online, as in
`suites/plasticity.yaml`. Each number of tasks is measured in a separate process, which trains one cohort. Times are
medians over eleven tasks.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from optbench.data import load
from optbench.engine import Workspace, train
from optbench.plan import cohorts, complete, trials
from optbench.plan.progress import Progress
from optbench.suite import Suite

AROUND = 5
"""Number of tasks before and after a given task that are included in its median."""


def suite(optimizer: str, seeds: int, tasks: int) -> Suite:
    return complete(
        Suite.model_validate(
            {
                "name": "many-tasks",
                "seeds": seeds,
                "optimizers": {optimizer: {"target": optimizer}},
                "experiments": {
                    "permuted": {
                        "dataset": {"kind": "mnist", "resize": 14},
                        "tasks": {"kind": "permuted", "count": tasks, "examples_per_task": 5000},
                        "models": {"mlp": {"kind": "mlp", "hidden": [100, 100]}},
                        "protocol": {
                            "batch_size": 16,
                            "max_epochs": 1,
                            "early_stopping": None,
                            "score": "current",
                            "validation_examples": 1000,
                            "test_examples": 1000,
                        },
                        "metrics": ["online_accuracy"],
                    }
                },
            }
        )
    )


def measure(optimizer: str, seeds: int, tasks: int) -> tuple[list[float], float]:
    """Return the processor seconds of every task, and the peak resident memory of this process in MiB."""
    torch.set_num_threads(1)
    made = suite(optimizer, seeds, tasks)
    experiment = made.experiments["permuted"]
    workspace = Workspace.of(experiment, load(experiment.dataset), made.seed, torch.device("cpu"))
    ended: dict[int, float] = {}

    def notify(progress: Progress) -> None:
        ended[progress.task] = time.process_time()  # overwritten until the last member ends the task

    (cohort,) = cohorts(trials(made))
    train(cohort, workspace, notify)
    times = [ended[task + 1] - ended[task] for task in range(1, tasks)]
    return times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        times, memory = measure(given.optimizer, given.seeds, given.one)
        print(*times, memory)
        return
    for tasks in (20, given.tasks, 200):
        words = [sys.executable, __file__, "--optimizer", given.optimizer, "--seeds", str(given.seeds)]
        out = subprocess.run([*words, "--one", str(tasks)], capture_output=True, text=True, check=True).stdout
        *times, memory = map(float, out.split())
        middles = sorted({10, tasks - 10})
        found = [statistics.median(times[task - AROUND - 2 : task + AROUND - 1]) for task in middles]
        said = ", ".join(f"task {task}: {seconds:.3f} s" for task, seconds in zip(middles, found, strict=True))
        what = f"{given.optimizer}, {given.seeds} seeds, {tasks} tasks"
        print(f"{what}: {said}; peak memory {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
