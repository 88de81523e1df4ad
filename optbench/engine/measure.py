"""What is measured between tasks: the accuracy matrix, and the measures of representation and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from optbench.engine.evaluate import Evaluator, Score, ScoreWithFeatures
from optbench.engine.landscape import flat, measure_landscape, training_loss
from optbench.engine.members import Member
from optbench.engine.prune import pruning_rows
from optbench.engine.stack import Layout
from optbench.metrics import Measurement, measure_features, measure_weights, select
from optbench.metrics.learning import majority_share
from optbench.metrics.rank import spectrum
from optbench.metrics.similarity import class_cosine
from optbench.store.tables import AccuracyRow, MetricRow, Row, SimilarityRow, SpectrumRow
from optbench.streams import generator
from optbench.tasks import TaskFamily, TaskSequence

FEATURES = "features"
"""The layer column of what is measured on the input of the last linear layer."""

_UNTRAINED: WeakKeyDictionary[TaskFamily, dict[tuple[object, ...], list[Row]]] = WeakKeyDictionary()
"""Rows of untrained networks: every optimizer of a seed begins at the same one, which is read once in a process."""


def score_held_out(
    members: Sequence[Member],
    sequences: Mapping[int, TaskSequence],
    count: int,
    after_task: int,
    evaluator: Evaluator,
    metrics: Sequence[str],
) -> list[list[Score]]:
    """What each member comes to on the validation data of all `count` tasks, all members scored together.

    Nothing for those of whom it is not asked: who is not running any more, or begins at a network that was measured
    before, or is measured for a member before them.
    """
    asked: list[int] = []
    begun: set[tuple[object, ...]] = set()
    for i, member in enumerate(members):
        sequence = sequences[member.trial.seed]
        network = _network(member, sequence, metrics)
        known = after_task == 0 and (network in begun or network in _UNTRAINED.get(sequence.family, {}))
        if member.running and not known:
            asked.append(i)
            begun.add(network)
    found: list[list[Score]] = [[] for _ in members]
    for task in range(count):
        data = [sequences[members[i].trial.seed].validation(task) for i in asked]
        for i, score in zip(asked, evaluator.score([members[i].row for i in asked], data), strict=True):
            found[i].append(score)
    return found


def measure(
    member: Member,
    sequence: TaskSequence,
    count: int,
    after_task: int,
    evaluator: Evaluator,
    layout: Layout,
    metrics: Sequence[str],
    suite_seed: int,
    held_out: Sequence[Score],
) -> None:
    """Append the rows of one member after `after_task` of `count` tasks (0: before any training).

    held_out: what it comes to on the validation data of every task, see `score_held_out`.

    Representation measures are taken on the test data of the task just learnt and, after the last task, of every task
    and of all tasks pooled (`task` null); class similarity on all tasks pooled. Pruning curves are taken after the last
    task, where `metrics` names a measure of them. A network that is not running any more (diverged, failed) gets its
    accuracies as nulls.
    """
    if not member.running:
        member.rows += [_missing(after_task, task) for task in range(1, count + 1)]
        return
    known = _UNTRAINED.setdefault(sequence.family, {})
    network = _network(member, sequence, metrics)
    if after_task == 0 and network in known:
        member.rows += known[network]
        return
    before = len(member.rows)
    readings = []
    for task in range(count):
        reading = evaluator.read(member.row, sequence.test(task))
        readings.append(reading)
        member.rows.append(
            AccuracyRow(
                after_task=after_task,
                task=task + 1,
                accuracy=reading.accuracy,
                loss=_finite(reading.loss),
                examples=reading.examples,
                validation_accuracy=held_out[task].accuracy,
                validation_loss=_finite(held_out[task].loss),
                majority=majority_share(torch.bincount(reading.targets.cpu()).tolist()),
            )
        )
    weights = {name: view for name, view in layout.views(member.row).items() if view.ndim > 1}
    member.rows += _metric_rows(measure_weights(metrics, weights), after_task, None)
    if after_task == 0:
        known[network] = member.rows[before:]
        return
    final = after_task == count
    for task, reading in enumerate(readings, start=1):
        if task == after_task or final:
            _representation(member, reading.features, reading.targets, after_task, task, metrics)
    features, labels = _pool(readings)
    if final:
        _representation(member, features, labels, after_task, None, metrics)
        if select(metrics, "pruning"):
            member.rows += pruning_rows(member.row, layout, evaluator, sequence, after_task)
    _similarity(member, features, labels, after_task)
    if final:
        _landscape(member, sequence, count, evaluator, layout, metrics, suite_seed)


def _network(member: Member, sequence: TaskSequence, metrics: Sequence[str]) -> tuple[object, ...]:
    """What the measures of an untrained network depend on."""
    return (member.trial.model, member.init_hash, sequence.trial_seed, *metrics)


def _representation(
    member: Member, features: Tensor, labels: Tensor, after_task: int, task: int | None, metrics: Sequence[str]
) -> None:
    shared = spectrum(features)  # one decomposition for all measures of rank and for the spectrum itself
    found = measure_features(metrics, features, labels, spectrum=shared)
    member.rows += _metric_rows(found, after_task, task, FEATURES)
    eigenvalues = shared.lam.tolist()
    member.rows += [SpectrumRow(after_task, task, FEATURES, i, _finite(v)) for i, v in enumerate(eigenvalues)]


def _similarity(member: Member, features: Tensor, labels: Tensor, after_task: int) -> None:
    classes = sorted(set(labels.tolist()))
    cosines = class_cosine(features, labels).tolist()
    member.rows += [SimilarityRow(after_task, FEATURES, a, b, _finite(cosines[a][b])) for a in classes for b in classes]


def _landscape(
    member: Member,
    sequence: TaskSequence,
    count: int,
    evaluator: Evaluator,
    layout: Layout,
    metrics: Sequence[str],
    suite_seed: int,
) -> None:
    found = measure_landscape(
        metrics,
        flat(layout, member.row),
        flat(layout, member.start),
        lambda: training_loss(evaluator.network, layout, evaluator.normalise, sequence.train(count - 1)),
        lambda: generator(suite_seed, member.trial.seed, "landscape"),
    )
    member.rows += _metric_rows(found, count, count)


def _pool(readings: Sequence[ScoreWithFeatures]) -> tuple[Tensor, Tensor]:
    return torch.cat([r.features for r in readings]), torch.cat([r.targets for r in readings])


def _metric_rows(
    found: Sequence[Measurement], after_task: int, task: int | None, layer: str | None = None
) -> list[MetricRow]:
    return [MetricRow(after_task, task, m.layer or layer, m.metric, m.value, m.note) for m in found]


def _missing(after_task: int, task: int) -> AccuracyRow:
    return AccuracyRow(after_task, task, None, None, 0, None, None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
