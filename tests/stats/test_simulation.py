"""Simulated seeds: intervals have their coverage, the null gives few verdicts, and planted effects are found.

The standard error of a share of .05 is .0034 over 4,000 replicates, .0049 over 2,000 and .0069 over 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.metrics.metric import Direction
from optbench.stats.paired import PairedValues, compare_paired
from optbench.stats.signed_rank import interval
from optbench.stats.verdict import Judgement, Question, Verdict, judge

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

# Plausible differences of accuracies: symmetric about 0, standard deviation or scale .01.
NOISE: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(0.0, 0.01, shape),
    "Laplace": lambda rng, shape: rng.laplace(0.0, 0.01, shape),
    "t3": lambda rng, shape: 0.01 * rng.standard_t(3, shape),
    "multiples of 1e-4": lambda rng, shape: np.round(rng.normal(0.0, 0.01, shape), 4),
    "difference of log-normals": lambda rng, shape: 0.01 * (rng.lognormal(size=shape) - rng.lognormal(size=shape)),
}
FAMILY: tuple[Direction, ...] = ("higher", "lower", "neutral")
TALKING = {Verdict.BETTER, Verdict.WORSE, Verdict.HIGHER, Verdict.LOWER, Verdict.BELOW_MARGIN}


@pytest.mark.parametrize("noise", NOISE)
def test_intervals_of_ten_seeds_cover_their_level(noise: str) -> None:
    rng = np.random.default_rng([10, list(NOISE).index(noise)])
    replicates, effect = 4000, 0.0123
    bounds = np.array([interval(d) for d in effect + NOISE[noise](rng, (replicates, 10))])
    covered = float(((bounds[:, 0] <= effect) & (effect <= bounds[:, 1])).mean())
    assert 0.93 <= covered <= 0.97
    # Without ties the coverage is 1 - 2 P(W ≤ 8) for ten ranks.
    if noise != "multiples of 1e-4":
        assert covered == pytest.approx(1 - 50 / 1024, abs=4 * math.sqrt(0.05 * 0.95 / replicates))


def experiment(
    rng: np.random.Generator, noise: Draw, n: int, effects: tuple[float, float, float], diverging: float
) -> list[Judgement]:
    """Judge a primary family of three metrics, correlated within a trial and between trials of a seed."""
    seeds, trials = noise(rng, (n, 1, 1)), noise(rng, (n, 2, 1))
    values = 0.9 + seeds + trials + noise(rng, (n, 2, len(FAMILY)))
    values[:, 0] += effects
    fell = rng.random((n, 2)) < diverging
    questions = []
    for i, direction in enumerate(FAMILY):
        pairs = PairedValues(values[:, 0, i], values[:, 1, i], fell[:, 0], fell[:, 1])
        questions.append(Question(compare_paired(pairs, direction), direction, margin=0.001))
    return judge(questions)


@pytest.mark.parametrize(
    ("noise", "n", "diverging"),
    [("normal", 10, 0.0), ("t3", 16, 0.0), ("multiples of 1e-4", 8, 0.0), ("Laplace", 10, 0.15)],
)
def test_the_null_gives_a_verdict_on_at_most_one_family_in_twenty(noise: str, n: int, diverging: float) -> None:
    rng = np.random.default_rng([20, n, int(100 * diverging)])
    replicates = 1000
    wrong = sum(
        any(j.verdict in TALKING for j in experiment(rng, NOISE[noise], n, (0.0, 0.0, 0.0), diverging))
        for _ in range(replicates)
    )
    assert wrong / replicates <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / replicates)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_planted_effect_is_found_with_its_sign(noise: str, sign: int) -> None:
    rng = np.random.default_rng([30, sign + 1, list(NOISE).index(noise)])
    expected = (
        [Verdict.BETTER, Verdict.WORSE, Verdict.HIGHER] if sign > 0 else [Verdict.WORSE, Verdict.BETTER, Verdict.LOWER]
    )
    replicates, effect = 40, sign * 0.1
    found = [
        [j.verdict for j in experiment(rng, NOISE[noise], 10, (effect, effect, effect), 0.0)] for _ in range(replicates)
    ]
    for i, verdict in enumerate(expected):
        assert {verdicts[i] for verdicts in found} <= {verdict, Verdict.NO_EVIDENCE}
        assert sum(verdicts[i] == verdict for verdicts in found) >= 0.8 * replicates


def test_a_difference_as_large_as_the_margin_is_rarely_called_equivalent() -> None:
    rng = np.random.default_rng(40)
    replicates, margin = 2000, 0.01
    said = 0
    for d in margin + rng.normal(0.0, 0.005, (replicates, 10)):
        never = np.zeros(10, dtype=bool)
        result = compare_paired(PairedValues(0.9 + d, np.full(10, 0.9), never, never), "neutral")
        said += judge([Question(result, "neutral", margin)])[0].verdict == Verdict.EQUIVALENT
    assert said / replicates <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / replicates)
