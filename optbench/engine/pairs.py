"""Compares the solutions of one seed: final weights in, rows out. Touches no disk.

Legend: P the network's parameters, without padding; N test examples of all tasks; d features; K points on a line.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.batches import Normaliser
from optbench.engine.evaluate import Evaluator
from optbench.engine.landscape import flat
from optbench.engine.stack import Layout
from optbench.engine.train import Setting
from optbench.metrics import METRICS, PAIR_METRICS
from optbench.metrics.landscape import BARRIER_POINTS, Reading, interpolate
from optbench.metrics.pairs import Pair, Solution
from optbench.models import build, initialise
from optbench.plan import Comparison, Trial, TrialPair
from optbench.store.pairs import PairRow
from optbench.streams import generator
from optbench.tasks import Examples

TRAIN_EXAMPLES = 1000
"""The loss on a line is that of the first so many training examples of every task, pooled, in float64: 17 ms a point
and task for LeNet-300-100 on one core, and there are nine points between the ends."""
TEST_EXAMPLES = 1000
"""The accuracy on a line is that of so many test examples of every task, evenly spread over all: the first half of
MNIST's is the easier one. 10 ms a point and task, and steps of a thousandth."""
POINTS = BARRIER_POINTS
"""K, both ends included."""
BUDGET = 256 * 2**20
"""Bytes of solutions kept at a time (two at least, whatever their size); more are read again from their weights."""

Weights = Mapping[str, Tensor]
"""Parameters of one network by name."""


def compare(
    comparison: Comparison,
    setting: Setting,
    weights: Callable[[Trial], Weights],
    missing: Mapping[str, str],
    budget: int = BUDGET,
) -> list[PairRow]:
    """Every measure of every pair, in order.

    weights: the final weights of a trial; called only for those that have any, and anew when a solution was let go.
    missing: for the trials that have none, why; their pairs get null with that note.
    """
    names = setting.experiment.pairs.metrics if setting.experiment.pairs else None
    chosen = PAIR_METRICS if names is None else tuple(names)
    reader = _Reader(comparison, setting, chosen)
    solutions = _Kept(lambda trial: reader.solution(weights(trial)), budget)
    there = [pair for pair in comparison.pairs if pair.a.id not in missing and pair.b.id not in missing]
    measured: dict[tuple[str, str], list[Reading]] = {}
    for pair in _tiled(there, solutions.room):
        a, b = solutions(pair.a), solutions(pair.b)
        between = reader.between(a, b)
        measured[pair.a.id, pair.b.id] = [METRICS[name].function()(between) for name in chosen]
    rows = []
    for pair in comparison.pairs:
        found = measured.get((pair.a.id, pair.b.id))
        why = next((missing[trial.id] for trial in (pair.a, pair.b) if trial.id in missing), "")
        for name, reading in zip(chosen, found or [Reading(math.nan, why)] * len(chosen), strict=True):
            rows.append(PairRow.of(pair, name, None if math.isnan(reading.value) else reading.value, reading.note))
    return rows


