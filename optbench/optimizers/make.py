"""Construction of optimizers from a spec and settings, and the needs and lane of a user's optimizer."""

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
"""Factors that scale the gradients in `is_elementwise`, one per step: ordinary, zero, tiny and huge."""


def maker(spec: OptimizerSpec, hyperparameters: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Maker:
    """Return a function that takes parameters and constructs the optimizer of `spec` for them.

    given: the trial's `generator`, `model`, `total_steps` and `examples`, as far as the optimizer needs them.

    The returned function propagates exceptions of the constructor. It raises OptimizerError if the constructor does not
    return an optimizer.
    """
    factory = load_factory(spec.target)
    names = list(parameters_of(factory))
    given = given or {}
    arguments = constructor_arguments(spec, hyperparameters)
    # A value set by the user takes precedence. For example, a schedule may be meant to end sooner.
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
            # Copied, because an optimizer's changes to a list or mapping would affect all trials of its variant.
            name: _of_trial(value.name, given, parameters) if isinstance(value, _Given) else copy.deepcopy(value)
            for name, value in arguments.items()
        }
        own |= spec.arguments_on.get(parameters[0].device.type, {}) if parameters else {}
        if not names or names[0] not in own:
            return checked(factory(_grouped(parameters, spec.at_the_ends), **own), spec.target)
        # the first argument is, for example, the model; parameters may follow
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
    """Return the parameters, grouped into ends (see `ends`) and others if the ends have their own settings."""
    ends = [p for p in parameters if is_end(p)] if at_the_ends else []
    if not ends:
        return list(parameters)
    rest = [p for p in parameters if not is_end(p)]
    return [*([{"params": rest}] if rest else []), {"params": ends, **at_the_ends}]


@dataclass(frozen=True)
class _Given:
    """Placeholder for an argument that only the trial can provide."""

    name: Need


def _of_trial(name: Need, given: Mapping[str, Any], parameters: Sequence[Tensor]) -> Any:
    if name != "named_parameters":
        return given[name]
    chosen = {id(p) for p in parameters}
    return [(key, p) for key, p in given["model"].named_parameters() if id(p) in chosen]


def checked(made: Any, target: str) -> torch.optim.Optimizer:
    """Validate the optimizer that a target's class or function returned; combine a list of optimizers into one.

    Any object with the methods `step` and `zero_grad` is accepted.

    Raises:
        OptimizerError: the result is not an optimizer, or is a list in which one optimizer needs more than gradients.
    """
    if isinstance(made, list | tuple) and made:
        parts = [checked(part, target) for part in made]
        for part in parts:
            if needs := needs_of_methods(part, {}):
                got = f"{type(part).__name__}, which needs {', '.join(sorted(needs))}"
                raise OptimizerError(f"{target}: expected a list of optimizers that need only gradients, got {got}")
        return Together(parts)
    missing = [name for name in ("step", "zero_grad") if not callable(getattr(made, name, None))]
    if missing or isinstance(made, type):
        if isinstance(made, type):
            got = "a class instead of an instance"
        else:
            got = "None" if made is None else f"{type(made).__name__} without {' and '.join(missing)}"
        needed = "the returned value to be an optimizer with `step` and `zero_grad`"
        raise OptimizerError(f"{target}: expected {needed}, got {got}")
    optimizer: torch.optim.Optimizer = made
    return optimizer


