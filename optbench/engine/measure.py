"""Measurements of members between tasks: the accuracy matrix, and metrics of representations, weights and models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from optbench.engine.corrupted import corrupter
from optbench.engine.evaluate import Evaluator, Score, ScoreWithFeatures, finite
from optbench.engine.landscape import Landscape, flat, training_loss
from optbench.engine.members import Member
from optbench.engine.overlaps import overlaps
from optbench.engine.own_metrics import asked
from optbench.engine.positions import sampled
from optbench.engine.prune import pruning_rows
from optbench.engine.stack import Layout
from optbench.engine.taps import Tap
from optbench.engine.transfer import Transfer
from optbench.engine.updates import layer_sizes
from optbench.metrics import Measurement, Metric, take
from optbench.metrics.collapse import Collapse
from optbench.metrics.learning import majority_share, task_list
from optbench.metrics.measuring import Accuracy, Ask, Features, OfTraining, Pooled, Updates, Weights
from optbench.metrics.place import Place
from optbench.metrics.prediction import ClassHits
from optbench.metrics.reaching import Curve
from optbench.metrics.similarity import ClassSums, class_cosine
from optbench.metrics.trained import Learning, Model, Transferred
from optbench.metrics.updates import NAMES, Geometry
from optbench.store.tables import (
    AccuracyRow,
    ClassRow,
    CurveRow,
    MetricRow,
    Row,
    SimilarityRow,
    SpectrumRow,
    UpdateRow,
    arrow_table,
)
from optbench.store.values import Matrix, accuracy_column, score_matrices
from optbench.streams import generator
from optbench.tasks import TaskFamily, TaskSequence

FEATURES = "features"
"""Value of the `layer` column for metrics of the features, the input of the last linear layer."""

_UNTRAINED: WeakKeyDictionary[TaskFamily, dict[tuple[object, ...], list[Row]]] = WeakKeyDictionary()
"""Rows of untrained networks, measured once per process and shared by all optimizers with the same seed."""


def score_held_out(
    members: Sequence[Member],
    sequences: Mapping[int, TaskSequence],
    after_task: int,
    evaluator: Evaluator,
    metrics: Sequence[Metric],
    scored: Sequence[int],
) -> list[dict[int, Score]]:
    """Score all members on the validation data of the tasks `scored` (0..T-1), reusing known scores.

    No scores are returned for members that are not running, or whose untrained network was measured earlier or for
    another member.
    """
    asked: list[int] = []
    begun: dict[tuple[object, ...], list[Member]] = {}
    for i, member in enumerate(members):
        sequence = sequences[member.trial.seed]
        network = (i,) if after_task else _network(member, sequence, metrics)
        known = network in begun or network in _UNTRAINED.get(sequence.family, {})
        if member.running and not known:
            asked.append(i)
        if member.running:
            begun.setdefault(network, []).append(member)
    found: list[dict[int, Score]] = [{} for _ in members]
    for task in scored:
        ended = task == after_task - 1
        before = {i: members[i].validated for i in asked if ended}
        scores: dict[int, Score | Exception] = {i: score for i, score in before.items() if score is not None}
        left = [i for i in asked if i not in scores]
        data = [sequences[members[i].trial.seed].validation(task) for i in left]
        scores.update(zip(left, evaluator.try_score([members[i].row for i in left], data), strict=True))
        for i, taken in scores.items():
            if isinstance(taken, Score):
                found[i][task] = taken
                continue
            for member in next(alike for alike in begun.values() if members[i] in alike):
                if member.running:
                    member.fail(taken)
    return found


def measure(
    member: Member,
    sequence: TaskSequence,
    after_task: int,
    evaluator: Evaluator,
    metrics: Sequence[Metric],
    suite_seed: int,
    held_out: Mapping[int, Score],
    scored: Sequence[int],
    transfer: Transfer | None = None,
) -> None:
    """Measure one member after `after_task` tasks (0: before training) and append the results to its rows.

    held_out: scores on the validation data of the scored tasks, from `score_held_out`.
    scored: the tasks (0..T-1) whose accuracies are measured.
    transfer: the experiment's other dataset, for metrics of transfer.

    - Metrics of features, of logits and of the model are measured on the test data of the task just learnt. After the
      last task, they are measured on the test data of every scored task, and on the pooled test data of these tasks
      (`task` is null). Metrics of the model are averaged over these tasks instead of measured on the pooled data.
    - Class similarity is measured on the pooled data. Text has no metrics by class.
    - Long sequences are measured at a sample of positions (see `positions`).
    - If not all tasks are scored, spectra and similarity are measured only after the last task. Over hundreds of tasks,
      they would account for most of a run's size.
    - Pruning curves are measured after the last task if `metrics` includes a pruning metric.
    - For a member that is no longer running (diverged or failed), accuracies are null and there are no other results.
    """
    count, layout = sequence.family.count, evaluator.blueprint.layout
    if not member.running:
        member.rows += [_missing(after_task, task + 1) for task in scored]
        return
    known = _UNTRAINED.setdefault(sequence.family, {})
    network = _network(member, sequence, metrics)
    if after_task == 0 and network in known:
        member.rows += known[network]
        return
    before = len(member.rows)
    kinds = {metric.kind for metric in metrics}

    def ask(task: int | None = None) -> Ask:
        return asked(member.row.device, suite_seed, member.trial.seed, f"after {after_task}/task {task}")

    final, whole = after_task == count, len(scored) == count
    taps = {metric.place: evaluator.blueprint.tap(metric.place) for metric in metrics}
    readings: dict[int, Features] = {}
    for task in scored:
        measured = final or task == after_task - 1
        here = tuple(dict.fromkeys(tap for tap in taps.values() if tap is not None)) if measured else ()
        test = sequence.test(task)
        at = sampled(test, suite_seed)
        score = evaluator.read(member.row, test, with_logits="logits" in kinds, taps=here, at=at)
        if after_task and (measured or whole):
            cues = test.cues if at is None else None
            readings[task] = _features(score, taps, classes=not evaluator.text, cues=cues)
        member.rows.append(
            AccuracyRow(
                after_task=after_task,
                task=task + 1,
                accuracy=score.accuracy,
                loss=finite(score.loss),
                examples=score.examples,
                validation_accuracy=held_out[task].accuracy,
                validation_loss=finite(held_out[task].loss),
                majority=majority_share(torch.bincount(test.targets.flatten().cpu()).tolist()),
                bits_per_byte=finite(score.bits_per_byte),
                validation_bits_per_byte=finite(held_out[task].bits_per_byte),
            )
        )
    member.rows += _metric_rows(take(metrics, Weights(layout.views(member.row)), ask()), after_task, None)
    if after_task == 0:
        known[network] = member.rows[before:]
        return
    if "overlap" in kinds:
        member.ended.append(member.row)
        if final:
            found = overlaps(evaluator, sequence, member.ended, metrics, suite_seed)
            for of, one in found:
                member.rows += _metric_rows([one], after_task, of, FEATURES)
    for task, reading in readings.items():
        if task == after_task - 1 or final:
            _representation(member, reading, after_task, task + 1, metrics, ask(task + 1), spectra=whole or final)
    if "model" in kinds:
        tasks = scored if final else (after_task - 1,)
        member.rows += _of_model(member, evaluator, sequence, tasks, after_task, metrics, ask, suite_seed)
    if not (whole or final):
        return
    pooled = Pooled(list(readings.values()))
    if final:
        before = len(member.rows)
        _representation(member, pooled, after_task, None, metrics, ask())
        if not whole:
            member.rows[before:] = [_of_some(row, scored, count) for row in member.rows[before:]]
        if "pruning" in kinds:
            member.rows += pruning_rows(member.row, evaluator, sequence, scored)
    if not evaluator.text:
        member.rows += _similarity(pooled.class_sums, after_task)
    if final:
        landscape = Landscape(
            flat(layout, member.row),
            flat(layout, member.start),
            lambda: training_loss(evaluator, sequence.train(count - 1), member.row),
            lambda: generator(suite_seed, member.trial.seed, "landscape"),
            ours=evaluator.blueprint.ours,
        )
        member.rows += _metric_rows(take(metrics, landscape), count, count)
        if "collapse" in kinds:
            member.rows += _metric_rows(take(metrics, _of_training(member, evaluator, sequence)), count, count)
        if "transfer" in kinds and transfer is not None:
            reading_there = Transferred(transfer.probe(evaluator, member.row))
            member.rows += _metric_rows(take(metrics, reading_there), count, None)
        if "curve" in kinds:
            member.rows += _metric_rows(take(metrics, Learning(_curve(member, count))), count, count)
        if "updates" in kinds:
            member.rows += _metric_rows(take(metrics, _updates(member, layout)), after_task, None)
        own = [metric for metric in metrics if metric.is_users]  # registered metrics are derived when a run is read
        member.rows += _metric_rows(take(own, Accuracy(_matrix(member)), ask()), after_task, None)


def _network(member: Member, sequence: TaskSequence, metrics: Sequence[Metric]) -> tuple[object, ...]:
    """Return a key such that untrained networks with equal keys have equal metrics."""
    return (member.trial.model, member.init_hash, sequence.trial_seed, *metrics)


def _representation(
    member: Member,
    reading: Features,
    after_task: int,
    task: int | None,
    metrics: Sequence[Metric],
    ask: Ask,
    *,
    spectra: bool = True,
) -> None:
    member.rows += _metric_rows(take(metrics, reading, ask), after_task, task, FEATURES)
    if reading.classes and any("class_hits" in metric.reads for metric in metrics):
        member.rows += _class_rows(reading.class_hits, after_task, task)
    if not spectra:
        return
    eigenvalues = reading.spectrum.lam.tolist()
    member.rows += [SpectrumRow(after_task, task, FEATURES, i, finite(v)) for i, v in enumerate(eigenvalues)]


def _class_rows(hits: ClassHits, after_task: int, task: int | None) -> list[ClassRow]:
    counts = zip(hits.hits.tolist(), hits.examples.tolist(), strict=True)
    return [ClassRow(after_task, task, label, n, right / n) for label, (right, n) in enumerate(counts) if n]


def _curve(member: Member, task: int) -> Curve:
    """Return the steps and accuracies of a member's evaluations during a task."""
    rows = [row for row in member.rows if isinstance(row, CurveRow) and row.task == task]
    return Curve([row.step for row in rows], [row.eval_accuracy for row in rows])


