"""The factors of a parameter's blocks in Shampoo, and when their roots are refreshed.

Shapes: M members; B blocks of one shape, each h × w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optbench.optimizers import factors
from optbench.optimizers.blocks import Part, block_side, parts
from optbench.optimizers.regions import ROOTS, STATISTICS
from optbench.optimizers.roots import one_by_one
from optbench.optimizers.shampoo_settings import AUTO
from optbench.precision import widest

UNASKED = 50
"""Steps between refreshes with `AUTO` on an accelerator, where checking what is due would synchronise the device."""
SMALL_SIDE = 128
"""By default, roots of sides up to this length are refreshed, or with `AUTO` checked, at every step."""


class Numbers(NamedTuple):
    """Settings and values derived from them, each (M,) with one number per member."""

    epsilon: Tensor
    beta2: Tensor
    new: Tensor
    correction: Tensor


def roots_of(
    part: Part,
    sides: Sequence[str],
    g: Tensor,
    numbers: Numbers,
    state: dict[str, Any],
    group: dict[str, Any],
    *,
    fresh: bool,
) -> list[Tensor]:
    """Add the gradients of a part's blocks to the blocks' factors; return the factors' roots, refreshed if due.

    sides: names of the sides. g: the gradients, (M·B, h, w). fresh: whether to create the factors first.

    Roots that cannot be refreshed are counted in `state["fallbacks"]`.
    """
    epsilon, beta2, new, correction = map(part.spread, numbers)
    largest = g.abs().amax((1, 2)).tolist() if one_by_one(g) else []
    tensors, roots = part.opened(state), []
    if fresh:
        _begin(tensors, sides, g, epsilon, group)
        part.close(tensors, state)
    for side, rows in zip(sides, (g, g.mT), strict=False):
        factor, single = factors.factor_of(tensors, side, 2 * len(sides)), _single(rows, epsilon, group)
        with STATISTICS:
            factors.accumulate(factor, rows, beta2, new, single, largest)
        due = fresh or is_due(factor.size, len(sides), group, one_by_one(g))
        if due is None and factor.seen is None:  # the state is from another device
            due = True
        members: Sequence[int] = range(len(g)) if due else ()
        if due is None:
            with ROOTS:
                members = factors.outgrown(factor, rows, epsilon, correction, group["refresh_share"])
        if members:
            newton = group["smallest_epsilon"] if group["root"] == "newton" else None
            precisions = [torch.float32 if fits else torch.float64 for fits in single]
            with ROOTS:
                kept = factors.refresh(factor, members, epsilon, correction, newton, precisions)
            state["fallbacks"] += kept.view(-1, part.count).sum(1)
        roots.append(factor.root)
    return roots


def block_sides(parameter: Tensor, group: dict[str, Any]) -> tuple[int, ...]:
    """Return the side lengths of a parameter's largest block; each side has a factor."""
    return tuple(block_side(side, group["block_size"], group["max_side"]) for side in sides_of(parameter, group))


def sides_of(parameter: Tensor, group: dict[str, Any]) -> tuple[int, ...]:
    """Return the lengths of a parameter's sides: (m, n) for a matrix, (n,) for a vector."""
    shape = parameter.shape[1:] if group["stacked"] else parameter.shape
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape),)


def parts_of(parameter: Tensor, group: dict[str, Any]) -> tuple[Part, ...]:
    """Return the parts into which a parameter is divided, each a set of blocks of one shape."""
    rows, *columns = sides_of(parameter, group)
    return parts(rows, columns[0] if columns else 1, group["block_size"], group["max_side"])


def renewed_by_need(size: int, group: dict[str, Any]) -> bool:
    """Return whether a root for a side of length `size` is refreshed by need rather than on a schedule."""
    diagonal = size > group["max_side"] or group["structure"] == "diagonal-factor"
    small = group["small_side"] is not None and size <= group["small_side"]
    return group["precondition_frequency"] == AUTO and not diagonal and not small


def is_due(size: int, sides: int, group: dict[str, Any], asked: bool) -> bool | None:
    """Return whether the root of a side is refreshed at this step; None if this depends on the side's factor.

    size: length of the side. sides: number of sides of the parameter. asked: whether factors can be checked, i.e. are
    on a CPU.
    """
    clock, frequency, begun = group["clock"], group["precondition_frequency"], group["task_begun"]
    if frequency == AUTO and asked:
        if not renewed_by_need(size, group) or (begun and clock == 0):
            return True
        # Network inputs change little from step to step, unlike hidden layers.
        every = 1 if size <= group["layer_side"] else math.ceil(size / SMALL_SIDE)
        return None if _falls_due(every, clock, begun) else False
    never_stale = sides == 1 and group["small_side"] is None  # includes vectors longer than `max_side`
    if never_stale or size <= group["refreshed_side"]:
        return True
    return _falls_due(UNASKED if frequency == AUTO else frequency, clock, begun)


def _falls_due(every: int, clock: int, begun: bool) -> bool:
    """Return whether a refresh is due at the step with index `clock`, counted from 0.

    Before `begin_task()` is first called, the last step of each block of `every` steps is due. After that, a step is
    due if its index is a multiple of `every`, or one of 1, 2, 4, 8, ... below `every`.
    """
    if not begun:
        return (clock + 1) % every == 0
    return clock % every == 0 or (clock < every and clock & (clock - 1) == 0)


def _begin(state: dict[str, Any], sides: Sequence[str], g: Tensor, epsilon: Tensor, group: dict[str, Any]) -> None:
    """Create the blocks' initial factors in `state`. g: the first gradients, (M·B, h, w). epsilon: (M·B,)."""
    start = torch.as_tensor(group["initial_epsilon"], dtype=widest(g.device), device=g.device)
    start = start.repeat_interleave(len(g) // len(start)) if start.ndim else start.expand(len(g))
    for side, rows in zip(sides, (g, g.mT), strict=False):
        diagonal = group["structure"] == "diagonal-factor" or rows.shape[1] > group["max_side"]
        by_need = one_by_one(rows) and renewed_by_need(rows.shape[1], group)
        single = _single(rows, epsilon, group)
        factors.begin(state, side, rows, start, diagonal=diagonal, single=single, by_need=by_need)


def _single(rows: Tensor, epsilon: Tensor, group: dict[str, Any]) -> list[bool]:
    """Return, for each member, whether the factor of its `rows` is accumulated and decomposed in float32.

    rows: the gradients, (M, n, k), with the factor's side n first.
    """
    if group["root_precision"] != "auto":
        return [group["root_precision"] == "float32"] * len(rows)
    if rows.dtype == torch.float64 or not one_by_one(rows):
        return [False] * len(rows)
    return factors.single_fits(rows.shape[1], epsilon.tolist())
