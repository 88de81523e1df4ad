"""Measurements of task overlap in a trial.

The features of each task's test data are computed right after training on that task and again at the end.

Legend: P padded parameter count, Q padded size of the buffers in floats.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from optbench.engine.evaluate import Evaluator
from optbench.engine.positions import MOST, sampled
from optbench.metrics import Measurement, Metric, take
from optbench.metrics.measuring import Overlap
from optbench.metrics.overlap import Change, TaskFeatures
from optbench.precision import exact
from optbench.streams import generator
from optbench.tasks import Examples, TaskSequence

SEQUENCES = 512
"""Maximum number of long test sequences to read per task. At length 128, they have 65,000 positions, for which two
forward passes of a network with 2 layers of width 64 take about a second on one core."""


def overlaps(
    evaluator: Evaluator,
    sequence: TaskSequence,
    ended: Sequence[Tensor],
    metrics: Sequence[Metric],
    suite_seed: int,
) -> list[tuple[int | None, Measurement]]:
    """Measure the metrics of kind `overlap`; return each value with its task (1..T), or with None for all tasks.

    ended: the weights and buffers (P + Q,) after each task, including the last.
    """
    few = [_few(sequence.test(task), suite_seed) for task in range(len(ended))]
    end = [_features(evaluator, ended[-1], examples, suite_seed) for examples in few]
    changes = [
        Change(_features(evaluator, row, few[task], suite_seed), end[task]) for task, row in enumerate(ended[:-1])
    ]
    found: list[tuple[int | None, Measurement]] = [(None, one) for one in take(metrics, Overlap(changes, end))]
    kept = [metric for metric in metrics if metric.reads == ("changes",)]
    for task, change in enumerate(changes):
        found += [(task + 1, one) for one in take(kept, Overlap([change], end)) if one.metric in {m.name for m in kept}]
    return found


def _few(test: Examples, suite_seed: int) -> Examples:
    """Draw a limited number of a task's test examples, at the same indices in every trial of a suite."""
    most = max(SEQUENCES, MOST // test.positions)
    return test.drawn(most, generator(suite_seed, None, "examples of overlaps"))


def _features(evaluator: Evaluator, row: Tensor, examples: Examples, suite_seed: int) -> TaskFeatures:
    features = evaluator.read(row, examples).features
    means = None
    if examples.targets.ndim > 1:
        means = exact(features.view(*examples.targets.shape, -1).mean(1))
    at = sampled(examples, suite_seed)
    return TaskFeatures(exact(features if at is None else features[at]), means)
