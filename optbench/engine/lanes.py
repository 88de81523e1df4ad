"""The three ways an update is applied to a cohort (DESIGN.md: lanes), behind one interface.

A lane is built for the members that are training now and taken apart when one of them stops: `export` gives each
member's optimizer state on its own, and a new lane is built from the states of those that go on. So a member's state
never mixes with another's, and dropping a member needs no masks.

Legend: A members in training, P padded parameter count.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from optbench.engine.randomness import own_draws
from optbench.engine.stack import Layout
from optbench.models import Network
from optbench.optimizers.load import load_class
from optbench.optimizers.make import begin_task, constructor_arguments, maker
from optbench.optimizers.spec import OptimizerSpec

Optimizer = torch.optim.Optimizer
Evaluate = Callable[[int, Network], Tensor]
"""evaluate(member, network) -> mean cross-entropy on its batch of this step, a scalar to take gradients of."""
MemberState = Any
"""One member's optimizer state, opaque to everyone but the lane that exported it; None is a fresh start."""


@dataclass(frozen=True)
class LaneMember:
    """What a lane is told of a member, beside its row of the stack."""

    hyperparameters: Mapping[str, Any]
    state: MemberState
    """What it goes on from."""
    generator: torch.Generator
    """Its own."""
    total_steps: int
    """From the state's beginning, if nothing stops it sooner."""


class Lane(Protocol):
    """An optimizer at work on a cohort."""

    def begin_task(self) -> None:
        """Tell the optimizer that a new task begins."""
        ...

    def step(self, evaluate: Evaluate) -> dict[int, Exception]:
        """One update of every member from the bound gradients; members whose optimizer raised, with what it raised.

        evaluate: for an optimizer that asks for more than gradients.
        """
        ...

    def measured(self, index: int, row: Tensor) -> Tensor:
        """The weights (P,) to measure a member at; `row` itself unless its optimizer keeps others for training."""
        ...

    def export(self) -> list[MemberState]:
        """The state of each member, in order, in tensors of their own."""
        ...

    def state_bytes(self) -> list[int]:
        """Bytes of optimizer state of each member."""
        ...

    def fallbacks(self) -> list[int]:
        """How often a factorisation of each member had to be replaced."""
        ...


def build_lane(
    spec: OptimizerSpec,
    members: Sequence[LaneMember],
    network: Network,
    weights: Tensor,
    grads: Tensor,
    layout: Layout,
    *,
    begin: bool,
) -> Lane:
    """The lane that `spec` names, over weights (A, P) and gradients (A, P).

    network: what the weights belong to, without weights of its own. begin: whether a task begins, with weights that
    were measured, rather than goes on.
    """
    if spec.lane == "per-member":
        return PerMemberLane(spec, members, network, weights, grads, layout, begin=begin)
    cls = load_class(spec.target)
    states = [member.state for member in members]
    settings = [constructor_arguments(spec, member.hyperparameters) for member in members]
    if spec.lane == "elementwise":
        return ElementwiseLane(cls, settings, weights, grads, states)
    return BatchedLane(cls, settings, spec.per_member, weights, grads, layout, states)


class ElementwiseLane:
    """Rows of the stack with the same settings and step count share a leaf tensor, and each leaf has an instance.

    Not one instance for all: what raises because of its settings must not stop the others.
    """

    def __init__(
        self,
        cls: type[Optimizer],
        settings: Sequence[Mapping[str, Any]],
        weights: Tensor,
        grads: Tensor,
        states: Sequence[dict[str, Any] | None],
    ) -> None:
        self._blocks = _runs([_signature(s, state) for s, state in zip(settings, states, strict=True)])
        self._leaves: list[Tensor] = []
        self._optimizers: list[Optimizer] = []
        for start, stop in self._blocks:
            leaf = weights[start:stop].detach().requires_grad_()
            leaf.grad = grads[start:stop]
            optimizer = cls([leaf], **settings[start])
            members = [state for state in states[start:stop] if state is not None]
            if members:
                optimizer.state[leaf] = {key: _join([m[key] for m in members]) for key in members[0]}
            self._leaves.append(leaf)
            self._optimizers.append(optimizer)

    def begin_task(self) -> None:
        """Elementwise optimizers know nothing of tasks."""

    def step(self, evaluate: Evaluate) -> dict[int, Exception]:
        raised: dict[int, Exception] = {}
        for optimizer, (start, stop) in zip(self._optimizers, self._blocks, strict=True):
            try:
                optimizer.step()
            except Exception as error:  # such as a rate that overflows: these trials fail, the others go on
                raised.update(dict.fromkeys(range(start, stop), error))
        return raised

    def measured(self, index: int, row: Tensor) -> Tensor:
        return row

    def export(self) -> list[MemberState]:
        states: list[MemberState] = []
        for optimizer, leaf, (start, stop) in zip(self._optimizers, self._leaves, self._blocks, strict=True):
            state = optimizer.state.get(leaf)
            for i in range(stop - start):
                # A 0-dimensional tensor (the step count) belongs to the whole block: everyone gets a copy.
                rows = (
                    {k: v[i].clone() if _is_row(v) else copy.deepcopy(v) for k, v in state.items()} if state else None
                )
                states.append(rows)
        return states

    def state_bytes(self) -> list[int]:
        return [_bytes(state) for state in self.export()]

    def fallbacks(self) -> list[int]:
        return [0] * (self._blocks[-1][1])


