"""Comparisons of the solutions of one seed: the rows of all pairs, computed from final weights without disk access.

Legend: P number of parameters, without padding.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optbench.engine.batches import Normaliser
from optbench.engine.evaluate import Evaluator
from optbench.engine.landscape import flat
from optbench.engine.lines import End, Lines
from optbench.engine.positions import sampled
from optbench.engine.statistics import running
from optbench.engine.workspace import Workspace
from optbench.metrics import METRICS, PAIR_METRICS
from optbench.metrics.landscape import NotedValue
from optbench.metrics.pairs import Solution, TwoSolutions
from optbench.plan import PairedSolutions, Trial, TrialPair
from optbench.precision import exact_device
from optbench.store.pairs_table import PairRow
from optbench.tasks import Examples

TRAIN_EXAMPLES = 1000
"""Maximum number of training examples per task that are pooled for the loss on a line; the first ones are used. On one
core in float64, each of the nine points between the ends takes 3 ms per task for LeNet-300-100 and 0.6 ms for mlp-100.
"""
TEST_EXAMPLES = 1000
"""Maximum number of test examples per task for the accuracy on a line, enough to resolve differences of 0.001. The
examples are evenly spaced, because the first half of MNIST's test data is easier. On one core, a point takes 8 ms per
task for LeNet-300-100 and 3 ms for mlp-100."""
BUDGET = 256 * 2**20
"""Maximum number of bytes for solutions in memory, except that two solutions are always kept. Evicted solutions are
evaluated again from their weights."""

Weights = Mapping[str, Tensor]
"""Parameters of one network by name."""


def compare(
    comparison: PairedSolutions,
    workspace: Workspace,
    weights: Callable[[Trial], Weights],
    missing: Mapping[str, str],
    budget: int = BUDGET,
) -> list[PairRow]:
    """Measure all requested metrics of every pair, and return their rows in the order of the pairs.

    weights: returns the final weights of a trial; called only for trials that have weights, and again for a solution
        that has been evicted.
    missing: maps the id of each trial without weights to the reason why it has none. The values of the trial's pairs
        are null, with the reason as a note.
    budget: as in `BUDGET`.
    """
    names = workspace.experiment.pairs.metrics if workspace.experiment.pairs else None
    chosen = PAIR_METRICS if names is None else tuple(names)
    reader = _SolutionReader(comparison, workspace, chosen)
    solutions = _Kept(lambda trial: reader.solution(weights(trial)), budget)
    there = [pair for pair in comparison.pairs if pair.a.id not in missing and pair.b.id not in missing]
    measured: dict[tuple[str, str], list[NotedValue]] = {}
    for pair in _tiled(there, solutions.room):
        a, b = solutions(pair.a), solutions(pair.b)
        between = reader.between(a, b)
        measured[pair.a.id, pair.b.id] = [METRICS[name].function()(between) for name in chosen]
    rows = []
    for pair in comparison.pairs:
        found = measured.get((pair.a.id, pair.b.id))
        why = next((missing[trial.id] for trial in (pair.a, pair.b) if trial.id in missing), "")
        for name, reading in zip(chosen, found or [NotedValue(math.nan, why)] * len(chosen), strict=True):
            rows.append(PairRow.of(pair, name, None if math.isnan(reading.value) else reading.value, reading.note))
    return rows


@dataclass(frozen=True)
class _Read:
    """A solution, together with its evaluation as one end of lines."""

    solution: Solution
    end: End

    @property
    def bytes(self) -> int:
        tensors = (self.solution.predictions, self.solution.centred)
        return self.end.bytes + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _SolutionReader:
    """Evaluates the solutions of one seed, and the lines between them, on the examples of that seed."""

    def __init__(self, comparison: PairedSolutions, workspace: Workspace, metrics: Sequence[str]) -> None:
        self.blueprint = workspace.blueprint(comparison.experiment, comparison.model)
        self.layout = self.blueprint.layout
        normalise = Normaliser.of(workspace.dataset, workspace.experiment.protocol, workspace.device)
        self.evaluator = Evaluator(self.blueprint, normalise)
        self.device = workspace.device
        self.exact = exact_device(workspace.device)
        self.sequence = workspace.family.sequence(comparison.seed)
        self.tasks = range(workspace.family.count)
        self.suite_seed = workspace.suite_seed
        self._initial = self.blueprint.start(workspace.suite_seed, comparison.seed)
        self.start = flat(self.layout, self.layout.pack(self._initial).to(self.device))
        # inputs are stored as bytes, not as floats, so that a hundred tasks fit in memory
        loss, accuracy = (name in metrics for name in ("loss_barrier", "accuracy_barrier"))
        moves = bool(running(self.blueprint.network)) and (loss or accuracy)
        train = [_first(self.sequence.train(task)) for task in self.tasks] if loss or moves else []
        test = _pooled([_spread(self.sequence.test(task)) for task in self.tasks]) if accuracy else None
        statistics = _pooled(train) if moves else None
        self.lines = Lines(self.evaluator, train if loss else [], test, self.exact, statistics)

    def solution(self, weights: Weights) -> _Read:
        # A checkpoint lacks non-persistent buffers, so the initial ones are used.
        row = self.layout.pack({**self._initial, **weights}).to(self.device)
        ours = self.blueprint.ours
        tests = (self.sequence.test(task) for task in self.tasks)
        readings = [
            self.evaluator.read(row, test, with_logits=not ours, at=sampled(test, self.suite_seed)) for test in tests
        ]
        pooled = torch.cat([reading.features for reading in readings])
        if ours:
            head = self.layout.views(row)
            predictions = nn.functional.linear(pooled, head["head.weight"], head.get("head.bias")).argmax(1)
        else:
            predictions = torch.cat([r.logits.argmax(1) for r in readings if r.logits is not None])
        point = flat(self.layout, row)
        read = Solution.of(point, pooled.to(self.exact), predictions.to(self.exact))
        return _Read(read, self.lines.end(point, row))

    def between(self, a: _Read, b: _Read) -> TwoSolutions:
        return TwoSolutions(a.solution, b.solution, self.start, *self.lines.between(a.end, b.end))


class _Kept:
    """A cache of the most recently used solutions within the budget."""

    def __init__(self, read: Callable[[Trial], _Read], budget: int) -> None:
        self._read = read
        self._budget = budget
        self._kept: OrderedDict[str, _Read] = OrderedDict()

    def room(self, trial: Trial) -> int:
        """Return how many solutions of this trial's size are kept: all that fit in the budget, but at least two."""
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
    """Yield the pairs in tiles, so that solutions are evaluated again as rarely as `room` allows."""
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
    # copies, because views would keep the arrays of every task alive
    few = slice(examples.few(TRAIN_EXAMPLES))
    return Examples(examples.inputs[few].clone(), examples.targets[few].clone())


def _spread(examples: Examples) -> Examples:
    count = min(examples.few(TEST_EXAMPLES), len(examples))
    index = torch.arange(count, device=examples.targets.device) * len(examples) // count
    return examples.select(index)


def _pooled(parts: Sequence[Examples]) -> Examples:
    return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))
