"""The number of seeds that a verdict needs, and tests with too few seeds to show a difference whatever the data.

Legend: `n` paired seeds, `m` tests in the family of Holm's correction. The smallest two-sided p of the exact
signed-rank test is 2/2ⁿ, and Holm's first step multiplies it by m. If the product exceeds .05, no difference can be
significant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optbench.counting import count, grouped
from optbench.metrics import PRIMARY_METRICS
from optbench.plan import Trial
from optbench.stats.signed_rank import smallest_p
from optbench.suite import Suite
from optbench.suite.claims import Claim
from optbench.suite.sides import crossed

MIN_PAIRS = 6
"""The smallest number of pairs that can reach p ≤ .05."""
ALPHA = 0.05
"""The family-wise error rate."""
NAMED = 3
"""Maximum number of names listed in a sentence; further ones are only counted."""


@dataclass(frozen=True)
class Shortage:
    """Tests for which there are too few seeds.

    about: what the tests are about, e.g. `permuted-mnist and digit-pairs` or `all 11 claims`.
    family: the size of the largest family.
    tests: the family in words, e.g. `3 primary metrics`.
    seeds: the number of seeds available.
    needed: the number of seeds needed for all of the tests.
    """

    about: str
    family: int
    tests: str
    seeds: int
    needed: int

    @property
    def smallest_p(self) -> float:
        """The smallest p that can be reached after Holm's correction."""
        return smallest_holm_p(self.seeds, self.family)


def smallest_holm_p(n: int, m: int) -> float:
    """Return the smallest p, after Holm's correction over a family of m tests, that n pairs can reach."""
    return min(1.0, m * smallest_p(n))


def seeds_needed(m: int) -> int:
    """Return the smallest number of pairs that can show a difference in a family of m tests.

    For example, the number is 6 for m = 1, and 7 for m = 2 or 3.
    """
    n = MIN_PAIRS
    while smallest_holm_p(n, m) > ALPHA:
        n += 1
    return n


def suite_shortages(suite: Suite, planned: Iterable[Trial], parts: Sequence[int] | None = None) -> list[Shortage]:
    """Return the tests for which a suite has too few seeds, comparisons first; empty if all of them have enough.

    A tuning suite has no tests.

    planned: the suite's trials.
    parts: the size of each claim's family, as returned by `corrected_for`. If None, families are determined from the
    planned trials and include all variants of a claim with a condition, since it is unknown before training which of
    them meet the condition.
    """
    if suite.stage == "tune":
        return []
    if parts is None:
        arms = {(t.experiment, t.model, t.optimizer, t.variant) for t in planned if not t.is_control}
        parts = [_parts(claim, arms) for claim in suite.claims.values()]
    families = {name: len(experiment.primary or PRIMARY_METRICS) for name, experiment in suite.experiments.items()}
    n = len(suite.seeds)
    return [*comparison_shortages(families, n), *claim_shortages(parts, n)]


def comparison_shortages(families: Mapping[str, int], n: int) -> list[Shortage]:
    """Return the shortages of experiments, or pairs of arms, whose family of metrics is too large for n seeds.

    families: the number of primary metrics, by the name of the experiment or pair. Names with equal numbers are
    combined into one shortage.
    """
    short = {place: m for place, m in families.items() if n < seeds_needed(m)}
    return [
        Shortage(_listed(places), m, count(m, "primary metric"), n, seeds_needed(m))
        for m, places in grouped((m, place) for place, m in short.items()).items()
    ]


def claim_shortages(parts: Sequence[int], n: int) -> list[Shortage]:
    """Return one shortage for all claims whose family is too large for n seeds; empty if there are no such claims.

    parts: the size of each claim's family, as returned by `corrected_for`.
    """
    short = [m for m in parts if m and n < seeds_needed(m)]
    if not short:
        return []
    most = max(short)
    every = f"all {len(parts)} claims" if len(parts) > 1 else "the claim"
    about = every if len(short) == len(parts) else f"{len(short)} of {count(len(parts), 'claim')}"
    tests = f"{'up to ' if min(short) < most else ''}{count(most, 'part')}"
    return [Shortage(about, most, tests, n, seeds_needed(most))]


def shortage_text(shortages: Sequence[Shortage]) -> str:
    """Return a sentence with the number of seeds, which must be the same for all shortages, and the numbers needed.

    For example, `6 seeds are too few to show a difference: expected at least 7 for permuted-mnist (3 primary metrics:
    smallest p after Holm's correction 0.0938)`.
    """
    [n] = {shortage.seeds for shortage in shortages}
    needs = [
        f"at least {s.needed} for {s.about} ({s.tests}: smallest p after Holm's correction {s.smallest_p:.3g})"
        for s in shortages
    ]
    return f"{count(n, 'seed')} {'is' if n == 1 else 'are'} too few to show a difference: expected {', '.join(needs)}"


def _parts(claim: Claim, arms: Iterable[tuple[str, str, str, str]]) -> int:
    """Count the tests in a claim's family: on every model, each left variant is tested against each right variant.

    At matched accuracy, each variant of the side with fewer variants is tested against one partner only.
    """
    by_model = grouped(
        (model, (optimizer, variant))
        for experiment, model, optimizer, variant in arms
        if experiment == claim.experiment and (claim.models is None or model in claim.models)
    )

    def number(found: Sequence[tuple[str, str]]) -> int:
        parts = crossed(claim.left, claim.right, found)
        if claim.matched:
            return min(len({left for left, _ in parts}), len({right for _, right in parts}))
        return len(parts)

    return corrected_for(claim, sum(map(number, by_model.values())))


def corrected_for(claim: Claim, parts: int) -> int:
    """Return the size of a claim's family in Holm's correction: the number of parts.

    A claim of equivalence needs no correction, because all parts must support it; its family has at most one member.
    """
    return min(1, parts) if claim.expect == "equivalent" else parts


def _listed(names: Sequence[str]) -> str:
    """Join names: `a`, `a and b`, `a, b and c`, `a, b, c and 2 more`."""
    shown = [*names[:NAMED], *([f"{len(names) - NAMED} more"] if len(names) > NAMED else [])]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