class BatchedLane:
    """One instance of an optimizer of ours, which knows the member axis (`stacked=True`)."""

    def __init__(
        self,
        cls: type[Optimizer],
        settings: Sequence[Mapping[str, Any]],
        per_member: frozenset[str],
        weights: Tensor,
        grads: Tensor,
        layout: Layout,
        states: Sequence[dict[str, Any] | None],
    ) -> None:
        self._count = len(settings)
        self._parameters = [view.detach().requires_grad_() for view in layout.views(weights).values()]
        for parameter, grad in zip(self._parameters, layout.views(grads).values(), strict=True):
            parameter.grad = grad
        arguments: dict[str, Any] = dict(settings[0])
        for name in per_member & arguments.keys():
            arguments[name] = torch.tensor([s[name] for s in settings], dtype=torch.float64, device=weights.device)
        self._optimizer = cls(self._parameters, stacked=True, **arguments)  # type: ignore[call-arg]  # ours take it
        members = [state for state in states if state is not None]
        if members:
            assert len(members) == self._count, "a cohort starts, or goes on, together"
            for index, parameter in enumerate(self._parameters):
                rows = [m["state"][index] for m in members]
                self._optimizer.state[parameter] = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            for group, shared in zip(self._optimizer.param_groups, members[0]["shared"], strict=True):
                group.update(shared)

    def begin_task(self) -> None:
        self._optimizer.begin_task()  # type: ignore[attr-defined]  # part of the contract of batched optimizers

    def step(self, evaluate: Evaluate) -> dict[int, Exception]:
        try:
            self._optimizer.step()
        except Exception as error:  # a step cut short leaves nobody where it should be
            return dict.fromkeys(range(self._count), error)
        return {}

    def measured(self, index: int, row: Tensor) -> Tensor:
        return row

    def export(self) -> list[MemberState]:
        # What all members share (the clock of the refresh schedule) is kept in the groups as plain integers and flags.
        shared = [{k: v for k, v in g.items() if isinstance(v, int)} for g in self._optimizer.param_groups]
        states = [self._optimizer.state[p] for p in self._parameters]
        if not all(states):
            return [None] * self._count
        return [
            {"shared": shared, "state": [{k: v[i].clone() for k, v in state.items()} for state in states]}
            for i in range(self._count)
        ]

    def state_bytes(self) -> list[int]:
        total = sum(_bytes(self._optimizer.state[p]) for p in self._parameters)
        return [total // self._count] * self._count

    def fallbacks(self) -> list[int]:
        counts: list[int] = self._optimizer.fallbacks().tolist()  # type: ignore[attr-defined]  # as `begin_task`
        return counts


class PerMemberLane:
    """One unmodified instance per member, over a network of its own whose weights are copied back to the stack.

    The copies are the price of trusting nobody: an optimizer may rebind `p.data`, keep references to its gradients or
    scale them in place, and the stack does not notice.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        members: Sequence[LaneMember],
        network: Network,
        weights: Tensor,
        grads: Tensor,
        layout: Layout,
        *,
        begin: bool,
    ) -> None:
        self._needs = spec.needs
        self._generators = [member.generator for member in members]
        self._layout = layout
        self._targets = [list(layout.views(row).values()) for row in weights.detach().unbind()]
        self._grads = [list(layout.views(row).values()) for row in grads.unbind()]
        self._raised_early: dict[int, Exception] = {}
        self._networks: list[Network] = []
        self._parameters: list[list[torch.nn.Parameter]] = []
        self._optimizers: list[Optimizer] = []
        for member, views in zip(members, self._targets, strict=True):
            if member.state is None:
                own = copy.deepcopy(network).to_empty(device=weights.device)
                parameters = list(own.parameters())
                _copy(views, parameters)
                given = {"generator": member.generator, "model": own, "total_steps": member.total_steps}
                optimizer = maker(spec, member.hyperparameters, given)(parameters)
                self._train(optimizer)
            else:
                # The instance itself goes on: `load_state_dict` would cast its state to the parameters' type.
                optimizer, own = member.state
                parameters = list(own.parameters())
                # At the beginning of a task the rows are what was measured; within one they are what is trained.
                if begin:
                    self._eval(optimizer)
                _copy(views, parameters)
                if begin:
                    self._train(optimizer)
                    _copy(parameters, views)
            self._networks.append(own)
            self._parameters.append(parameters)
            self._optimizers.append(optimizer)

    def begin_task(self) -> None:
        """Tells those that have a method of this name; what one raises comes out at its next step."""
        for i, optimizer in enumerate(self._optimizers):
            try:
                begin_task(optimizer)
            except Exception as error:  # as in `step`
                self._raised_early[i] = error

    def step(self, evaluate: Evaluate) -> dict[int, Exception]:
        raised = dict(self._raised_early)
        for i, optimizer in enumerate(self._optimizers):
            if i in raised:
                continue
            random = "random" in self._needs
            draws = own_draws(self._generators[i], self._grads[i][0].device) if random else contextlib.nullcontext()
            try:
                with draws:
                    self._step(i, optimizer, evaluate)
            except Exception as error:  # a user's optimizer may raise anything; its trial fails, the others go on
                raised[i] = error
                continue
            _copy(self._parameters[i], self._targets[i])
        return raised

    def _step(self, i: int, optimizer: Optimizer, evaluate: Evaluate) -> None:
        parameters = self._parameters[i]

        def closure() -> Tensor:
            with torch.enable_grad():
                loss = evaluate(i, self._networks[i])
                if "create_graph" in self._needs:
                    # Not `backward`, which warns of the cycle that such a gradient makes; it is broken below.
                    found = torch.autograd.grad(loss, parameters, create_graph=True)
                    for parameter, grad in zip(parameters, found, strict=True):
                        parameter.grad = grad
                else:
                    for parameter in parameters:
                        parameter.grad = None
                    loss.backward()  # type: ignore[no-untyped-call]  # unlike `grad` it runs every kind of hook
            return loss.detach()

        if self._needs & {"create_graph", "model"}:
            closure()
        else:
            for parameter, grad in zip(parameters, self._grads[i], strict=True):
                parameter.grad = grad.clone()
        if "closure" in self._needs:
            optimizer.step(closure)  # type: ignore[arg-type]  # torch's stubs say float; every optimizer takes a tensor
        else:
            optimizer.step()
        if "create_graph" in self._needs:
            for parameter in parameters:
                parameter.grad = None

    def measured(self, index: int, row: Tensor) -> Tensor:
        if "modes" not in self._needs:
            return row
        optimizer, parameters = self._optimizers[index], self._parameters[index]
        kept = [parameter.detach().clone() for parameter in parameters]
        self._eval(optimizer)
        found = torch.zeros_like(row)
        _copy(parameters, list(self._layout.views(found).values()))
        self._train(optimizer)
        # There and back is exact only up to rounding, and to look must not change the path.
        _copy(kept, parameters)
        return found

    def _train(self, optimizer: Optimizer) -> None:
        if "modes" in self._needs:
            optimizer.train()  # type: ignore[attr-defined]  # what the need means

    def _eval(self, optimizer: Optimizer) -> None:
        if "modes" in self._needs:
            optimizer.eval()  # type: ignore[attr-defined]  # as above

    def export(self) -> list[MemberState]:
        return list(zip(self._optimizers, self._networks, strict=True))

    def state_bytes(self) -> list[int]:
        return [_bytes(optimizer.state) for optimizer in self._optimizers]

    def fallbacks(self) -> list[int]:
        return [0] * len(self._optimizers)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _signature(setting: Mapping[str, Any], state: Mapping[str, Any] | None) -> str:
    """Members with equal signatures may share a leaf: equal settings, equal scalars (step counts) in their state."""
    scalars = None
    if state:
        scalars = {k: v.item() if isinstance(v, Tensor) else v for k, v in state.items() if not _is_row(v)}
    return repr((sorted(setting.items()), scalars))


def _runs(values: Sequence[str]) -> list[tuple[int, int]]:
    """(start, stop) of every stretch of equal neighbours."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))


def _is_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _join(parts: Sequence[Any]) -> Any:
    """Rows of members to a stacked tensor; scalars, which are equal here, to one of them."""
    return torch.stack(list(parts)) if _is_row(parts[0]) else copy.deepcopy(parts[0])


def _bytes(value: Any) -> int:
    """Bytes of all tensors in a nested state, each storage once."""
    seen: dict[int, int] = {}

    def visit(item: Any) -> None:
        if isinstance(item, Tensor):
            seen[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, Mapping):
            for part in item.values():
                visit(part)
        elif isinstance(item, list | tuple):
            for part in item:
                visit(part)

    visit(value)
    return sum(seen.values())
