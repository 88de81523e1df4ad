"""The lane of all other optimizers: an unmodified instance for each member."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from optbench.engine.faults import of_the_machine
from optbench.engine.lanes.lane import Evaluate, LaneMember, MemberState, Optimizer, tensor_bytes
from optbench.engine.plain import NotPlain, Plain, from_plain, to_plain
from optbench.engine.randomness import own_draws
from optbench.engine.stack import Layout
from optbench.models import Network
from optbench.optimizers.make import begin_task, maker
from optbench.optimizers.spec import OptimizerSpec


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
                optimizer, own = _made(spec, member, network, views)
                self._train(optimizer)
            else:
                if isinstance(member.state, Plain):
                    optimizer, own = _restored(spec, member, network, views)
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
            self._parameters.append(list(own.parameters()))
            self._optimizers.append(optimizer)

    def begin_task(self) -> None:
        """Tells those that have a method of this name; what one raises comes out at its next step."""
        for i, optimizer in enumerate(self._optimizers):
            try:
                begin_task(optimizer)
            except Exception as error:  # as in `step`
                if of_the_machine(error):
                    raise
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
                if of_the_machine(error):
                    raise
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

    def export(self, index: int) -> MemberState:
        return self._optimizers[index], self._networks[index]

    def state_bytes(self, index: int) -> int:
        return tensor_bytes(self._optimizers[index].state)

    def fallbacks(self, index: int) -> int:
        return 0


def plain_instance(spec: OptimizerSpec, member: LaneMember, network: Network) -> Plain:
    """The state that a member has come to, as plain data; proven by restoring it into another instance.

    Raises:
        NotPlain: it cannot be written down, or not restored.
    """
    optimizer, own = member.state
    # Making an optimizer may draw random numbers, which are not the trial's here.
    draws = torch.Generator()
    draws.set_state(member.generator.get_state())
    try:
        found = _written(spec, optimizer, own, member.generator)
        twin = dataclasses.replace(member, state=found, generator=draws)
        restored, its_own = _restored(spec, twin, network, [p.detach() for p in own.parameters()])
        same = _written(spec, restored, its_own, draws).equals(found)
    except NotPlain:
        raise
    except Exception as error:  # code of the user's that does not expect to be made once more, or to be looked into
        raise NotPlain(f"the state of {type(optimizer).__name__}: {error}") from error
    if not same:
        raise NotPlain(f"the state of {type(optimizer).__name__}, which is another after it was restored")
    return found


def _made(
    spec: OptimizerSpec, member: LaneMember, network: Network, views: Sequence[Tensor]
) -> tuple[Optimizer, Network]:
    """An instance that has taken no step, and the network it works on, with these weights."""
    own = copy.deepcopy(network).to_empty(device=views[0].device)
    parameters = list(own.parameters())
    _copy(views, parameters)
    given = {"generator": member.generator, "model": own, "total_steps": member.total_steps}
    return maker(spec, member.hyperparameters, given)(parameters), own


def _written(spec: OptimizerSpec, optimizer: Optimizer, own: Network, generator: torch.Generator) -> Plain:
    """The instance, and where it keeps others for measuring the weights that it trains."""
    weights = [p.detach().clone() for p in own.parameters()] if "modes" in spec.needs else []
    return to_plain([optimizer, weights], _known(own, generator))


def _restored(
    spec: OptimizerSpec, member: LaneMember, network: Network, views: Sequence[Tensor]
) -> tuple[Optimizer, Network]:
    """An instance with the member's plain state, and the network it works on, with these weights.

    Raises:
        NotPlain: the state is of another optimizer.
    """
    before = member.generator.get_state()
    made, own = _made(spec, member, network, views)
    optimizer, weights = from_plain(member.state, _known(own, member.generator), [made, None], views[0].device)
    if weights:
        _copy(weights, list(own.parameters()))
    member.generator.set_state(before)
    return optimizer, own


def _known(network: Network, generator: torch.Generator) -> list[object]:
    """What an optimizer is given, and does not have of itself."""
    return [*network.parameters(), *network.buffers(), *network.modules(), generator]


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
