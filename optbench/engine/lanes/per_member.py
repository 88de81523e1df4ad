"""The lane for optimizers that are neither batched nor elementwise: one unmodified instance for each member."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optbench.attention import unfused
from optbench.engine.contents import digest, parts
from optbench.engine.faults import of_the_machine
from optbench.engine.interim import CannotResume
from optbench.engine.lanes.lane import Evaluate, Lane, LaneMember, MemberState, Optimizer
from optbench.engine.lanes.reach import state_bytes
from optbench.engine.stack import Layout
from optbench.engine.user_code import UserCode
from optbench.errors import spoken
from optbench.models import materialised
from optbench.optimizers.ends import mark
from optbench.optimizers.make import begin_task, maker, resolve_made
from optbench.optimizers.needs import declared_needs, takes_closure, takes_loss_by_name
from optbench.optimizers.rates import first_rate, rate_groups, scaled
from optbench.optimizers.spec import Need, OptimizerSpec


class PerMemberLane(Lane):
    """One unmodified instance per member on a separate network, whose weights are copied back to the stack.

    Copies protect the stack from optimizers that rebind `p.data`, keep references to gradients, or scale gradients in
    place.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        members: Sequence[LaneMember],
        network: nn.Module,
        weights: Tensor,
        grads: Tensor,
        layout: Layout,
        *,
        begin: bool,
        clip_norm: float | None = None,
    ) -> None:
        """clip_norm: maximum norm of every gradient that an instance receives or evaluates; None for no clipping."""
        self._clip_norm = clip_norm
        self._users = spec.source == "yours"
        self._layout = layout
        self._members = list(members)
        self._code = UserCode(spec, members[0].hyperparameters, weights.device)
        self._targets = [list(layout.views(row).values()) for row in weights.detach().unbind()]
        self._grads = [list(layout.views(row).values()) for row in grads.unbind()]
        self._factors = [1.0] * len(members)
        self.raised_early: dict[int, Exception] = {}
        self._instances: list[Instance | None] = []
        for i, (member, views) in enumerate(zip(members, self._targets, strict=True)):
            instance: Instance | None = None
            try:
                instance = self._taken_up(spec, member, network, views, begin=begin)
            except CannotResume:
                raise
            except Exception as error:  # as in `step`
                if of_the_machine(error):
                    raise
                self.raised_early[i] = error
            self._instances.append(instance)

    def _taken_up(
        self, spec: OptimizerSpec, member: LaneMember, network: nn.Module, views: Sequence[Tensor], *, begin: bool
    ) -> Instance:
        """Return a member's new, restored or existing instance; update `views` with any weights that it has changed.

        Raises:
            CannotResume: a saved state does not fit.
            Exception: any exception that the optimizer raises.
        """
        if member.state is None:
            return self._new(spec, member, network, views)
        # An existing instance is reused: `load_state_dict` would cast its state to the dtype of the parameters.
        is_live = isinstance(member.state, Instance)
        instance = member.state if is_live else self._restored(spec, member, network, views)
        # Rows hold the measured weights at the start of a task, and the training weights within a task.
        if begin:
            self._switch(instance, "eval", member)
        _copy(views, instance.parameters)
        if begin:
            self._switch(instance, "train", member)
            _copy(instance.parameters, views)
        return instance

    def _new(self, spec: OptimizerSpec, member: LaneMember, network: nn.Module, views: Sequence[Tensor]) -> Instance:
        """Construct an instance and its network, with the weights `views`."""
        own = materialised(network, views[0].device)
        mark(own, member.ends)
        parameters = list(own.parameters())
        _copy(views, parameters)
        given = {
            "generator": member.generator,
            "model": own,
            "total_steps": member.total_steps,
            "examples": member.examples,
        }
        with self._code.aside(member.draws("made"), quiet=True):
            optimizer = maker(spec, member.hyperparameters, given)(parameters)
        instance = Instance.of(spec, member, optimizer, own)
        self._switch(instance, "train", member)
        return instance

    def _restored(
        self, spec: OptimizerSpec, member: LaneMember, network: nn.Module, views: Sequence[Tensor]
    ) -> Instance:
        """Construct an instance and load a state returned by `Instance.saved`.

        Raises:
            CannotResume: the state belongs to another optimizer, or restoring it raises an exception.
        """
        draws = member.generator.get_state()
        try:
            instance = self._new(spec, member, network, views)
            if weights := member.state["weights"]:
                _copy(weights, instance.parameters)
            with self._code.aside(member.draws("made"), quiet=True):
                instance.optimizer.load_state_dict(member.state["state"])
        except Exception as error:
            if of_the_machine(error):
                raise
            raise CannotResume(f"restoring the state raised {type(error).__name__}: {spoken(error)}") from error
        member.generator.set_state(draws)
        return instance

    def begin_task(self) -> None:
        """Call `begin_task` of the optimizers that have this method, and collect exceptions in `raised_early`."""
        for i, instance in enumerate(self._instances):
            if instance is None:
                continue
            try:
                with self._code.aside(self._members[i].draws("begin_task")):
                    begin_task(instance.optimizer)
            except Exception as error:  # as in `step`
                if of_the_machine(error):
                    raise
                self.raised_early[i] = error

    def step(self, evaluate: Evaluate, step: int) -> dict[int, Exception]:
        raised: dict[int, Exception] = {}
        for i, instance in enumerate(self._instances):
            if instance is None or i in self.raised_early:
                continue
            try:
                with self._code.step(self._members[i].generator):
                    self._step(i, instance, evaluate, step)
            except Exception as error:  # a user's optimizer may raise anything; its trial fails, the others continue
                if of_the_machine(error):
                    raise
                raised[i] = error
                continue
            _copy(instance.parameters, self._targets[i])
        return raised

    def _step(self, i: int, instance: Instance, evaluate: Evaluate, step: int) -> None:
        needs = instance.needs
        # Parameters frozen by the optimizer have no gradient, as in a plain loop.
        trained = [(p, grad) for p, grad in zip(instance.parameters, self._grads[i], strict=True) if p.requires_grad]
        parameters = [parameter for parameter, _ in trained]
        given = not (instance.call.loss or needs & {"loss", "create_graph", "model", "around_forward"})

        def closure(*_: object, backward: bool = True, **__: object) -> Tensor:
            """Evaluate the loss; arguments other than `backward` are ignored."""
            plain = unfused() if "create_graph" in needs else contextlib.nullcontext()
            with instance.around_forward(), self._code.closure(), torch.enable_grad(), plain:
                loss = evaluate(i, instance.network, given)
                for parameter in parameters:
                    parameter.grad = None
                if "loss" in needs:
                    return loss
                if not (backward and loss.requires_grad):
                    return loss.detach()
                if "create_graph" in needs:
                    # `backward` would warn of the cycle that such a gradient creates; the cycle is broken below.
                    found = torch.autograd.grad(loss, parameters, create_graph=True)
                    for parameter, grad in zip(parameters, found, strict=True):
                        # Optimizers may detach gradients in place, which is impossible for views.
                        parameter.grad = grad.clone() if grad._is_view() else grad
                else:
                    loss.backward()  # type: ignore[no-untyped-call]  # unlike `grad`, it runs all hooks
                self._clip(parameters)
            return loss.detach()

        loss: Tensor | None = None
        if given:
            for parameter, grad in trained:
                parameter.grad = grad.clone()
            self._clip(parameters)
        elif "loss" in needs:
            for parameter in parameters:
                parameter.grad = None
        else:
            loss = closure()
        if instance.call.loss and loss is None:
            loss = closure()
        if (curve := self._members[i].curve) is None:
            instance.call(instance.optimizer, closure, loss)
        else:
            self._factors[i] = curve.factor(step)
            with scaled(rate_groups(instance.optimizer, stepping=True), self._factors[i]):
                instance.call(instance.optimizer, closure, loss)
        if needs & {"create_graph", "loss"}:
            for parameter in parameters:
                parameter.grad = None

    def _clip(self, parameters: Sequence[Tensor]) -> None:
        """Clip the gradients of an instance as in a user's training loop, including differentiable gradients.

        The factor is treated as a constant, so that second derivatives are those of the loss.
        """
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm)

    def measured(self, index: int, row: Tensor) -> Tensor:
        instance = self._instances[index]
        if instance is None or "modes" not in instance.needs:
            return row
        kept = [parameter.detach().clone() for parameter in instance.parameters]
        member = self._members[index]
        self._switch(instance, "eval", member)
        found = torch.zeros_like(row)
        _copy(instance.parameters, list(self._layout.views(found).values()))
        self._switch(instance, "train", member)
        # Switching back may round the weights, and measuring must not change the training.
        _copy(kept, instance.parameters)
        return found

    def _switch(self, instance: Instance, mode: Literal["train", "eval"], member: LaneMember) -> None:
        """Switch an optimizer with modes to `mode`; ignore NotImplementedError if the modes are not declared."""
        if "modes" not in instance.needs:
            return
        try:
            with self._code.aside(member.draws(mode)):
                getattr(instance.optimizer, mode)()
        except NotImplementedError:  # inherited and unintended: only declared modes must work
            if "modes" in declared_needs(member.hyperparameters):
                raise

    def rate(self, index: int) -> float | None:
        instance = self._instances[index]
        try:
            rate = None if instance is None else first_rate(rate_groups(instance.optimizer))
        except Exception as error:  # raised by a user's attribute, which is needed only for this column
            if of_the_machine(error):
                raise
            return None
        return None if rate is None else rate * self._factors[index]

    def export(self, index: int) -> MemberState:
        return self._instances[index]

    def state_bytes(self, index: int) -> int:
        instance = self._instances[index]
        return 0 if instance is None else state_bytes(instance.optimizer, instance.network, users=self._users)


