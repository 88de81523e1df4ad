"""The engine's description of a model, which is a built-in network or a user's module.

A user's module is run on a few training examples to determine where its features are, whether it changes buffers or
draws random numbers, and whether it is valid.

Legend: P padded parameter count, Q padded size of the buffers in floats, B batch size, T positions of a sequence,
d features.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from optbench.data import Dataset, InputSpec
from optbench.engine.batches import Normaliser
from optbench.engine.faults import of_the_machine
from optbench.engine.randomness import SEEDS, seeded
from optbench.engine.stack import Layout
from optbench.engine.taps import Modules, Tap, tap_of_ours
from optbench.errors import OptbenchError, UsageError, spoken
from optbench.isolation import AMBIENT, Snapshot, isolated
from optbench.metrics.place import FEATURES, Place
from optbench.models import Network, build, cross_entropy, initialise
from optbench.optimizers.ends import ends
from optbench.streams import generator, stream_seed
from optbench.suite.schema import ExperimentSettings
from optbench.targets.raised import raised_at

PROBED = 4
"""Number of training examples on which a user's model is run; batch norm needs at least two."""
METHOD = "features()"


@dataclass(frozen=True)
class Blueprint:
    """The parts of a model that all members share.

    Attributes:
        network: the module in training mode. Its weights are not used; in a built-in network, they are on the meta
            device.
        layout: the layout of the module's parameters and buffers.
        features: the name of the last linear layer, whose input is the features, or `METHOD` if the module has a method
            `features` that returns them.
        output: the name of the output layer's weight; None if there is none.
        alone: the reason why members cannot be trained together; None if none is known.
        aliases: maps each additional name of a parameter or buffer with several names (such as an embedding tied to the
            head) to its name in `layout`.
    """

    network: nn.Module
    layout: Layout
    features: str
    output: str | None
    alone: str | None
    aliases: Mapping[str, str]
    _start: Callable[[int, int, str], dict[str, Tensor]]
    _modules: Callable[[], Modules] | None = None
    """Returns the modules of a user's model; called only if a metric reads one of them."""

    @property
    def ours(self) -> bool:
        """True for a built-in network. Its only buffers are batch norm's, and its eval mode draws no random numbers."""
        return isinstance(self.network, Network)

    @property
    def plain(self) -> bool:
        """True for a built-in network without dropout or buffers. Its logits depend only on its weights and inputs."""
        return isinstance(self.network, Network) and self.network.alone is None

    def answers_for(self, error: Exception) -> bool:
        """Return whether an error during a measurement is due to a user's model, in which case only the trial fails."""
        return not (self.ours or isinstance(error, OptbenchError) or of_the_machine(error))

    @functools.cached_property
    def ends(self) -> frozenset[str]:
        """Names of the embedding weights and the output weight; empty for a network without embeddings."""
        return ends(self.network, self.output)

    def start(self, suite_seed: int, trial_seed: int, task: int = 0) -> dict[str, Tensor]:
        """Return initial parameters and buffers by name, on the CPU; they are the same for every optimizer.

        task: the index, from 0, of the first task on which the network is trained. Initial values differ between tasks.
        """
        return self._start(suite_seed, trial_seed, f"initial weights/task {task}" if task else "initial weights")

    def checkpoint(self, row: Tensor) -> dict[str, Tensor]:
        """Convert a row (P + Q,) to a state dict on the CPU that shares no memory with the row."""
        found = self.layout.unpack(row)
        return found | {alias: found[name].clone() for alias, name in self.aliases.items()}

    def tap(self, place: Place) -> Tap | None:
        """Return the tap that reads a place in a forward pass; None for the features, which need no tap.

        Raises:
            ValueError: the network has no such layer, or the input of the layer's activation cannot be determined.
        """
        if place == FEATURES:
            return None
        if isinstance(self.network, Network):
            return tap_of_ours(place, self.network.depth)
        assert self._modules is not None, "a user's model"
        return self._modules().tap(place)

    @staticmethod
    def of_ours(network: Network) -> Blueprint:
        """Build the blueprint of a built-in network."""

        def start(suite_seed: int, trial_seed: int, purpose: str) -> dict[str, Tensor]:
            return initialise(network, generator(suite_seed, trial_seed, purpose))

        buffers = dict(network.named_buffers())
        layout = Layout.of({name: p.shape for name, p in network.named_parameters()}, buffers, buffers)
        return Blueprint(network, layout, "head", "head.weight", network.alone, {}, start)

    @staticmethod
    def of(experiment: ExperimentSettings, name: str, dataset: Dataset, place: str | None = None) -> Blueprint:
        """Build the blueprint of the model `name`.

        place: the location of the model's settings in the suite, for messages.

        Raises:
            UsageError: the model does not fit the data, or violates the contract for models.
        """

        def make(seed: int = 0) -> nn.Module:
            return build(experiment.models[name], dataset.inputs, dataset.classes, seed)

        try:
            network = make()
            if isinstance(network, Network):
                sequences = dataset.train.targets.ndim > 1
                if not network.reads_tokens and (sequences or dataset.inputs.vocabulary is not None):
                    raise ValueError("expected images or vectors with one target each, got sequences")
                if network.reads_tokens and not sequences:
                    raise ValueError("expected a target at each position, got one for each sequence")
                return Blueprint.of_ours(network)
            normalise = Normaliser.of(dataset, experiment.protocol, torch.device("cpu"))
            inputs, targets = normalise(dataset.train.inputs[:PROBED]), dataset.train.targets[:PROBED]
            with contextlib.redirect_stdout(sys.stderr), isolated(), seeded(0, torch.device("cpu")):
                return _probed(network, make, inputs, targets, dataset.classes)
        except OptbenchError as error:
            raise UsageError(*(f"{place}: {line}" if place else line for line in error.args)) from error
        except Exception as error:  # a user's module may raise anything
            if of_the_machine(error):
                raise
            said = " ".join(_explained(error, dataset.inputs).split())
            raise UsageError(f"{place}: {experiment.models[name].kind}: {said}" if place else said) from error


