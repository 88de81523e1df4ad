"""The sides of a claim (an optimizer, the solutions of two optimizers, or a number), and how they are compared."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator

from optbench.suite.fields import METRIC_PATTERN

Named: TypeAlias = tuple[str, str]
"""The name of an arm: an optimizer and one of its variants."""
Arms: TypeAlias = tuple[Named, ...]
"""One side of one part of a claim: an arm, or the two arms whose solutions are compared with each other."""


def _is_arm(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(METRIC_PATTERN, value) is not None and len(value) <= 400


def _side(value: Any) -> str | list[str]:
    if _is_arm(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_arm, value))):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"expected the name of an optimizer, or two in a list, as in [adam, sgd], got {value!r}")


def _side_or_number(value: Any) -> str | list[str] | float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    try:
        return _side(value)
    except ValueError:
        what = "expected the name of an optimizer, two in a list, as in [adam, sgd], or a number"
        raise ValueError(f"{what}, got {value!r}") from None


# Not validated as unions, because pydantic would then report one fault per type.
Side = Annotated[str | list[str], PlainValidator(_side)]
"""An arm (an optimizer, or one of its variants), or a list of two arms for a metric of two solutions."""
SideOrNumber = Annotated[str | list[str] | float, PlainValidator(_side_or_number)]


def split_arm(arm: str) -> tuple[str, str | None]:
    """Split the name of an arm into an optimizer and a variant, which is None if the arm stands for every variant."""
    optimizer, _, variant = arm.partition(" ")
    return optimizer, variant or None


def arms_of(side: str | list[str] | float) -> list[str]:
    """Return the arms named on a side: one, two, or none for a number."""
    if isinstance(side, float):
        return []
    return [side] if isinstance(side, str) else side


def side_text(side: str | list[str] | float) -> str:
    """Return a side in words, e.g. `adam`, `adam with sgd`, `adam with itself` or `0.1`.

    An optimizer paired with itself stands for each of its trials paired with the trial's control, which is trained with
    another data order.
    """
    if isinstance(side, list):
        return " with ".join(side if side[0] != side[1] else [side[0], "itself"])
    return side if isinstance(side, str) else f"{side:g}"


def covers(arm: str, optimizer: str, variant: str) -> bool:
    """Return whether an arm named in a claim covers this variant."""
    return split_arm(arm) in ((optimizer, variant), (optimizer, None))


def crossed(
    left: str | list[str], right: str | list[str] | float, arms: Sequence[Named]
) -> list[tuple[Arms, Arms | float]]:
    """Return the parts of a claim on one model: each variant on the left paired with each on the right.

    arms: the arms trained on the model.

    If both sides are pairs of solutions and name the same optimizer without a variant, the optimizer has the same
    variant on both sides. Two sides with the same arms, in any order, are left out, as there is nothing to compare.
    """
    if isinstance(right, float):
        return [(a, right) for a in _variants(left, arms)]
    found = [(a, b) for a in _variants(left, arms) for b in _variants(right, arms) if set(a) != set(b)]
    of_pairs = isinstance(left, list)
    return [(a, b) for a, b in found if not of_pairs or _same_variants(arms_of(left), a, arms_of(right), b)]


def _variants(side: str | list[str], arms: Sequence[Named]) -> list[Arms]:
    found = [[arm for arm in arms if covers(name, *arm)] for name in arms_of(side)]
    if len(found) == 1:
        return [(arm,) for arm in found[0]]
    if side[0] == side[1]:
        return [(arm, arm) for arm in found[0]]
    return [(a, b) for a in found[0] for b in found[1] if a != b]


def _same_variants(left: Sequence[str], a: Arms, right: Sequence[str], b: Arms) -> bool:
    """Return whether each name in both `left` (for arms `a`) and `right` (for arms `b`) stands for the same arm."""
    of_left, of_right = dict(zip(left, a, strict=True)), dict(zip(right, b, strict=True))
    return all(of_left[name] == of_right[name] for name in of_left.keys() & of_right.keys())
