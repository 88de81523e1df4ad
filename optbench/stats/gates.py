"""Gates for CI: `forgetting:+0.02` fails if the 95% interval of the difference in forgetting, A - B, lies above .02."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from optbench.counting import count
from optbench.errors import UsageError
from optbench.stats.arms import Arm
from optbench.stats.comparison import ArmComparison

_PATTERN = re.compile(
    r"(?P<metric>.+):(?P<sign>[+-])(?P<size>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)(?P<percent>%?)"
)


@dataclass(frozen=True)
class Gate:
    """A parsed gate.

    text: the gate as given by the user.
    upwards: whether the gate limits an increase.
    threshold: the signed difference that must not be exceeded.
    relative: whether the threshold is a fraction of the absolute value of B's median rather than in the metric's unit.
    """

    text: str
    metric: str
    upwards: bool
    threshold: float
    relative: bool


class GateResult(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class JudgedGate:
    """The result of one gate on one pair of arms; the reason is empty unless the gate is inconclusive."""

    gate: Gate
    pair: ArmComparison
    result: GateResult
    reason: str

    def fails(self, *, strict: bool) -> bool:
        """Return whether the gate gives exit code 1.

        A failed gate does. An inconclusive gate does if trials of A did not learn and A learnt less reliably than B:
        the interval then says nothing about a regression, and more seeds would not change this.

        strict: whether every inconclusive gate gives exit code 1.
        """
        if self.result is GateResult.INCONCLUSIVE:
            a, b = self.pair.a, self.pair.b
            return strict or (_unlearnt(a) > 0 and _without_learning(a) > _without_learning(b))
        return self.result is GateResult.FAILED


def parse_gate(text: str) -> Gate:
    """Parse `METRIC:+SIZE` or `METRIC:-SIZE`.

    The size is in the metric's unit or, if it ends in `%`, a percentage of B's median.

    Raises:
        UsageError: the text does not have this form.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        needed = "expected METRIC:+SIZE or METRIC:-SIZE, as in forgetting:+0.02 or average_accuracy:-1%"
        raise UsageError(f"--fail-on '{text}': {needed}")
    size = float(f"{match['sign']}{match['size']}") / (100 if match["percent"] else 1)
    return Gate(text.strip(), match["metric"], match["sign"] == "+", size, bool(match["percent"]))


def judge_gates(gates: Sequence[Gate], pairs: Sequence[ArmComparison]) -> list[JudgedGate]:
    """Judge every gate on every pair of arms."""
    return [JudgedGate(gate, pair, *_judge(gate, pair)) for gate in gates for pair in pairs]


def unmeasured(gates: Sequence[Gate], pairs: Sequence[ArmComparison]) -> list[Gate]:
    """Return the gates on metrics that no trial of any pair measured, although some trials ended `ok`."""
    finished = [pair for pair in pairs if pair.a.count("ok") or pair.b.count("ok")]
    measured = {gate.metric for gate in gates for pair in finished for arm in (pair.a, pair.b) if arm.took(gate.metric)}
    return [gate for gate in gates if finished and gate.metric not in measured]


def _judge(gate: Gate, pair: ArmComparison) -> tuple[GateResult, str]:
    """Return the result and, if it is inconclusive, the reason.

    The gate fails if the entire 95% interval of A - B exceeds the threshold. It passes if no part of the interval does,
    unless trials of A failed or are not finished, or trials of either side failed to learn a task or ended above the
    target training loss.
    """
    result, reason = _judge_interval(gate, pair)
    if result is not GateResult.FAILED and (said := _not_learnt(pair)):
        return GateResult.INCONCLUSIVE, "; ".join(filter(None, (said, reason)))
    return result, reason


def _not_learnt(pair: ArmComparison) -> str:
    """Return how many trials of each side failed to learn a task; empty if none did."""
    found = [
        f"{n} of {side}'s {count(arm.count('ok'), 'trial')}"
        for side, arm in (("A", pair.a), ("B", pair.b))
        if (n := _unlearnt(arm))
    ]
    return f"{' and '.join(found)} did not learn every task" if found else ""


def _unlearnt(arm: Arm) -> int:
    return arm.shortcoming.affected if arm.shortcoming else 0


def _without_learning(arm: Arm) -> float:
    """Return the share of trials that did not learn, diverged or stayed above the target training loss.

    Failed and unfinished trials are not counted, because nothing is known about their learning.
    """
    ended_early = arm.count("diverged") + arm.count("above_target")
    ended = arm.count("ok") + ended_early
    return (_unlearnt(arm) + ended_early) / ended if ended else 0.0


def _judge_interval(gate: Gate, pair: ArmComparison) -> tuple[GateResult, str]:
    """Judge a gate by the interval, without regard to whether the networks learnt."""
    found = pair.metric(gate.metric)
    if found is None or found.result.n == 0:
        return GateResult.INCONCLUSIVE, "not measured"
    if pair.same_start is False:
        return GateResult.INCONCLUSIVE, "initial weights differ, so there are no pairs"
    if found.result.interval is None:
        return GateResult.INCONCLUSIVE, f"no 95% interval is possible with {count(found.result.n, 'pair')}"
    low, high = found.result.interval
    threshold = gate.threshold
    if gate.relative:
        if found.result.median_b is None:
            return GateResult.INCONCLUSIVE, "the threshold is relative to B's median, which is undefined"
        threshold *= abs(found.result.median_b)
    if low > threshold if gate.upwards else high < threshold:
        return GateResult.FAILED, ""
    if lost := pair.a.count("failed") + pair.a.count("missing"):
        return GateResult.INCONCLUSIVE, f"{lost} of A's trials failed or are not finished"
    for side, arm in (("A", pair.a), ("B", pair.b)):
        if above := arm.count("above_target"):  # their outcome excludes their seeds from the interval
            return GateResult.INCONCLUSIVE, f"{above} of {side}'s trials ended above the target training loss"
    within = high <= threshold if gate.upwards else low >= threshold
    return (GateResult.PASSED, "") if within else (GateResult.INCONCLUSIVE, "the interval contains the threshold")
