"""How each task is trained, and when its training ends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from optbench.kinds import Whole
from optbench.suite.fields import OffByFalse, Settings, without_nulls
from optbench.suite.rate_schedule import RateSchedule
from optbench.suite.scoring import Score


class EarlyStopping(Settings):
    """The criterion by which a task ends before `max_epochs`.

    Without `target`, a task ends after `patience` consecutive evaluations without a lower held-out loss, and the
    weights with the lowest loss are restored. With `target`, it ends at the first evaluation whose training loss is at
    or below the target, and the weights of that evaluation are kept.
    """

    on: Literal["validation", "test", "train_loss"] = "validation"
    """The data whose loss is monitored."""
    patience: Annotated[Whole, Field(ge=1)] = 3
    """Number of consecutive evaluations without a lower loss after which a task ends."""
    target: Annotated[float, Field(gt=0)] | None = None
    """The loss at which a task ends, with `on: train_loss`: the mean cross-entropy in eval mode on at most 5,000 of the
    task's training examples."""

    @model_validator(mode="before")
    @classmethod
    def _taken_away(cls, value: Any) -> Any:
        return without_nulls(value, "patience")

    @model_validator(mode="after")
    def _one_rule(self) -> EarlyStopping:
        if self.on == "train_loss" and self.target is None:
            raise ValueError("expected the key 'target' with on: train_loss, as in {on: train_loss, target: 0.1}")
        if self.on != "train_loss" and self.target is not None:
            raise ValueError(f"'target' needs on: train_loss, got on: {self.on}")
        if self.target is not None and "patience" in self.model_fields_set:
            raise ValueError(
                "'patience' cannot be combined with 'target': the first loss at or below the target ends a task "
                "('patience: null' removes it)"
            )
        return self

    @model_serializer(mode="wrap")
    def _keys_of_its_rule(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialise(self)
        found.pop("target" if self.target is None else "patience", None)
        return found


Precision = Literal["float32", "bfloat16"]


class WeightAveraging(Settings):
    """An average of the weights over steps, measured instead of the weights themselves; training is not affected."""

    kind: Literal["ema"]
    """`ema`: the exponential moving average a ← d a + (1 - d) w, which starts at the weights after the first step and
    continues across tasks."""
    decay: Annotated[float, Field(gt=0, lt=1)]
    """The decay d."""


class Augment(Settings):
    """Augmentation of training images, drawn separately for each image and epoch; evaluations use the original images.

    A permuted task permutes the pixels of the augmented image; rotated images are mirrored before the rotation and
    cropped after it. A user's task sequence is applied before the augmentation.
    """

    crop: Annotated[Whole, Field(ge=0)] = 0
    """Random crop of the original size after zero-padding each side by this many pixels; 0: no crop."""
    flip: bool = False
    """Mirror images left to right with probability 1/2."""

    @model_validator(mode="after")
    def _something(self) -> Augment:
        if not self.crop and not self.flip:
            raise ValueError("expected 'crop' above 0, 'flip: true' or both, as in {crop: 4, flip: true}")
        return self

    @property
    def ways(self) -> int:
        """The number of equally likely augmentations of an image."""
        return (2 * self.crop + 1) ** 2 * (2 if self.flip else 1)


class Protocol(Settings):
    """How each task is trained and scored."""

    batch_size: Annotated[Whole, Field(ge=1)] = 128
    """Number of examples per step."""
    max_epochs: Annotated[float, Field(gt=0)] = 5.0
    """Maximum number of passes over the training examples of a task; may be a fraction."""
    max_steps: Annotated[Whole, Field(ge=1)] | None = None
    """Maximum number of steps per task, in addition to `max_epochs`."""
    evaluate_every: Annotated[float, Field(gt=0)] = 1.0
    """Interval, in epochs, between measurements of the loss for early stopping."""
    early_stopping: Annotated[EarlyStopping | None, OffByFalse] = EarlyStopping()
    """When to end a task early; null or false: every task is trained for all of its epochs."""
    optimizer_state: Literal["keep", "reset"] = "keep"
    """`keep`: the optimizer's state is kept across tasks; `reset`: each task begins with a new optimizer."""
    schedule: Annotated[RateSchedule | None, OffByFalse] = None
    """The learning rate schedule; null or false: constant."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum norm of the gradient of all parameters together; before each step, a larger gradient is scaled down to
    this norm, as by `torch.nn.utils.clip_grad_norm_`. null: no clipping."""
    weight_averaging: Annotated[WeightAveraging | None, OffByFalse] = None
    """Measure an average of the weights, as in `{kind: ema, decay: 0.999}`; null or false: measure the weights."""
    precision: Precision = "float32"
    """`bfloat16`: run training forward passes under autocast; weights, optimizer and measurements stay in float32."""
    validation_examples: Annotated[Whole, Field(ge=1)] = 5000
    """Number of training examples held out for validation."""
    train_examples: Annotated[Whole, Field(ge=1)] | None = None
    """Number of training examples to use (a random subset, the same for every trial); null: all."""
    test_examples: Annotated[Whole, Field(ge=1)] | None = None
    """Number of test examples to use (a random subset, the same for every trial); null: all."""
    score: Score = None
    """The tasks scored after each task: `all`, `current` or `{every: k}` (see `optbench.suite.scoring`); null: `all`
    for up to 20 tasks, else `current`."""
    follow_earlier: bool = False
    """If true, each evaluation during a task also scores every earlier task on its validation data. This costs a pass
    over those data and records in `earlier.parquet` how the tasks are forgotten step by step."""
    normalisation: Literal["standard", "unit"] = "standard"
    """`standard`: subtract the dataset's mean and divide by its standard deviation; `unit`: scale pixels to [0, 1]."""
    augment: Annotated[Augment | None, OffByFalse] = None
    """Random crops and mirroring of training images; null or false: none."""
