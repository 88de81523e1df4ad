"""The learning rate schedule of a suite, `protocol.schedule`; its formula is in `optbench.engine.rates`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from optbench.suite.fields import Settings, without_nulls

OF_KIND = {"floor": ("linear", "cosine", "wsd"), "decay": ("wsd",)}
"""For each key that some kinds reject: the kinds that accept the key."""


class RateSchedule(Settings):
    """A factor, as a function of the step, for the learning rate of every parameter group (`optbench.engine.rates`)."""

    kind: Literal["constant", "linear", "cosine", "wsd"]
    """The shape after the warm-up: `constant` stays at the peak; `linear` decays linearly; `cosine` decays along half a
    cosine; `wsd` (warm-up, stable, decay) stays at the peak and then decays linearly."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the steps during which the learning rate rises to its peak, the optimizer's own learning rate."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Final factor, as a fraction of the peak; not for `constant`."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Fraction of the steps during which the learning rate decays; `wsd` only."""
    span: Literal["task", "all"] = "task"
    """`task`: the schedule restarts in every task; `all`: it spans the steps of all tasks."""

    @property
    def is_flat(self) -> bool:
        """True if the factor is 1 at every step."""
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
                    f"'{key}': expected kind: {' or '.join(kinds)}, got kind: {self.kind} ('{key}: null' removes it)"
                )
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            total = f"{self.warmup:g} and {self.decay:g}"
            raise ValueError(f"expected 'warmup' and 'decay' to add up to at most 1, got {total}")
        return self

    @model_serializer(mode="wrap")
    def _keys_of_its_kind(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialise(self)
        return {key: value for key, value in found.items() if key not in OF_KIND or self.kind in OF_KIND[key]}
