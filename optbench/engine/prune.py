"""Pruning curves of a trained network: accuracy as a function of the fraction of weights kept, largest first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from optbench.engine.evaluate import Evaluator
from optbench.engine.stack import Layout
from optbench.metrics.pruning import KEEP, SCOPES, Ranking, rank_weights
from optbench.store.tables import PruningRow
from optbench.tasks import TaskSequence


def pruning_rows(row: Tensor, evaluator: Evaluator, sequence: TaskSequence, tasks: Sequence[int]) -> list[PruningRow]:
    """Return the accuracies of a pruned network on the pooled test data of `tasks`, for all fractions and scopes.

    The fractions and scopes are `KEEP` and `SCOPES` in `metrics.pruning`. This takes 40 passes over the test data:
    4.3 s for LeNet-300-100 and 10,000 MNIST images on one thread, nine tenths of it in matrix products.

    row: the weights and buffers before pruning, with padding; not modified.
    """
    layout, count = evaluator.blueprint.layout, sequence.family.count
    rankings = {scope: rank_weights(layout.views(row), scope, evaluator.blueprint.output) for scope in SCOPES}
    correct = {(scope, keep): 0 for scope in SCOPES for keep in KEEP}
    examples = 0
    # task by task, so that only one task's data is held: a sequence may have hundreds of tasks
    for task in tasks:
        test = sequence.test(task)
        examples += test.targets.numel()
        for scope, keep in correct:
            (score,) = evaluator.score([_pruned(row, layout, rankings[scope], keep)], [test])
            correct[scope, keep] += score.correct
    return [PruningRow(count, scope, keep, right / examples) for (scope, keep), right in correct.items()]


def _pruned(row: Tensor, layout: Layout, ranking: Ranking, keep: float) -> Tensor:
    pruned = row.clone()
    views = layout.views(pruned)
    for name, stays in ranking.mask(keep).items():
        views[name].masked_fill_(~stays, 0.0)
    return pruned
