"""From a spec and settings to an optimizer, with its generator, its fallback, its base; what a user's own one needs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optbench.errors import OptimizerError
from optbench.isolation import isolated
from optbench.optimizers.closures import evaluated
from optbench.optimizers.ends import is_end
from optbench.optimizers.explain import explained
from optbench.optimizers.load import load_factory
from optbench.optimizers.needs import (
    PARAMETERS,
    declared_needs,
    first_given,
    given_name,
    needs_of,
    needs_of_methods,
    parameters_of,
)
from optbench.optimizers.rates import Group, rate_groups
from optbench.optimizers.registry import base_settings, complete, find
from optbench.optimizers.spec import DECLARATIONS, FALLBACK, GIVEN, Need, OptimizerSpec
from optbench.targets import said

Maker = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
SCALES = (1.0, 0.1, 0.0, 1e-3, 1e-8, 1e-20) * 8 + (1e3, 1e8, 1e15)
"""Of the gradients that an elementwise optimizer is tried on: those of a training, then none, tiny and huge ones."""


def maker(spec: OptimizerSpec, hyperparameters: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Maker:
    """Return a function that makes the optimizer of `spec` over the parameters it is called with.

    given: what a trial has for an optimizer that needs it: its `generator`, `model`, `total_steps`, `examples`.

    The returned function raises whatever the constructor does, and OptimizerError where it makes no optimizer.
    """
    factory = load_factory(spec.target)
    names = list(parameters_of(factory))
    given = given or {}
    arguments = constructor_arguments(spec, hyperparameters)
    # What the user has set stands: a schedule may be meant to end sooner.
    named = {*names, *declared_needs(hyperparameters)}
    by_name = [name for name in GIVEN if name in spec.needs & named and name not in arguments]
    arguments |= {name: _Given(name) for name in by_name}
    if (first := first_given(factory)) is not None and spec.source == "yours":
        arguments.setdefault(names[0], _Given(first))
    arguments |= {name: _Given(word) for name, value in arguments.items() if (word := given_name(value)) is not None}
    rest: dict[str, Any] = {}
    if spec.only_matrices:
        rest = {k.removeprefix(FALLBACK): arguments.pop(k) for k in list(arguments) if k.startswith(FALLBACK)}

    def made(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        own = {
            # A copy: what an optimizer writes into a list or mapping that it is given would reach all of its variant.
            name: _of_trial(value.name, given, parameters) if isinstance(value, _Given) else copy.deepcopy(value)
            for name, value in arguments.items()
        }
        own |= spec.arguments_on.get(parameters[0].device.type, {}) if parameters else {}
        if not names or names[0] not in own:
            return checked(factory(_grouped(parameters, spec.at_the_ends), **own), spec.target)
        # The model, say, comes first; parameters may follow.
        own = {name: list(parameters) for name in PARAMETERS if name in names} | own
        return checked(factory(own.pop(names[0]), **own), spec.target)

    if not spec.only_matrices:
        return made
    other = find(spec.fallback)
    fallback = maker(other, complete(other.name, rest))

    def split(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        matrices = [p for p in parameters if p.ndim == 2 and not is_end(p)]
        others = [p for p in parameters if p.ndim != 2 or is_end(p)]
        parts = [made(matrices)] if matrices else []
        if others:
            parts.append(fallback(others))
        return Together(parts)

    return split


def _grouped(parameters: Sequence[Tensor], at_the_ends: Mapping[str, Any]) -> list[Any]:
    """The parameters, or a group of them and one of the ends with settings of its own."""
    ends = [p for p in parameters if is_end(p)] if at_the_ends else []
    if not ends:
        return list(parameters)
    rest = [p for p in parameters if not is_end(p)]
    return [*([{"params": rest}] if rest else []), {"params": ends, **at_the_ends}]


@dataclass(frozen=True)
class _Given:
    """Stands for an argument that only the trial has."""

    name: Need


def _of_trial(name: Need, given: Mapping[str, Any], parameters: Sequence[Tensor]) -> Any:
    if name != "named_parameters":
        return given[name]
    chosen = {id(p) for p in parameters}
    return [(key, p) for key, p in given["model"].named_parameters() if id(p) in chosen]


def checked(made: Any, target: str) -> torch.optim.Optimizer:
    """Return what a class or function of this target made, be it duck-typed; several optimizers become one.

    Raises:
        OptimizerError: it is no optimizer, or a list of optimizers one of which needs more than gradients.
    """
    if isinstance(made, list | tuple) and made:
        parts = [checked(part, target) for part in made]
        for part in parts:
            if needs := needs_of_methods(part, {}):
                got = f"{type(part).__name__}, which needs {', '.join(sorted(needs))}"
                raise OptimizerError(f"{target}: expected optimizers that need gradients only in a list, got {got}")
        return Together(parts)
    missing = [name for name in ("step", "zero_grad") if not callable(getattr(made, name, None))]
    if missing or isinstance(made, type):
        got = "None" if made is None else f"{type(made).__name__} without {' and '.join(missing) or 'an instance'}"
        raise OptimizerError(f"{target}: expected it to return an optimizer with `step` and `zero_grad`, got {got}")
    optimizer: torch.optim.Optimizer = made
    return optimizer


def constructor_arguments(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters without what is only said of a user's optimizer."""
    declared = DECLARATIONS if spec.source == "yours" else ()
    return {k: v for k, v in hyperparameters.items() if k not in declared}


