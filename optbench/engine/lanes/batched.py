"""The lane for optimizers written with a member axis: one instance for all members of a stack."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optbench.engine.faults import of_the_machine
from optbench.engine.lanes.lane import Evaluate, Lane, MemberState, RefusedError, tensor_bytes
from optbench.engine.rates import RateCurve
from optbench.engine.recording import Recorded, Recordings
from optbench.engine.stack import Layout
from optbench.engine.user_code import without_warnings
from optbench.precision import widest


class BatchedLane(Lane):
    """One instance of a built-in optimizer with a member axis (`stacked=True`).

    In addition to `step`, the optimizer has the methods `begin_task` and `fallbacks`, and its step is also available in
    two parts: `work`, which runs on the device, and `advance`, which updates counters in Python. The method `upcoming`
    returns a name for the next call of `work`, or None if this call must not be recorded. Calls of `work` with equal
    names perform the same operations on the same tensors.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        settings: Sequence[Mapping[str, Any]],
        per_member: frozenset[str],
        weights: Tensor,
        grads: Tensor,
        layout: Layout,
        states: Sequence[dict[str, Any] | None],
        curves: Sequence[RateCurve | None],
        recordings: Recordings,
    ) -> None:
        self._count = len(settings)
        self._parameters = [view.detach().requires_grad_() for view in layout.views(weights).values()]
        for parameter, grad in zip(self._parameters, layout.views(grads).values(), strict=True):
            parameter.grad = grad
        arguments: dict[str, Any] = dict(settings[0])
        for name in per_member & arguments.keys():
            arguments[name] = torch.tensor(
                [s[name] for s in settings], dtype=widest(weights.device), device=weights.device
            )
        try:
            with without_warnings():
                made = make(self._parameters, stacked=True, **arguments)
        except Exception as error:
            if of_the_machine(error):
                raise
            alone = {i: raised for i, setting in enumerate(settings) if (raised := self._refusal(make, setting, i))}
            raise RefusedError(alone or dict.fromkeys(range(self._count), error)) from error
        self._optimizer = made
        self._rates: list[float] = torch.as_tensor(made.param_groups[0]["lr"]).expand(self._count).tolist()
        self._factors = [1.0] * self._count
        self._scheduled = _Scheduled(made.param_groups, curves, weights.device) if any(curves) else None
        self.raised_early: dict[int, Exception] = {}
        self._recordings = recordings
        self._works: dict[Hashable, Recorded[None]] = {}
        members = [state for state in states if state is not None]
        if members:
            assert len(members) == self._count, "all members of a cohort start, or resume, together"
            for index, parameter in enumerate(self._parameters):
                rows = [m["state"][index] for m in members]
                self._optimizer.state[parameter] = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            for group, shared in zip(self._optimizer.param_groups, members[0]["shared"], strict=True):
                group.update(shared)

    def _refusal(self, make: Callable[..., Any], setting: Mapping[str, Any], i: int) -> Exception | None:
        """Return the exception that the constructor raises for member `i` alone, or None if it raises none."""
        try:
            with without_warnings():
                make([p.detach()[i].requires_grad_() for p in self._parameters], **setting)
        except Exception as error:
            if of_the_machine(error):
                raise
            return error
        return None

    def begin_task(self) -> None:
        self._optimizer.begin_task()

    def step(self, evaluate: Evaluate, step: int) -> dict[int, Exception]:
        if self._scheduled is not None:
            self._factors = self._scheduled.begin(step)
        try:
            kind = self._optimizer.upcoming() if self._recordings.record else None
            if kind is None:
                self._optimizer.step()
            else:
                if kind not in self._works:
                    self._works[kind] = Recorded("update", self._recordings)
                self._works[kind](self._optimizer.work, self._changed)
                self._optimizer.advance()
        except Exception as error:  # an aborted step leaves all members in an undefined state
            if of_the_machine(error):
                raise
            return dict.fromkeys(range(self._count), error)
        return {}

    def _changed(self) -> list[Tensor]:
        states = [value for p in self._parameters for value in self._optimizer.state[p].values()]
        return [*self._parameters, *states]

    def export(self, index: int) -> MemberState:
        # Shared state (the clock of the refresh schedule) is stored in the groups as plain integers and flags.
        shared = [{k: v for k, v in g.items() if isinstance(v, int)} for g in self._optimizer.param_groups]
        states = [self._optimizer.state[p] for p in self._parameters]
        if not all(states):
            return None
        return {"shared": shared, "state": [{k: v[index].clone() for k, v in state.items()} for state in states]}

    def state_bytes(self, index: int) -> int:
        return sum(tensor_bytes(self._optimizer.state[p]) for p in self._parameters) // self._count

    def rate(self, index: int) -> float | None:
        return self._rates[index] * self._factors[index]

    def fallbacks(self, index: int) -> int:
        return int(self._optimizer.fallbacks()[index])


class _Scheduled:
    """The members' learning rates in a batched optimizer, scaled in place because recorded steps read fixed memory."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], curves: Sequence[RateCurve | None], device: torch.device
    ) -> None:
        """curves: each member's schedule; None if the member's learning rate is not scaled."""
        self._curves = curves
        self._factors = torch.ones(len(curves), dtype=widest(device), device=device)
        distinct = dict.fromkeys(curve for curve in curves if curve is not None)
        self._masks = [(curve, torch.tensor([c == curve for c in curves], device=device)) for curve in distinct]
        self._rates: list[tuple[Tensor, Tensor]] = []
        for group in groups:
            own = torch.as_tensor(group["lr"], dtype=widest(device), device=device).expand(len(curves)).clone()
            group["lr"] = own.clone()
            self._rates.append((group["lr"], own))

    def begin(self, step: int) -> list[float]:
        """Scale the learning rates for a step, without transfers to the device, and return the members' factors."""
        for curve, mask in self._masks:
            self._factors.masked_fill_(mask, curve.factor(step))
        for rate, own in self._rates:
            torch.mul(own, self._factors, out=rate)
        return [1.0 if curve is None else curve.factor(step) for curve in self._curves]
