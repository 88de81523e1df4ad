"""What a suite says of the learning rate's schedule: `protocol.schedule`. `optbench.engine.rates` has its formula."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from optbench.suite.fields import Settings, without_nulls

OF_KIND = {"floor": ("linear", "cosine", "wsd"), "decay": ("wsd",)}
"""The kinds that a key goes with, where it does not go with all."""


class RateSchedule(Settings):
    """A factor on the rate of every parameter group, by the step; the formula is in `optbench.engine.rates`."""

    kind: Literal["constant", "linear", "cosine", "wsd"]
    """After the warm-up: at the peak throughout; falling in a line or as half a cosine; or (warm-up, stable, decay) at
    the peak until a last stretch, in which it falls in a line."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The fraction of the steps in which the rate rises to its peak, the optimizer's own rate."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The factor at the end, as a fraction of the peak; not of `constant`."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of `wsd`: the fraction of the steps in which the rate falls."""
    span: Literal["task", "all"] = "task"
    """`task`: the schedule starts anew in every task; `all`: it spans the steps of all tasks."""

    @property
    def is_flat(self) -> bool:
        """Whether its factor is 1 throughout."""
        return self.kind == "constant" and not self.warmup

    @model_validator(mode="before")
    @classmethod
    def _taken_away(cls, value: Any) -> Any:
        return without_nulls(value, *OF_KIND)

    @model_validator(mode="after")
    def _keys_fit(self) -> RateSchedule:
        for key, kinds in OF_KIND.items():
            if key in self.model_fields_set and self.kind not in kinds:
                raise ValueError(
                    f"'{key}': expected kind: {' or '.join(kinds)}, got kind: {self.kind} ('{key}: null' takes it away)"
                )
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            total = f"{self.warmup:g} and {self.decay:g}"
            raise ValueError(f"expected 'warmup' and 'decay' of at most 1 together, got {total}")
        return self

    @model_serializer(mode="wrap")
    def _keys_of_its_kind(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialise(self)
        return {key: value for key, value in found.items() if key not in OF_KIND or self.kind in OF_KIND[key]}