@dataclass(frozen=True)
class _Read:
    """A solution with the two ends of its lines: training loss and test accuracy, NaN where nobody asks."""

    solution: Solution
    loss: float
    accuracy: float

    @property
    def bytes(self) -> int:
        tensors = (self.solution.weights, self.solution.predictions, self.solution.centred)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Reader:
    """Reads solutions, and the lines between them, on the examples of one seed."""

    def __init__(self, comparison: Comparison, setting: Setting, metrics: Sequence[str]) -> None:
        network = build(setting.experiment.models[comparison.model], setting.family.shape, setting.family.classes)
        self.network = network.eval()
        self.layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
        self.normalise = Normaliser.of(setting.dataset, setting.experiment.protocol, setting.device)
        self.evaluator = Evaluator(network, self.layout, self.normalise)
        self.device = setting.device
        self.exact = torch.device("cpu") if setting.device.type == "mps" else setting.device  # Apple's have no float64
        self.sequence = setting.family.sequence(comparison.seed)
        self.tasks = range(setting.family.count)
        start = initialise(network, generator(setting.suite_seed, comparison.seed, "initial weights"))
        self.start = flat(self.layout, self.layout.pack(start).to(self.device))
        # Bytes, not floats: of a hundred tasks, too.
        train = [_first(self.sequence.train(task)) for task in self.tasks] if "loss_barrier" in metrics else []
        test = [_spread(self.sequence.test(task)) for task in self.tasks] if "accuracy_barrier" in metrics else []
        self.train, self.test = train, _pooled(test) if test else None
        self.alphas = torch.linspace(0.0, 1.0, POINTS, dtype=torch.float64)

    def solution(self, weights: Weights) -> _Read:
        row = self.layout.pack(weights).to(self.device)
        pooled = torch.cat([self.evaluator.read(row, self.sequence.test(task)).features for task in self.tasks])
        head = self.layout.views(row)
        predictions = nn.functional.linear(pooled, head["head.weight"], head.get("head.bias")).argmax(1)
        point = flat(self.layout, row)
        read = Solution.of(point, pooled.to(self.exact), predictions.to(self.exact))
        return _Read(read, self._loss(point), self._accuracy(point))

    def between(self, a: _Read, b: _Read) -> Pair:
        # The ends are known; only what lies between them is read.
        points = interpolate(a.solution.weights, b.solution.weights, self.alphas[1:-1])
        losses = accuracies = None
        if self.train:
            losses = torch.tensor([a.loss, *map(self._loss, points), b.loss], dtype=torch.float64)
        if self.test is not None:
            accuracies = torch.tensor([a.accuracy, *map(self._accuracy, points), b.accuracy], dtype=torch.float64)
        return Pair(a.solution, b.solution, self.start, losses, accuracies)

    @torch.no_grad()
    def _loss(self, point: Tensor) -> float:
        """Mean cross-entropy over the training examples of all tasks, at weights (P,) float64."""
        total, count = 0.0, 0
        parameters = self._parameters(point)
        for examples in self.train:
            inputs = self.normalise(examples.inputs).to(self.exact).double()
            logits = functional_call(self.network, parameters, (inputs,))
            labels = examples.labels.to(self.exact)
            total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += len(examples)
        return total / count if count else math.nan

    def _accuracy(self, point: Tensor) -> float:
        """Share of the test examples labelled correctly at weights (P,), in float32 as in every accuracy."""
        if self.test is None:
            return math.nan
        row = self.layout.pack(self._parameters(point)).to(self.device)
        return self.evaluator.read(row, self.test).accuracy

    def _parameters(self, point: Tensor) -> dict[str, Tensor]:
        parts = torch.split(point, [slot.numel for slot in self.layout.slots])
        return {slot.name: part.view(slot.shape) for slot, part in zip(self.layout.slots, parts, strict=True)}


class _Kept:
    """The solutions used last, as many as the budget allows."""

    def __init__(self, read: Callable[[Trial], _Read], budget: int) -> None:
        self._read = read
        self._budget = budget
        self._kept: OrderedDict[str, _Read] = OrderedDict()

    def room(self, trial: Trial) -> int:
        """How many solutions like this trial's are kept: at least two, so that a pair is there at once."""
        return self._most(self(trial))

    def _most(self, read: _Read) -> int:
        return max(2, self._budget // read.bytes)

    def __call__(self, trial: Trial) -> _Read:
        found = self._kept.pop(trial.id, None)
        if found is None:
            found = self._read(trial)
            while len(self._kept) >= self._most(found):
                self._kept.popitem(last=False)
        self._kept[trial.id] = found
        return found


def _tiled(pairs: Sequence[TrialPair], room: Callable[[Trial], int]) -> Iterator[TrialPair]:
    """The pairs tile by tile, so that each solution is read as seldom as `room` for some at a time allows."""
    if not pairs:
        return
    order = {trial: i for i, trial in enumerate(dict.fromkeys(t.id for pair in pairs for t in (pair.a, pair.b)))}
    half = max(1, room(pairs[0].a) // 2)
    if len(order) <= 2 * half:
        yield from pairs
        return

    def tile(pair: TrialPair) -> tuple[int, ...]:
        a, b = order[pair.a.id], order[pair.b.id]
        return a // half, b // half, a, b

    yield from sorted(pairs, key=tile)


def _first(examples: Examples) -> Examples:
    # Copies: views would keep the arrays of every task alive.
    return Examples(examples.inputs[:TRAIN_EXAMPLES].clone(), examples.labels[:TRAIN_EXAMPLES].clone())


def _spread(examples: Examples) -> Examples:
    count = min(TEST_EXAMPLES, len(examples))
    index = torch.arange(count, device=examples.labels.device) * len(examples) // count
    return examples.select(index)


def _pooled(parts: Sequence[Examples]) -> Examples:
    return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))
