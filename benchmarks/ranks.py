"""Measure the cost of 44 rank readings in a suite: processor seconds of trials with and without them.

    python benchmarks/ranks.py [--rounds 3] [--optimizer sgd] [--model mlp-100]

The readings are eleven measures of rank, before and after the activation, for each task and pooled, on the permuted
MNIST of `continual`. A single-threaded process trains the same trial with each list of metrics in turn. The extra cost
is the difference in the time spent between tasks, divided by the time of the trial with the default metrics.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from typing import Any

import torch

from optbench.data import load
from optbench.engine import Workspace, train
from optbench.plan import cohorts, trials
from optbench.suite import Suite, load_suite
from optbench.suite.resolve import resolve_suite_path

MEASURES: tuple[dict[str, Any], ...] = (
    *({"kind": f"effective_rank{form}"} for form in ("", "_uncentred", "_correlation", "_sv")),
    *({"kind": kind} for kind in ("stable_rank", "participation_ratio", "srank", "pca99_centred", "eigenvalue_count")),
    *({"kind": "eigenvalue_count_relative", "relative": share} for share in (0.01, 0.001)),
)
READINGS = [{**measure, "activation": activation} for measure in MEASURES for activation in ("after", "before")]


def suite(metrics: list[Any], optimizer: str, model: str) -> Suite:
    """Return a suite with one trial of permuted MNIST."""
    whole = load_suite(resolve_suite_path("continual")).model_dump(mode="json")
    experiment = whole["experiments"]["permuted-mnist"]
    chosen = {"models": {model: experiment["models"][model]}, "optimizers": [optimizer], "metrics": metrics}
    experiment |= {**chosen, "primary": None, "tuning": None}
    return Suite.model_validate(
        {**whole, "seeds": [0], "experiments": {"permuted-mnist": experiment}, "claims": {}, "tune": None}
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--model", default="mlp-100")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    training: Any = importlib.import_module("optbench.engine.train")  # `optbench.engine.train` is the function
    measure, between = training.measure, 0.0

    def timed(*arguments: Any) -> None:
        nonlocal between
        started = time.process_time()
        measure(*arguments)
        between += time.process_time() - started

    training.measure = timed
    suites = {
        name: suite(metrics, asked.optimizer, asked.model)
        for name, metrics in (("default", ["default"]), ("and 44 readings", ["default", *READINGS]))
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in suites}
    for turn in range(asked.rounds):
        for name in list(suites)[:: 1 if turn % 2 else -1]:
            chosen = suites[name]
            experiment = chosen.experiments["permuted-mnist"]
            workspace = Workspace.of(experiment, load(experiment.dataset), chosen.seed, torch.device("cpu"))
            between, started = 0.0, time.process_time()
            for cohort in cohorts(trials(chosen)):
                list(train(cohort, workspace, lambda progress: None))
            seconds[name].append((time.process_time() - started, between))
    for name, found in seconds.items():
        wholes, parts = zip(*found, strict=True)
        print(f"{name:16} {_spread(wholes)} s a trial, of which {_spread(parts)} s in measures between tasks")
    pairs = zip(*seconds.values(), strict=True)
    extra = [100 * (more - plain) / whole for (whole, plain), (_, more) in pairs]
    print(f"extra cost of the readings: {_spread(extra)}% of a trial")


def _spread(values: Any) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