@dataclass(frozen=True)
class StepCall:
    """How to call an optimizer's `step`, derived from the optimizer's needs and the signature of `step`."""

    closure: Literal["first", "by name", "not"]
    loss: bool
    """True if `step` receives the loss, as an argument named `loss`."""

    @staticmethod
    def of(spec: OptimizerSpec, optimizer: Optimizer) -> StepCall:
        """Derive the call. spec: the optimizer's spec, with the needs of this instance."""
        wants = bool(spec.needs & {"closure", "loss"})
        if spec.only_matrices or spec.source != "yours":
            return StepCall("first" if wants else "not", loss=False)
        step = optimizer.step
        return StepCall(takes_closure(step) if wants else "not", wants and takes_loss_by_name(step))

    def __call__(self, optimizer: Optimizer, closure: Callable[..., Tensor], loss: Tensor | None) -> None:
        # torch's stubs say float; every optimizer takes a tensor.
        first = (closure,) if self.closure == "first" else ()
        named: dict[str, Any] = {"closure": closure} if self.closure == "by name" else {}
        if self.loss:
            named["loss"] = loss
        optimizer.step(*first, **named)


@dataclass(frozen=True)
class Instance:
    """A member's optimizer, the network that it trains, and how to call it."""

    optimizer: Optimizer
    network: nn.Module
    parameters: list[torch.nn.Parameter]
    needs: frozenset[Need]
    call: StepCall

    @staticmethod
    def of(spec: OptimizerSpec, member: LaneMember, optimizer: Optimizer, network: nn.Module) -> Instance:
        spec = resolve_made(spec, optimizer, member.hyperparameters)
        return Instance(optimizer, network, list(network.parameters()), spec.needs, StepCall.of(spec, optimizer))

    def saved(self) -> dict[str, Any]:
        """Return the optimizer's `state_dict()` and, if the optimizer has modes, the training weights.

        Exceptions raised by the optimizer propagate.
        """
        weights = [p.detach() for p in self.parameters] if "modes" in self.needs else []
        return {"state": self.optimizer.state_dict(), "weights": weights}

    def differs(self, noise: torch.Generator, other: Instance, its_noise: torch.Generator) -> str | None:
        """Return the name of an optimizer attribute that differs between this instance and `other`; None if none does.

        If the optimizers differ but no single attribute does, return "all of its state". Weights and generators are not
        compared. Exceptions that `contents.digest` raises propagate.

        noise, its_noise: the generators of the two trials.
        """
        known, its_known = self._known(noise), other._known(its_noise)
        if digest([self.optimizer, *self._marks()], known) == digest([other.optimizer, *other._marks()], its_known):
            return None
        mine, its = dict(parts(self.optimizer)), dict(parts(other.optimizer))
        names = [name for name in mine if digest(mine[name], known) != digest(its.get(name), its_known)]
        return f"`{names[0]}`" if names else "all of its state"

    def _known(self, noise: torch.Generator) -> list[object]:
        """Return the objects that were passed to the optimizer, which are not part of its state."""
        return [*self.parameters, *self.network.buffers(), *self.network.modules(), noise]

    def _marks(self) -> list[object]:
        """Return everything that an optimizer may have set on parameters: `requires_grad` and attributes."""
        return [(parameter.requires_grad, vars(parameter)) for parameter in self.parameters]

    def around_forward(self) -> AbstractContextManager[Any]:
        """Return the context manager for a forward and backward pass in training."""
        if "around_forward" not in self.needs:
            return contextlib.nullcontext()
        around: AbstractContextManager[Any] = self.optimizer.around_forward()  # type: ignore[attr-defined]
        return around


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