def constructor_arguments(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that the constructor receives: all except declarations about a user's optimizer."""
    declared = DECLARATIONS if spec.source == "yours" else ()
    return {k: v for k, v in hyperparameters.items() if k not in declared}


def resolve_spec(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> OptimizerSpec:
    """Return the spec; for a user's optimizer, set the needs and the lane that its signatures and declarations imply.

    Declarations are written next to the hyper-parameters: `needs: closure create_graph`, `elementwise: true` or
    `only_matrices: true`. With the last of these, `fallback_lr` and similar settings are AdamW's hyper-parameters for
    the remaining parameters.

    Raises:
        OptimizerError: the optimizer cannot be loaded, is wrongly declared elementwise, or has contradictory
            declarations.
        UntriedError: the optimizer raises an exception when it is tried, possibly because of its settings.
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
    if further := sorted({*needs, *(["only_matrices"] if only_matrices else [])} - {"random"}):
        others = " and ".join(f"'{name}'" for name in further)
        raise OptimizerError(f"{spec.target} is declared elementwise, which cannot be combined with {others}")
    if not _tried(spec, hyperparameters):
        raise OptimizerError(
            f"{spec.target} is declared elementwise, but fails the test: it is not a torch.optim.Optimizer, keeps data "
            "outside `state`, or takes different steps for two networks together than for each alone"
        )
    return dataclasses.replace(spec, lane="elementwise", needs=frozenset())


def resolve_made(
    spec: OptimizerSpec, optimizer: torch.optim.Optimizer, hyperparameters: Mapping[str, Any]
) -> OptimizerSpec:
    """Return a resolved spec; for a user's optimizer, add the needs that the methods of `optimizer` imply."""
    if spec.source != "yours":
        return spec
    return dataclasses.replace(spec, needs=needs_of_methods(optimizer, hyperparameters, spec.needs))


def resolve_shared(
    spec: OptimizerSpec, settings: Sequence[Mapping[str, Any]], *, believed: bool = True
) -> OptimizerSpec:
    """Return the resolved spec that trials with these settings share.

    All settings must contain the same declarations. If the optimizer must be tried, settings with which it raises an
    exception are skipped.

    believed: whether to believe the declaration `elementwise`. It is False for an optimizer that was found not to be
    elementwise; each trial then has its own instance.

    Raises:
        OptimizerError: the optimizer cannot be loaded, or a declaration is wrong.
    """
    for each in settings if believed else ():
        with contextlib.suppress(UntriedError):
            return resolve_spec(spec, each)
    # If all settings are rejected, each raises its own error when its optimizer is constructed.
    return resolve_spec(spec, {**settings[0], "elementwise": False})


class UntriedError(OptimizerError):
    """An optimizer raised an error while its declarations were tested, possibly because of its settings."""


def _tried(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> bool:
    try:
        with isolated():  # the worker, or the process that plans the run, continues afterwards
            return is_elementwise(spec, hyperparameters)
    except SystemExit as error:
        raise UntriedError(f"{spec.target}: {said(error)}") from error
    except Exception as error:  # a user's optimizer may raise anything
        kind, message = explained(error, spec.target, hyperparameters)
        raise UntriedError(f"{spec.target}: {kind}: {message}") from error


def is_elementwise(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> bool:
    """Return whether stacked rows are updated exactly like each row alone, and all state is in `state`.

    Updates must agree bit for bit. Each row is tried alone as a vector and as a matrix. Updates that depend on other
    weights only after more steps, or only in larger tensors, are detected during training (`lanes.verification`).
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
        """Return the weights after each step as bit patterns, because NaN does not compare equal to itself."""
        parameter = torch.nn.Parameter(weights.clone())
        optimizer = make([parameter])
        bits = []
        for step, grad in enumerate(along):
            if step in renewed:  # as the lane does when a member stops or a task ends
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
    """Construct the base optimizer of a wrapper for the wrapper's parameters.

    Raises:
        OptimizerError: the optimizer is unknown, rejects its hyper-parameters, or needs more than gradients.
    """
    target, settings = base_settings(wrapper, base)
    spec = resolve_spec(find(target), settings)
    for_more = f"{wrapper} cannot wrap {target}, which needs "
    if needs := spec.needs - {"random"}:
        raise OptimizerError(for_more + ", ".join(sorted(needs)))
    make = maker(spec, settings)
    # Declarations about a user's optimizer are verified in the elementwise lane only.
    found = Row(make, parameters) if spec.lane == "elementwise" and spec.source != "yours" else make(parameters)
    if needs := resolve_made(spec, found, settings).needs - {"random"}:
        raise OptimizerError(for_more + ", ".join(sorted(needs)))
    return found


def begin_task(optimizer: torch.optim.Optimizer) -> None:
    """Call an optimizer's `begin_task`, if it has one."""
    told = getattr(optimizer, "begin_task", None)
    if callable(told):
        told()


ROW_ALIGNMENT = 16
"""Alignment of parameters in a row, in elements; the engine's stack uses the same alignment."""


class Row(torch.optim.Optimizer):
    """An elementwise optimizer applied to all parameters as a single row, padded with zeros.

    The engine's elementwise lane stores members in the same way, so an optimizer inside a wrapper takes bit-identical
    steps. In another layout, steps might differ, because kernels may round the last few elements of a tensor
    differently if these do not fill a vector register.
    """

    SCRATCH = ("_row", "_grad")  # rewritten in each step

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
        """Update all parameters, which must have gradients; return the loss of `closure`, or None without a closure."""
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
        """Return the parameter groups that have an `lr`, for use by `rates.rate_groups`.

        This optimizer's own groups come first, then those of the inner optimizer.
        """
        return [group for group in (*self.param_groups, *self.inner.param_groups) if "lr" in group]

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        self.state = self.inner.state


class Together(torch.optim.Optimizer):
    """Several optimizers, each with its own parameters, combined into one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        groups = [group for part in parts for group in getattr(part, "param_groups", ())]
        super().__init__([{"params": group["params"]} for group in groups] or [{"params": [torch.zeros(0)]}], {})
        self.parts = list(parts)

    def step(self, closure: Any = None) -> Any:
        """Evaluate `closure` once and take one step with every part; return the closure's loss, or None without one."""
        loss = evaluated(closure)
        for part in self.parts:
            part.step()
        self._gather()
        return loss

    def rate_groups(self, stepping: bool) -> list[Group]:
        """Return all parts' parameter groups with a learning rate, for use by `rates.rate_groups`."""
        return [group for part in self.parts for group in rate_groups(part, stepping=stepping)]

    def _gather(self) -> None:
        self.state.update({p: s for part in self.parts for p, s in getattr(part, "state", {}).items()})

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._gather()