def _explained(error: Exception, inputs: InputSpec) -> str:
    """Describe an error found while a user's model was built and run.

    An exception raised by the user's code is described with the line that raised it and the shape of the inputs.
    """
    said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {spoken(error)}"
    place = raised_at(error, own=True)
    given = f"the model was given inputs of shape {_shape(('B', *inputs.shape))}"
    return f"{said}, raised {place}; {given}" if place else said


def _probed(
    module: nn.Module, make: Callable[[int], nn.Module], inputs: Tensor, targets: Tensor, outputs: int
) -> Blueprint:
    _check_parts(module)
    start = _copies(module)
    every, once = _tensors(module, remove_duplicate=False), _tensors(module)
    names = {id(tensor): name for name, tensor in once.items()}
    aliases = {name: names[id(tensor)] for name, tensor in every.items() if name not in once}
    persistent = module.state_dict().keys()
    module.train()
    generators = Snapshot(AMBIENT[:3])
    logits = module(inputs.clone())
    expected = (*targets.shape, outputs)
    _check("logits", logits, expected, inputs)
    cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
    if _tensors(module).keys() != start.keys():
        raise ValueError("expected shared buffers to be changed in place, got another tensor under one of their names")
    moved = [name for name, buffer in module.named_buffers() if not _same(buffer, start[name])]
    module.eval()
    linear, method = _last_linear(module, inputs), own_features(module)
    if method is None and linear is None:
        raise ValueError("expected an nn.Linear, whose input is used as features, or a method features(x), got neither")
    with torch.no_grad():
        whole, again, part = (_evaluated(module, some) for some in (inputs, inputs, inputs[: PROBED // 2]))
        _check("logits", whole, expected, inputs)
        if not torch.allclose(whole, again):
            raise ValueError(
                "expected the same logits in a second evaluation, got different ones; keep state in buffers only"
            )
        if method is not None:
            _check("features(x)", method(inputs.clone()), (*targets.shape, None), inputs)
    alone = []
    if not torch.allclose(whole[: len(part)], part, rtol=1e-3, atol=1e-4):
        alone.append("logits that depend on the other examples in eval mode")
    if moved:
        norm = any(isinstance(part, _BatchNorm) for part in module.modules())
        alone.append("batch norm" if norm else f"buffers that change ({moved[0]})")
    if generators.changed():
        dropout = any(isinstance(part, _DropoutNd) and part.p > 0 for part in module.modules())
        alone.append("dropout" if dropout else "random numbers in its forward pass")
    buffers = dict(module.named_buffers())
    layout = Layout.of({name: p.shape for name, p in module.named_parameters()}, buffers, persistent)

    def begin(suite_seed: int, trial_seed: int, purpose: str) -> dict[str, Tensor]:
        seed = stream_seed(suite_seed, trial_seed, purpose) % SEEDS
        return _copies(make(seed))

    @functools.cache
    def read_modules() -> Modules:
        module.eval()
        with contextlib.redirect_stdout(sys.stderr), isolated(), torch.no_grad():
            return Modules.of(
                module,
                lambda: _evaluated(module, inputs),
                lambda: method(inputs.clone()) if method else _input_of(module, linear or "", inputs),
                tuple(targets.shape),
            )

    module.train().zero_grad()
    network = copy.deepcopy(module)  # every member has a copy, so a module that cannot be copied is rejected here
    output = name if (name := f"{linear}.weight") in start else None
    return Blueprint(
        network,
        layout,
        METHOD if method else linear or "",
        output,
        ", ".join(alone) or None,
        {alias: name for alias, name in aliases.items() if alias in persistent},
        begin,
        read_modules,
    )


def own_features(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the method `features` of a module, or None if there is none.

    A submodule named `features`, as in torchvision's `VGG`, does not count.
    """
    found = getattr(module, "features", None)
    return None if isinstance(found, nn.Module) or not callable(found) else found


def _check_parts(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise ValueError(f"expected an nn.Module, got {type(module).__name__}")
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ValueError("expected parameters to train, got none")
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name}: expected an initialised parameter, got a lazy one")
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(f"{name}: expected float32 on the CPU, got {parameter.dtype} on {parameter.device}")
        if not parameter.requires_grad:
            raise ValueError(f"{name}: expected a trainable parameter, got requires_grad=False; make it a buffer")


def _check(what: str, found: object, expected: tuple[int | None, ...], inputs: Tensor) -> None:
    if not isinstance(found, Tensor):
        raise ValueError(f"expected {what} of shape {_shape(expected)}, got {type(found).__name__}")
    open_end = expected[-1] is None  # features may have any number of axes and any size
    same = found.shape[: len(expected) - 1] == expected[:-1] and found.ndim >= len(expected)
    if not same or (not open_end and found.shape != expected):
        arrived = ("B", *found.shape[1:]) if found.ndim and len(found) == len(inputs) else tuple(found.shape)
        given = f"for inputs of shape {_shape(inputs.shape)}"
        raise ValueError(f"expected {what} of shape {_shape(expected)}, got {_shape(arrived)} {given}")
    if found.dtype != torch.float32:
        raise ValueError(f"expected {what} in float32, got {found.dtype}")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"expected finite {what}, got NaN or infinity at the initial weights")


def _shape(shape: tuple[object, ...]) -> str:
    return f"({', '.join(str(size or 'd') for size in ('B', *shape[1:]))})"


def _evaluated(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits computed as in the engine's evaluation, with the same buffers and random draws in every call."""
    # without tie_weights=False, `functional_call` would leave the copies in a layer that has two names
    with seeded(0, inputs.device):
        logits: Tensor = functional_call(module, _copies(module), (inputs.clone(),), tie_weights=False)
    return logits


def _input_of(module: nn.Module, linear: str, inputs: Tensor) -> Tensor:
    """Return the input of the last call to layer `linear` in a forward pass in eval mode."""
    caught: list[Tensor] = []
    handle = module.get_submodule(linear).register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    try:
        _evaluated(module, inputs)
    finally:
        handle.remove()
    return caught[-1]


def _last_linear(module: nn.Module, inputs: Tensor) -> str | None:
    """Return the name of the linear layer executed last in a forward pass in eval mode; None if there is none."""
    called: list[str] = []

    def noting(name: str) -> Callable[[nn.Module, object], None]:
        return lambda *_: called.append(name)

    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    handles = [part.register_forward_pre_hook(noting(name)) for name, part in linears]
    try:
        with torch.no_grad():
            module(inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
    return called[-1] if called else None


def _tensors(module: nn.Module, *, remove_duplicate: bool = True) -> dict[str, Tensor]:
    parameters = module.named_parameters(remove_duplicate=remove_duplicate)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=remove_duplicate))}


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
