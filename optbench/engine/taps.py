"""Taps: tensors of a forward pass, captured at the places in a network that metrics read.

Legend: B batch, T positions of a sequence, d units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from optbench.errors import unknown
from optbench.metrics.place import FEATURES, Place

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.Threshold),
)
_SUCH_AS = "an activation module, such as nn.ReLU"
_NAME_IT = "set 'layer' to the module whose output is the activation's input, and omit 'activation'"


@dataclass(frozen=True)
class Tap:
    """A tensor of a network's forward pass.

    Attributes:
        layer: a hidden layer of a built-in network, counted from 1, or the name of a user's module.
        before: True for the input of the layer's activation function, or of a user's module that is an activation.
        as_features: True if the tensor is the input of the activation function whose output is the features.
    """

    layer: int | str
    before: bool
    as_features: bool = False

    def rows(self, found: Tensor, target_axes: int) -> Tensor:
        """Return one row (d,) for each example, each position of a sequence, or each pixel of images (B, d, H, W).

        For a built-in network on image patches, there is one row for each patch.
        """
        if found.ndim == 4 and target_axes == 1 and not self.as_features:
            return found.movedim(1, -1).flatten(0, 2)
        if found.ndim == 3 and target_axes == 1 and isinstance(self.layer, int):  # built in: (B, T, d)
            return found.flatten(0, 1)
        return found.flatten(0, target_axes - 1).flatten(1)


def tap_of_ours(place: Place, depth: int) -> Tap | None:
    """Return the tap at a place in a built-in network with `depth` hidden layers; None for the features.

    Raises:
        ValueError: the network has no such layer.
    """
    layer = depth if place.layer is None else place.layer
    if place == FEATURES or (layer == depth and place.activation == "after"):
        return None
    if not isinstance(layer, int) or not 1 <= layer <= depth:
        expected = f"a hidden layer from 1 to {depth}" if depth > 1 else "hidden layer 1" if depth else "a hidden layer"
        got = f"got {place.layer!r}" if depth else "but the network has none"
        raise ValueError(f"expected {expected}, {got}")
    return Tap(layer, place.activation == "before")


@dataclass(frozen=True)
class Modules:
    """The modules of a user's model, as observed in a forward pass.

    Attributes:
        unreadable: maps each module to the reason why its output cannot be read; None if it can be read.
        activations: the modules that are activation functions.
        last: the activation whose output is the features; None if there is none.
    """

    unreadable: Mapping[str, str | None]
    activations: frozenset[str]
    last: str | None

    def tap(self, place: Place) -> Tap | None:
        """Return the tap at a place; None for the features.

        Raises:
            ValueError: there is no such module, or the input of the activation cannot be determined.
        """
        name, before = place.layer, place.activation == "before"
        if name is None:
            if before and self.last is None:
                raise ValueError(f"expected features that are the output of {_SUCH_AS}, got other features; {_NAME_IT}")
            return Tap(self.last, True, as_features=True) if before and self.last is not None else None
        if isinstance(name, int):
            named = ", ".join(repr(known) for known in list(self.unreadable)[:3])
            raise ValueError(f"expected the name of a module of the model, such as {named}, got {name}")
        if name not in self.unreadable:
            raise ValueError(unknown("module", name, self.unreadable))
        if (why := self.unreadable[name]) is not None:
            raise ValueError(f"expected a module that outputs one tensor (B, ...), got '{name}': {why}")
        if before and name not in self.activations:
            raise ValueError(f"expected {_SUCH_AS}, got '{name}'; {_NAME_IT}")
        return Tap(name, before)

    @staticmethod
    def of(
        module: nn.Module, forward: Callable[[], object], features: Callable[[], Tensor], target_shape: tuple[int, ...]
    ) -> Modules:
        """Observe the modules of a model in eval mode.

        forward: runs the model. features: computes the features. target_shape: (B,), or (B, T) for sequences.
        """
        parts = {name: part for name, part in module.named_modules() if name}
        unreadable: dict[str, str | None] = {}
        with _outputs(parts) as given:
            forward()
        for name in parts:
            own = given.get(name, [])
            if len(own) != 1:
                unreadable[name] = f"it is called {len(own)} times" if own else "it is not called"
            elif not isinstance(own[0], Tensor) or not own[0].is_floating_point():
                unreadable[name] = f"its output has type {type(own[0]).__name__}"
            elif own[0].shape[: len(target_shape)] != target_shape or own[0].ndim == len(target_shape):
                unreadable[name] = f"its output has shape {tuple(own[0].shape)}"
            else:
                unreadable[name] = None
        activations = frozenset(name for name, part in parts.items() if isinstance(part, ACTIVATIONS))
        with _outputs({name: parts[name] for name in activations}) as given:
            found = features()
        # Only the last call counts. The features may be a view of its output, for example after flattening.
        last = (name for name, own in given.items() if isinstance(own[-1], Tensor) and _same_memory(own[-1], found))
        return Modules(unreadable, activations, next(last, None))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


@contextlib.contextmanager
def _outputs(parts: Mapping[str, nn.Module]) -> Iterator[Mapping[str, list[object]]]:
    """Collect the outputs of modules, one for each call in the block; modules that are not called are left out."""
    given: dict[str, list[object]] = {}

    def noting(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _arguments, output: given.setdefault(name, []).append(output)

    handles = [part.register_forward_hook(noting(name)) for name, part in parts.items()]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def tapped(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Capture copies of the tapped tensors of a user's model in the block, each from the last call."""
    caught: dict[Tap, Tensor] = {}

    def before(tap: Tap) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, arguments: caught.update({tap: arguments[0].clone()})

    def after(tap: Tap) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _arguments, output: caught.update({tap: output.clone()})

    with contextlib.ExitStack() as stack:
        for tap in taps:
            part = module.get_submodule(str(tap.layer))
            hook = part.register_forward_pre_hook(before(tap)) if tap.before else part.register_forward_hook(after(tap))
            stack.callback(hook.remove)
        yield caught


def tapped_of_ours(hidden: Sequence[tuple[Tensor, Tensor]], taps: Sequence[Tap]) -> dict[Tap, Tensor]:
    """Select the tapped tensors of a built-in network from the outputs of `Network.hidden`."""
    return {tap: hidden[int(tap.layer) - 1][0 if tap.before else 1] for tap in taps}