def _similarity(sums: ClassSums, after_task: int) -> list[SimilarityRow]:
    classes, cosines = sums.counts.nonzero().flatten().tolist(), class_cosine(sums).tolist()
    return [SimilarityRow(after_task, FEATURES, a, b, finite(cosines[a][b])) for a in classes for b in classes]


def _of_some(row: Row, scored: Sequence[int], count: int) -> Row:
    """Add a note that lists the scored tasks to a pooled metric row; return any other row unchanged."""
    if not isinstance(row, MetricRow):
        return row
    said = f"pooled over {task_list([task + 1 for task in scored])} of {count}: the other tasks were not scored"
    return replace(row, note=f"{row.note}; {said}" if row.note else said)


def _of_model(
    member: Member,
    evaluator: Evaluator,
    sequence: TaskSequence,
    tasks: Sequence[int],
    after_task: int,
    metrics: Sequence[Metric],
    ask: Callable[[int | None], Ask],
    suite_seed: int,
) -> list[MetricRow]:
    """Return metrics of the network itself on each task's test data and, after the last task, the means over tasks."""
    rows: list[MetricRow] = []
    network = evaluator.with_weights(member.row)
    for task in tasks:
        test = sequence.test(task)
        corrupted = corrupter(test, task, evaluator.normalise, suite_seed)
        reading = Model(network, evaluator.normalise(test.inputs), test.targets, corrupted)
        rows += _metric_rows(take(metrics, reading, ask(task + 1)), after_task, task + 1)
    if after_task == sequence.family.count:
        for name in dict.fromkeys(row.metric for row in rows):
            values = [row.value for row in rows if row.metric == name]
            defined = [value for value in values if value is not None]
            note = next((row.note for row in rows if row.metric == name and row.note), None)
            mean = sum(defined) / len(values) if len(defined) == len(values) else None
            rows.append(MetricRow(after_task, None, None, name, mean, note))
    return rows


