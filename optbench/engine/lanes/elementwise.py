"""The lane for elementwise optimizers: neighbouring members with the same settings share an instance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optbench.engine.faults import of_the_machine
from optbench.engine.lanes.lane import Evaluate, Lane, MemberState, Optimizer, RefusedError, tensor_bytes
from optbench.engine.rates import RateCurve
from optbench.engine.recording import Recorded, Recordings
from optbench.engine.user_code import UserCode
from optbench.optimizers.rates import first_rate, rate_groups, scaled


class ElementwiseLane(Lane):
    """One instance of an elementwise optimizer for each block of neighbouring rows with equal settings.

    The rows of a block also have equal step counts and schedules, and form one leaf parameter. Blocks have separate
    instances, so that an exception caused by some settings does not stop other members.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        settings: Sequence[Mapping[str, Any]],
        weights: Tensor,
        grads: Tensor,
        states: Sequence[dict[str, Any] | None],
        curves: Sequence[RateCurve | None],
        recordings: Recordings,
        code: UserCode,
    ) -> None:
        self._code = code
        self.raised_early: dict[int, Exception] = {}
        refused: dict[int, Exception] = {}
        self._blocks = _runs([_signature(*each) for each in zip(settings, states, curves, strict=True)])
        self._curves = [curves[start] for start, _ in self._blocks]
        self._factors = [1.0] * len(self._blocks)
        self._leaves: list[Tensor] = []
        self._optimizers: list[Optimizer] = []
        for start, stop in self._blocks:
            leaf = weights[start:stop].detach().requires_grad_()
            leaf.grad = grads[start:stop]
            try:
                with code.aside(0, quiet=True):  # the members of a block share its random draws
                    optimizer: Optimizer = make([leaf], **settings[start])
            except Exception as error:  # the settings are rejected: trials with them fail, the others continue
                if of_the_machine(error):
                    raise
                refused.update(dict.fromkeys(range(start, stop), error))
                continue
            members = [state for state in states[start:stop] if state is not None]
            if members:
                optimizer.state[leaf] = {key: _join([m[key] for m in members]) for key in members[0]}
            self._leaves.append(leaf)
            self._optimizers.append(optimizer)
        if refused:
            raise RefusedError(refused)
        self._work: Recorded[dict[int, Exception]] = Recorded("update", recordings)
        self._device_rates = self._rates_on(weights.device) if recordings.record is not None else None

    def _rates_on(self, device: torch.device) -> list[list[tuple[Tensor, float]]]:
        """Move scheduled learning rates to the device; return each block's rates as (device tensor, unscaled rate)."""
        found = []
        for optimizer, curve in zip(self._optimizers, self._curves, strict=True):
            groups = [] if curve is None else rate_groups(optimizer)
            bases = [float(group["lr"]) for group in groups]
            for group, base in zip(groups, bases, strict=True):
                # in float32, which fused implementations use
                group["lr"] = torch.full((), base, dtype=torch.float32, device=device)
            found.append([(group["lr"], base) for group, base in zip(groups, bases, strict=True)])
        return found

    def step(self, evaluate: Evaluate, step: int) -> dict[int, Exception]:
        for i, curve in enumerate(self._curves):
            if curve is not None:
                self._factors[i] = curve.factor(step)
                for rate, base in self._device_rates[i] if self._device_rates is not None else ():
                    rate.fill_(base * self._factors[i])
        return self._work(self._step, self._changed)

    def _step(self) -> dict[int, Exception]:
        raised: dict[int, Exception] = {}
        for i, (optimizer, (start, stop)) in enumerate(zip(self._optimizers, self._blocks, strict=True)):
            try:
                with self._code.step(None):
                    if self._curves[i] is None or self._device_rates is not None:
                        optimizer.step()
                    else:
                        with scaled(rate_groups(optimizer, stepping=True), self._factors[i]):
                            optimizer.step()
            except Exception as error:  # such as an overflowing learning rate: these trials fail, the others continue
                if of_the_machine(error):
                    raise
                raised.update(dict.fromkeys(range(start, stop), error))
        return raised

    def _changed(self) -> list[Tensor]:
        """Return the tensors that a step can change: weights, states and gradients."""
        states = [self._optimizers[i].state.get(leaf, {}) for i, leaf in enumerate(self._leaves)]
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*self._leaves, *(leaf.grad for leaf in self._leaves if leaf.grad is not None), *kept]

    def _block(self, index: int) -> int:
        return next(b for b, (_, stop) in enumerate(self._blocks) if index < stop)

    def rate(self, index: int) -> float | None:
        block = self._block(index)
        if self._device_rates is not None and self._device_rates[block]:
            return self._device_rates[block][0][1] * self._factors[block]
        rate = first_rate(rate_groups(self._optimizers[block]))
        return None if rate is None else rate * self._factors[block]

    def export(self, index: int) -> MemberState:
        block = self._block(index)
        state = self._optimizers[block].state.get(self._leaves[block])
        if not state:
            return None
        # The block shares 0-dimensional tensors (the step count), so every member gets a copy.
        row = index - self._blocks[block][0]
        return {k: v[row].clone() if _is_row(v) else copy.deepcopy(v) for k, v in state.items()}

    def state_bytes(self, index: int) -> int:
        return tensor_bytes(self.export(index))


def _signature(setting: Mapping[str, Any], state: Mapping[str, Any] | None, curve: RateCurve | None) -> str:
    """Return a key of settings, scalar state (step counts) and schedule; adjacent rows with equal keys share a leaf."""
    scalars = None
    if state:
        scalars = {k: v.item() if isinstance(v, Tensor) else v for k, v in state.items() if not _is_row(v)}
    return repr((sorted(setting.items()), scalars, curve))


def _runs(values: Sequence[str]) -> list[tuple[int, int]]:
    """Return (start, stop) of every run of equal neighbours."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))


def _is_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _join(parts: Sequence[Any]) -> Any:
    """Stack the members' rows; for scalars, which are equal for all members, return a copy of the first."""
    return torch.stack(list(parts)) if _is_row(parts[0]) else copy.deepcopy(parts[0])
