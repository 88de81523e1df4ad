"""How each task is trained, and when it ends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from optbench.kinds import Whole
from optbench.suite.fields import OffByFalse, Settings, without_nulls
from optbench.suite.rate_schedule import RateSchedule
from optbench.suite.scoring import Score


class EarlyStopping(Settings):
    """When a task ends before its `max_epochs`.

    After `patience` evaluations without a lower held-out loss, with the weights of the lowest; or, with a `target`, at
    the first evaluation whose training loss is at or below it, with the weights of that evaluation.
    """

    on: Literal["validation", "test", "train_loss"] = "validation"
    """The data whose loss decides."""
    patience: Annotated[Whole, Field(ge=1)] = 3
    """Evaluations in a row without a lower loss, after which a task ends."""
    target: Annotated[float, Field(gt=0)] | None = None
    """Of `on: train_loss`: mean cross-entropy in eval mode on at most 5,000 of the task's training examples."""

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
                "'patience' does not go with 'target': the first loss at or below the target ends a task "
                "('patience: null' takes it away)"
            )
        return self

    @model_serializer(mode="wrap")
    def _keys_of_its_rule(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialise(self)
        found.pop("target" if self.target is None else "patience", None)
        return found


Precision = Literal["float32", "bfloat16"]


class WeightAveraging(Settings):
    """An average of the weights after each step, which is what is measured; training continues from the weights."""

    kind: Literal["ema"]
    """Exponential: a ← d a + (1 - d) w. The first step's weights begin it, and it continues from task to task."""
    decay: Annotated[float, Field(gt=0, lt=1)]
    """d."""


class Augment(Settings):
    """How images of training batches are varied, drawn anew for each image and epoch; no evaluation is.

    A permuted task permutes the pixels of the augmented image; rotated images are mirrored before they are turned, and
    cropped after it. With task sequences of the user's own it comes after what they do.
    """

    crop: Annotated[Whole, Field(ge=0)] = 0
    """A window of the image's size out of the image with so many pixels of zeros around it; 0: no crop."""
    flip: bool = False
    """true: mirrored left to right with probability 1/2."""

    @model_validator(mode="after")
    def _something(self) -> Augment:
        if not self.crop and not self.flip:
            raise ValueError("expected 'crop' above 0, 'flip: true' or both, as in {crop: 4, flip: true}")
        return self

    @property
    def ways(self) -> int:
        """The number of things that can happen to an image, all equally likely."""
        return (2 * self.crop + 1) ** 2 * (2 if self.flip else 1)


class Protocol(Settings):
    """How each task is trained."""

    batch_size: Annotated[Whole, Field(ge=1)] = 128
    """Examples of one step."""
    max_epochs: Annotated[float, Field(gt=0)] = 5.0
    """Passes over the training examples of a task, at most; may be a fraction."""
    max_steps: Annotated[Whole, Field(ge=1)] | None = None
    """An upper bound on the steps of a task, whatever `max_epochs` says."""
    evaluate_every: Annotated[float, Field(gt=0)] = 1.0
    """In epochs: how often the loss by which early stopping decides is measured."""
    early_stopping: Annotated[EarlyStopping | None, OffByFalse] = EarlyStopping()
    """null or false: every task is trained for all of its epochs."""
    optimizer_state: Literal["keep", "reset"] = "keep"
    """`keep`: the optimizer's state passes from task to task; `reset`: each task begins with a new optimizer."""
    schedule: Annotated[RateSchedule | None, OffByFalse] = None
    """Of the learning rate; null or false: constant."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Before each step the gradient, all parameters as one vector, is scaled to a norm of at most this, as
    `torch.nn.utils.clip_grad_norm_` does; null: not at all."""
    weight_averaging: Annotated[WeightAveraging | None, OffByFalse] = None
    """What is measured is an average of the weights, as in {kind: ema, decay: 0.999}; null or false: the weights."""
    precision: Precision = "float32"
    """`bfloat16`: forward passes in training under autocast. Weights, optimizer and whatever is measured: float32."""
    validation_examples: Annotated[Whole, Field(ge=1)] = 5000
    """Training examples that are held out."""
    train_examples: Annotated[Whole, Field(ge=1)] | None = None
    """Use only so many of the training examples (a random subset, the same for every trial)."""
    test_examples: Annotated[Whole, Field(ge=1)] | None = None
    """Use only so many of the test examples (a random subset, the same for every trial); null: all."""
    score: Score = None
    """Which tasks are scored after a task: `all`, `current` or `{every: k}`, see `optbench.suite.scoring`; null: all
    of up to 20 tasks, else current."""
    follow_earlier: bool = False
    """true: at each evaluation during a task every earlier one is scored on its validation data, too, which takes a
    pass over them: how it is forgotten step by step, in `earlier.parquet`."""
    normalisation: Literal["standard", "unit"] = "standard"
    """`standard`: the dataset's mean and standard deviation; `unit`: pixels in [0, 1]."""
    augment: Annotated[Augment | None, OffByFalse] = None
    """Random crops and mirror images of training images; null or false: none."""
