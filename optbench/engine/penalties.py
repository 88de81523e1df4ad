"""Penalties on the rank of features, added to members' losses in each way of computing gradients.

A penalty's gradient with respect to the features is computed separately (`optimizers.rank_penalty.entropy`) and added
to the gradient from the head. The optimizer, its lane and its state are therefore the same as without a penalty.

Legend: M members, N rows of features in a batch, d features, r = min(N, d).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optbench.engine.autocast import in_full
from optbench.engine.blueprint import METHOD, own_features
from optbench.optimizers.rank_penalty import entropy, random_frame


@dataclass(frozen=True)
class Penalty:
    """The penalty λ H on the features of one member, as in `RankPenalty`."""

    strength: float
    """λ; 0 has no effect."""
    rotated: bool
    """True to use the rotated penalty; the same for all members of a stack."""
    draws: Callable[[int], int]
    """draws(step) -> the seed of the rotation at a step, the same for every optimizer with a given trial seed."""
    features: str
    """The location of the features, as in `Blueprint.features`; the same for all members of a stack."""

    def frame(self, features: Tensor, step: int) -> Tensor | None:
        """Return the rotation (d, r) for a step and features (N, d); None if the penalty is not rotated."""
        if not self.rotated:
            return None
        return random_frame(features, torch.Generator().manual_seed(self.draws(step)))


class Penalties:
    """Computes the penalties of a stack's members, step by step."""

    def __init__(self, penalties: Sequence[Penalty]) -> None:
        self._penalties = list(penalties)
        self._features = penalties[0].features
        self._step = 0
        self._strengths: Tensor | None = None

    @staticmethod
    def of(penalties: Sequence[Penalty | None]) -> Penalties | None:
        """Collect the penalties of all members; return None if no penalty has an effect."""
        found = [penalty for penalty in penalties if penalty is not None]
        return Penalties(found) if any(penalty.strength for penalty in found) else None

    def begin(self, step: int) -> None:
        """Begin step `step` of the task, counted from 0."""
        self._step = step

    def push(self, i: int, features: Tensor) -> Tensor | None:
        """Return the gradient of member `i`'s penalty with respect to features (N, d); None if the member's λ is 0."""
        own = self._penalties[i]
        if own.strength == 0:
            return None
        return entropy(features, own.frame(features, self._step))[1].mul_(own.strength)

    def join(self, gradients: Tensor, features: Tensor) -> Tensor:
        """Return the sum of feature gradients and penalty gradients (M, N, d).

        The feature gradients of members with λ = 0 are returned unchanged.
        """
        strengths = self._all(features)[:, None, None]
        push = entropy(features, self._frames(features[0]))[1] * strengths
        return torch.where(strengths != 0, gradients + push, gradients)

    @contextlib.contextmanager
    def added(self, i: int, network: nn.Module, axes: int) -> Iterator[list[Tensor]]:
        """Yield a list that holds member `i`'s penalty once the block has run a forward pass; it stays empty if λ is 0.

        The value of the penalty is λ H. Second derivatives treat the penalty's gradient as a constant.

        axes: the number of leading axes of the features, for examples and positions.

        Raises:
            ValueError: the model has a method `features` that its forward pass does not call, or the features do not
                depend on the weights.
        """
        own = self._penalties[i]
        if own.strength == 0:
            yield []
            return
        with self._watched(network, axes, lambda rows: (own.strength, own.frame(rows, self._step))) as found:
            yield found
        if torch.is_grad_enabled() and not found[0].requires_grad:
            raise ValueError(
                f"rank-penalty: expected the features of {type(network).__name__} to depend on its weights, "
                "got features that do not"
            )

    @contextlib.contextmanager
    def added_together(self, member: Tensor, network: nn.Module, axes: int) -> Iterator[list[Tensor]]:
        """Collect the penalty of `member`, as in `added`, within `torch.func.vmap` over members 0..M-1."""

        def settings(rows: Tensor) -> tuple[Tensor, Tensor | None]:
            frames = self._frames(rows)
            own = None if frames is None else frames.index_select(0, member.view(1)).squeeze(0)
            return self._all(rows).index_select(0, member.view(1)).squeeze(0), own

        with self._watched(network, axes, settings) as found:
            yield found

    @contextlib.contextmanager
    def _watched(
        self, network: nn.Module, axes: int, settings: Callable[[Tensor], tuple[float | Tensor, Tensor | None]]
    ) -> Iterator[list[Tensor]]:
        """Collect a penalty with the strength and the rotation that `settings` returns for features (N, d)."""
        found: list[Tensor] = []

        def see(features: Tensor) -> None:
            rows, full = in_full(features.flatten(0, axes - 1).flatten(1))
            with full:
                strength, frame = settings(rows)
                value, gradient = entropy(rows.detach(), frame)
                term = (rows * gradient).sum()
                # If a layer is called several times, only the last call counts, as in measurements.
                found[:] = [strength * (term + (value - term.detach()))]

        with seen(network, self._features, see):
            yield found
        if not found:
            raise ValueError(NOT_CALLED.format(type(network).__name__))

    def _all(self, features: Tensor) -> Tensor:
        """Return the members' λ (M,), a tensor that is created once."""
        if self._strengths is None:
            values = [own.strength for own in self._penalties]
            self._strengths = torch.tensor(values, dtype=features.dtype, device=features.device)
        return self._strengths

    def _frames(self, features: Tensor) -> Tensor | None:
        """Return the rotations (M, d, r) of all members for features (N, d); None if penalties are not rotated."""
        frames = [own.frame(features, self._step) for own in self._penalties]
        found = [frame for frame in frames if frame is not None]
        return torch.stack(found) if found else None


NOT_CALLED = "rank-penalty: expected {0}.forward to call its method features(x), whose result is penalised, got no call"


@contextlib.contextmanager
def seen(network: nn.Module, features: str, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see` with the features of every forward pass in the block. features: as in `Blueprint.features`."""
    if features != METHOD:
        layer = network.get_submodule(features)
        handle = layer.register_forward_pre_hook(lambda _, arguments: see(arguments[0]))
        try:
            yield
        finally:
            handle.remove()
        return
    own = own_features(network)
    assert own is not None

    def seeing(*arguments: Any, **named: Any) -> Tensor:
        result = own(*arguments, **named)
        see(result)
        return result

    network.features = seeing  # type: ignore[assignment]  # hides the class's method
    try:
        yield
    finally:
        del network.features