def resolve_spec(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> OptimizerSpec:
    """Return the spec with what a user's optimizer needs, as far as its class or function and the user tell.

    Declared next to the hyper-parameters: `needs: closure create_graph`, `elementwise: true`, `only_matrices: true`
    (then `fallback_lr: 0.001` and its like are AdamW's, for the rest).

    Raises:
        OptimizerError: it cannot be loaded, is declared elementwise and is not, or what is declared contradicts itself;
            UntriedError where it raises on being tried, which other settings may not.
    """
    if spec.source != "yours":
        return spec
    needs = needs_of(load_factory(spec.target), hyperparameters)
    only_matrices = hyperparameters.get("only_matrices") is True
    if only_matrices and "loss" in needs:
        raise OptimizerError(f"{spec.target}: expected either 'needs: loss' or 'only_matrices: true', got both")
    spec = dataclasses.replace(spec, needs=needs, only_matrices=only_matrices)
    if hyperparameters.get("elementwise") is not True:
        return spec
    if needs != {"random"} or only_matrices or not _tried(spec, hyperparameters):
        raise OptimizerError(
            f"{spec.target} is declared elementwise, and is not: its step on two networks at once differs from its "
            "steps on each, or what it keeps is not all in `state`"
        )
    return dataclasses.replace(spec, lane="elementwise", needs=frozenset())


def resolve_made(
    spec: OptimizerSpec, optimizer: torch.optim.Optimizer, hyperparameters: Mapping[str, Any]
) -> OptimizerSpec:
    """Return a resolved spec with what only an instance of a user's optimizer tells: the needs of its methods."""
    if spec.source != "yours":
        return spec
    return dataclasses.replace(spec, needs=needs_of_methods(optimizer, hyperparameters, spec.needs))


def resolve_shared(
    spec: OptimizerSpec, settings: Sequence[Mapping[str, Any]], *, believed: bool = True
) -> OptimizerSpec:
    """Return the resolved spec of trials with these settings, which declare the same.

    To resolve it may take an instance: settings that the constructor refuses are not the fault of the others.

    believed: False for one that is declared elementwise and has been found not to be: it gets an instance per trial.

    Raises:
        OptimizerError: it cannot be loaded, or is not what it is declared to be.
    """
    for each in settings if believed else ():
        with contextlib.suppress(UntriedError):
            return resolve_spec(spec, each)
    # All are refused, each for its own reason, which an instance for each tells.
    return resolve_spec(spec, {**settings[0], "elementwise": False})


class UntriedError(OptimizerError):
    """An optimizer that raises when what is declared of it is tried: its settings may be to blame."""


def _tried(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> bool:
    try:
        with isolated():  # a worker, or the process that plans the run, carries on after it
            return is_elementwise(spec, hyperparameters)
    except SystemExit as error:
        raise UntriedError(f"{spec.target}: {said(error)}") from error
    except Exception as error:  # a user's optimizer may raise anything
        kind, message = explained(error, spec.target, hyperparameters)
        raise UntriedError(f"{spec.target}: {kind}: {message}") from error


def is_elementwise(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether steps on stacked weights equal, bit for bit, the steps on each row of them, as a vector and as a matrix;
    and whether `state` is all the state there is.

    What depends on other weights only later, or only at a network's size, is found in training (`lanes.verification`).
    """
    make = maker(spec, hyperparameters)
    random = torch.Generator().manual_seed(0)
    probe = make([torch.nn.Parameter(torch.zeros(3, 16))])
    if not isinstance(probe, torch.optim.Optimizer) or needs_of_methods(probe, hyperparameters):
        return False
    start, grads = torch.randn(3, 16, generator=random), torch.randn(len(SCALES), 3, 16, generator=random)
    grads *= torch.tensor(SCALES)[:, None, None] * torch.tensor([1.0, 1e-2, 1e2])[:, None]
    grads[torch.rand(grads.shape, generator=random) < 0.1] = 0.0

    def path(weights: Tensor, along: Tensor, renewed: Sequence[int] = ()) -> Tensor:
        """The bits of the weights after each step: once they are no numbers, all later ones agree."""
        parameter = torch.nn.Parameter(weights.clone())
        optimizer = make([parameter])
        bits = []
        for step, grad in enumerate(along):
            if step in renewed:  # as the lane does when a member stops, or a task ends
                state = optimizer.state.get(parameter, {})
                optimizer = make([parameter])
                optimizer.state[parameter] = state
            parameter.grad = grad.clone()
            optimizer.step()
            bits.append(parameter.detach().clone().view(torch.int32))
        return torch.stack(bits)

    together = path(start, grads, renewed=(7, 20))
    vectors = [path(start[i], grads[:, i]) for i in range(3)]
    matrices = [path(start[i].view(4, 4), grads[:, i].view(-1, 4, 4)).flatten(1) for i in range(3)]
    return all(torch.equal(own[i], together[:, i]) for own in (vectors, matrices) for i in range(3))


def base_optimizer(wrapper: str, base: Mapping[str, Any], parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer inside a wrapper, over its parameters.

    Raises:
        OptimizerError: it is unknown, refuses its hyper-parameters, or needs more than gradients itself.
    """
    target, settings = base_settings(wrapper, base)
    spec = resolve_spec(find(target), settings)
    for_more = f"{wrapper} cannot stand over {target}, which needs "
    if needs := spec.needs - {"random"}:
        raise OptimizerError(for_more + ", ".join(sorted(needs)))
    make = maker(spec, settings)
    # What a user's own is declared to be is verified in the elementwise lane only.
    found = Row(make, parameters) if spec.lane == "elementwise" and spec.source != "yours" else make(parameters)
    if needs := resolve_made(spec, found, settings).needs - {"random"}:
        raise OptimizerError(for_more + ", ".join(sorted(needs)))
    return found


def begin_task(optimizer: torch.optim.Optimizer) -> None:
    """Tell an optimizer that a new task begins, if it has a method of this name to be told by."""
    told = getattr(optimizer, "begin_task", None)
    if callable(told):
        told()


ROW_ALIGNMENT = 16
"""Of parameters in a row: as in the rows of the engine's stack, and for its reasons."""


class Row(torch.optim.Optimizer):
    """An optimizer that works weight by weight, over all parameters in one row, padded with zeros.

    That is how the engine's own lane for such optimizers holds a member, so inside a wrapper they take the same steps
    to the last bit: a kernel may round the last few elements of a tensor, which fill no vector, differently.
    """

    SCRATCH = ("_row", "_grad")  # written anew in each step

    def __init__(self, make: Maker, parameters: Sequence[Tensor]) -> None:
        offsets = [0]
        for p in parameters:
            offsets.append(offsets[-1] + -(-p.numel() // ROW_ALIGNMENT) * ROW_ALIGNMENT)
        row = torch.zeros(offsets[-1], dtype=parameters[0].dtype, device=parameters[0].device)
        self._row = torch.nn.Parameter(row)
        self._grad = torch.zeros_like(row)
        self._parameters = list(parameters)
        self._places = [slice(o, o + p.numel()) for o, p in zip(offsets, parameters, strict=False)]
        self.inner = make([self._row])
        (group,) = self.inner.param_groups
        super().__init__(parameters, {name: value for name, value in group.items() if name != "params"})
        self.state = self.inner.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters, which have gradients all; the loss of `closure`, where one is given."""
        loss = evaluated(closure)
        for p, place in zip(self._parameters, self._places, strict=True):
            assert p.grad is not None
            self._row[place].copy_(p.flatten())
            self._grad[place].copy_(p.grad.flatten())
        self._row.grad = self._grad
        self.inner.step()
        for p, place in zip(self._parameters, self._places, strict=True):
            p.copy_(self._row[place].view_as(p))
        return loss

    def rate_groups(self, stepping: bool) -> list[Group]:
        """As `rates.rate_groups`: its own, which says what the rate is, and that of the optimizer that steps by it."""
        return [group for group in (*self.param_groups, *self.inner.param_groups) if "lr" in group]

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        self.state = self.inner.state


class Together(torch.optim.Optimizer):
    """Several optimizers, each over parameters of its own, as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        groups = [group for part in parts for group in getattr(part, "param_groups", ())]
        super().__init__([{"params": group["params"]} for group in groups] or [{"params": [torch.zeros(0)]}], {})
        self.parts = list(parts)

    def step(self, closure: Any = None) -> Any:
        """One step of each; the loss of `closure`, where one is given, taken once before them."""
        loss = evaluated(closure)
        for part in self.parts:
            part.step()
        self._gather()
        return loss

    def rate_groups(self, stepping: bool) -> list[Group]:
        """As `rates.rate_groups`: those of every part."""
        return [group for part in self.parts for group in rate_groups(part, stepping=stepping)]

    def _gather(self) -> None:
        self.state.update({p: s for part in self.parts for p, s in getattr(part, "state", {}).items()})

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._gather()
