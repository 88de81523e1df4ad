"""The place in a network where features are read: a setting of every metric of rank. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from optbench.kinds import value_name

Activation = Literal["after", "before"]


def _layer(value: Any) -> Any:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    number = isinstance(whole, int) and not isinstance(whole, bool) and whole >= 1
    if not (number or (isinstance(whole, str) and whole) or whole is None):
        raise ValueError(
            "expected the number of a hidden layer (the first is 1), or the name of a module of your own model, "
            f"got {value!r}"
        )
    return whole


Layer = Annotated[int | str | None, BeforeValidator(_layer)]


@dataclass(frozen=True)
class Place:
    """A place in a network where features are read.

    Attributes:
        layer: a hidden layer of a built-in network, counted from 1, or the name of a module of a user's model;
            None: the input of the last linear layer.
        activation: `after` for the output of the layer's activation function, `before` for its input.
    """

    layer: int | str | None = None
    activation: Activation = "after"

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Place:
        """Return the place described by a metric's settings."""
        return Place(settings.get("layer"), settings.get("activation", "after"))

    @property
    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer, "activation": self.activation}

    @property
    def name(self) -> str:
        """The settings that differ from their defaults, e.g. `layer=1,activation=before`."""
        default = FEATURES.settings
        changed = {name: value for name, value in self.settings.items() if value != default[name]}
        return ",".join(f"{name}={value_name(value)}" for name, value in changed.items())


FEATURES = Place()
"""The input of the last linear layer, the default place."""
SETTINGS: Mapping[str, Any] = {"layer": (Layer, None), "activation": (Activation, "after")}
"""The settings of a place in a suite, as fields of a pydantic model."""