def _of_training(member: Member, evaluator: Evaluator, sequence: TaskSequence) -> OfTraining:
    """Return the features and logits of the last task's training examples, with the output weights; empty for text."""
    if evaluator.text:
        return OfTraining(None)
    score = evaluator.read(member.row, sequence.train(sequence.family.count - 1), with_logits=True)
    assert score.logits is not None
    output = evaluator.blueprint.output
    head = None if output is None else evaluator.blueprint.layout.views(member.row)[output].to(score.features.device)
    return OfTraining(Collapse(score.features, score.targets, score.logits.argmax(1), head, score.logits))


def _updates(member: Member, layout: Layout) -> Updates:
    """Return a member's watched updates, by layer."""
    found: dict[str, list[Geometry]] = {}
    for row in member.rows:
        if isinstance(row, UpdateRow):
            values = (math.nan if (value := getattr(row, name)) is None else value for name in NAMES)
            found.setdefault(row.layer, []).append(Geometry(*values))
    return Updates(found, layer_sizes(layout))


def _matrix(member: Member) -> Matrix:
    """Return the accuracy matrix R (T+1, T) of a finished trial, on validation data if the trial's stage is `tune`."""
    rows = [(member.trial, row) for row in member.rows if isinstance(row, AccuracyRow)]
    return score_matrices(arrow_table(AccuracyRow, rows), accuracy_column([member.trial.stage]))[member.trial.id]


def _features(
    score: ScoreWithFeatures, taps: Mapping[Place, Tap | None], *, classes: bool, cues: torch.Tensor | None
) -> Features:
    read = {place: tap for place, tap in taps.items() if tap is None or tap in score.elsewhere}
    elsewhere = {place: None if tap is None else score.elsewhere[tap] for place, tap in read.items()}
    return Features(score.features, score.targets, score.logits, elsewhere, classes=classes, cues=cues)


def _metric_rows(
    found: Iterable[Measurement], after_task: int, task: int | None, layer: str | None = None
) -> list[MetricRow]:
    return [MetricRow(after_task, task, m.layer or layer, m.metric, m.value, m.note) for m in found]


def _missing(after_task: int, task: int) -> AccuracyRow:
    return AccuracyRow(after_task, task, None, None, 0, None, None)
