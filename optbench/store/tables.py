"""The tables of a run: one frozen dataclass per row, and the Arrow schema made from it.

A row's fields come after the key columns, which every table starts with and which come from the trial.
Legend: `after_task` 0 is before any training, 1..T after that task; `task` 1..T; a null means "does not apply".
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from optbench.errors import escaped
from optbench.plan import Trial

SCHEMA_VERSION = 1
VERSION_KEY = "optbench_schema_version"
"""The version stands under this key in every file's metadata."""

KEY_COLUMNS = ("trial", "experiment", "model", "optimizer", "variant", "seed", "stage")


@dataclass(frozen=True)
class TrialRow:
    """One trial: how it ended and what it cost."""

    table: ClassVar[str] = "trials"

    status: str
    """`ok`, `diverged` (a loss or weight was not finite) or `failed` (something raised)."""
    error_type: str | None
    """Of a failed trial: the class of the exception."""
    error_message: str | None
    """Its text."""
    last_step: int
    """The last training step of the whole trial that was finished; for a diverged trial the step it diverged at."""
    steps: int
    """Optimizer steps taken, over all tasks."""
    parameters: int
    """How many numbers the network has to train."""
    device: str
    """Where it was trained: `cpu`, `cuda`, ..."""
    hyperparameters: str
    """JSON."""
    init_hash: str
    """Of the initial weights: equal for all optimizers of a seed."""
    train_seconds: float
    """This trial's share of its cohort's time in batches, gradients and updates."""
    optimizer_seconds: float
    """The part of it that was spent in the optimizer."""
    optimizer_state_bytes: int
    """Memory of the optimizer's state, every storage once."""
    checkpoint: str | None
    """Path of the final weights, relative to the run directory."""
    fallbacks: int
    """Matrix factorisations that failed and were replaced (retried, or the last good root kept)."""
    note: str | None
    """What to know about it: tasks that it did not learn, fallbacks, a resume."""
    source_hash: str | None = None
    """Of the users' files that it was trained with; null for what comes with optbench or its packages' registry."""
    gradients: str | None = None
    """How they were taken: `written out` (plain MLPs), `member by member`, or `torch.func` for all members at once. On
    a CPU it depends on what was faster, and results do not depend on it."""
    evaluation_seconds: float | None = None
    """This trial's share of its cohort's time in scores and measures."""
    tasks_above_target: int | None = None
    """How many tasks ended with a training loss above `early_stopping.target`; null where there is no target, or the
    trial diverged or failed."""


@dataclass(frozen=True)
class AccuracyRow:
    """One entry R[after_task, task] of the accuracy matrix, on test data and beside it on validation data."""

    table: ClassVar[str] = "accuracy"

    after_task: int
    """The row of the matrix: 0 before any training."""
    task: int
    """The column of the matrix: the task that is scored."""
    accuracy: float | None
    """On test data."""
    loss: float | None
    """Mean cross-entropy on test data, in nats."""
    examples: int
    """Test examples behind it."""
    validation_accuracy: float | None
    """On validation data."""
    validation_loss: float | None
    """Likewise."""
    majority: float | None = None
    """The share of the most frequent class among the test examples: the accuracy of a guess."""
    bits_per_byte: float | None = None
    """Of text, whose R this is with its sign turned: Σ -log₂ p(token) / Σ bytes of the tokens, on the test data."""
    validation_bits_per_byte: float | None = None
    """Likewise, on validation data."""


@dataclass(frozen=True)
class MetricRow:
    """One value of one measure; null with a note where it is undefined."""

    table: ClassVar[str] = "metrics"

    after_task: int
    """When it was taken."""
    task: int | None
    """The task whose data it was taken on; null: all tasks together, or none."""
    layer: str | None
    """The layer that it is of; null: the whole network, or its features."""
    metric: str
    """Its name, with settings that differ from the defaults."""
    value: float | None
    """null where it is undefined."""
    note: str | None
    """Why it is undefined, or what to know of it."""


@dataclass(frozen=True)
class SpectrumRow:
    """One eigenvalue of the covariance of the representation, index 0 the largest."""

    table: ClassVar[str] = "spectra"

    after_task: int
    """When it was taken."""
    task: int | None
    """The task whose test data it was taken on; null: all tasks together."""
    layer: str
    """Whose features."""
    index: int
    """0 is the largest."""
    eigenvalue: float | None
    """Of the covariance of the centred features."""


@dataclass(frozen=True)
class SimilarityRow:
    """Cosine between the mean features of two classes."""

    table: ClassVar[str] = "similarity"

    after_task: int
    """When it was taken."""
    layer: str
    """Whose features."""
    class_a: int
    """A class."""
    class_b: int
    """Another class."""
    cosine: float | None
    """Of their mean features, not centred."""


@dataclass(frozen=True)
class PruningRow:
    """Accuracy with only the largest `keep` of the weights kept, over all tasks, with no further training."""

    table: ClassVar[str] = "pruning"

    after_task: int
    """When it was taken."""
    scope: str
    """`global`: the largest of all weights; `layer`: the largest of each layer."""
    keep: float
    """The fraction of weights that is kept."""
    accuracy: float | None
    """On test data of all tasks."""


@dataclass(frozen=True)
class CurveRow:
    """One evaluation during training; `train_loss` is the mean over the batches since the one before.

    `eval_loss` and `eval_accuracy` are of the examples that early stopping looks at, in eval mode: validation or test
    data, or with `on: train_loss` the fixed subset of the task's training examples.
    """

    table: ClassVar[str] = "curves"

    task: int
    """In training."""
    step: int
    """Optimizer steps taken in this task so far."""
    epoch: float
    """Passes over the training examples of this task so far."""
    train_loss: float | None
    """Mean cross-entropy, in nats."""
    eval_loss: float | None
    """Likewise, in eval mode."""
    eval_accuracy: float | None
    """On the same examples."""
    eval_bits_per_byte: float | None = None
    """Of text."""
    lr: float | None = None
    """The learning rate: that of the first parameter group, times the factor of `protocol.schedule` in the step before.
    null where no group has an `lr`."""


@dataclass(frozen=True)
class SketchRow:
    """The weights at one evaluation, or before the first step, as a count sketch (`optbench.metrics.sketch`)."""

    table: ClassVar[str] = "sketches"

    task: int
    """In training."""
    step: int
    """As in `curves`; task 1, step 0 is before the first step."""
    sketch: tuple[float, ...]
    """1,024 numbers."""


@dataclass(frozen=True)
class OnlineRow:
    """How one task was learnt: on every batch before its update, and what the network was like before the first."""

    table: ClassVar[str] = "online"

    task: int
    """In training."""
    steps: int
    """Optimizer steps taken in this task."""
    online_accuracy: float | None
    """Mean over these steps of the accuracy on each batch before its update."""
    online_loss: float | None
    """Likewise, of the mean cross-entropy."""
    dead: float | None
    """This and what follows: as `engine.before_task.BeforeTask` has it, on at most 2,000 of the task's inputs."""
    dormant: float | None
    """Share of units with an activity of at most .025 of the mean."""
    effective_rank: float | None
    """Of the features."""
    weight_magnitude: float | None
    """Mean |w|."""
    gradient_norm: float | None
    """Of the training loss on these inputs."""
    examples: int
    """How many inputs."""
    width: int
    """Of the features."""
    note: str | None
    """Why a value is undefined."""


@dataclass(frozen=True)
class EarlierRow:
    """How well an earlier task is still done at one evaluation of a later one, on its validation data."""

    table: ClassVar[str] = "earlier"

    task: int
    """In training."""
    step: int
    """As in `curves`."""
    earlier_task: int
    """The task that is scored."""
    loss: float | None
    """Mean cross-entropy on its validation data, in nats."""
    accuracy: float | None
    """Likewise."""
    bits_per_byte: float | None
    """Of text."""


@dataclass(frozen=True)
class UpdateRow:
    """The geometry of one update of one weight matrix (`optbench.metrics.updates`); null where undefined."""

    table: ClassVar[str] = "updates"

    task: int
    """In training."""
    step: int
    """As in `curves`: the number of this update in the task, from 1."""
    layer: str
    """The weight matrix."""
    stable_rank: float | None
    """Of the update Δ: ‖Δ‖²_F / ‖Δ‖²₂."""
    cosine_gradient: float | None
    """Of Δ with -G, G the gradient."""
    cosine_sign: float | None
    """Of Δ with -sign G."""
    cosine_polar: float | None
    """Of Δ with -UVᵀ, the polar factor of -G."""
    relative_size: float | None
    """‖Δ‖_F / ‖W‖_F, W the weights before it."""
    angle: float | None
    """Between W and W + Δ, in degrees."""


@dataclass(frozen=True)
class ClassRow:
    """How well one class of the test data is labelled; `task` is null for all tasks together."""

    table: ClassVar[str] = "classes"

    after_task: int
    """When it was taken."""
    task: int | None
    """The task whose test data it was taken on; null: all tasks together."""
    label: int
    """The class."""
    examples: int
    """Test examples of this class."""
    accuracy: float | None
    """Share of them that are labelled as such."""


_Measured = AccuracyRow | MetricRow | SpectrumRow | SimilarityRow | PruningRow | ClassRow
Row = TrialRow | _Measured | CurveRow | SketchRow | OnlineRow | EarlierRow | UpdateRow
ROW_TYPES: tuple[type[Row], ...] = typing.get_args(Row)
ALL_TABLES: dict[str, type[Row]] = {row_type.table: row_type for row_type in ROW_TYPES}
ADDED = frozenset(
    {("accuracy", name) for name in ("majority", "bits_per_byte", "validation_bits_per_byte")}
    | {("curves", name) for name in ("eval_bits_per_byte", "lr")}
    | {("trials", name) for name in ("source_hash", "gradients", "evaluation_seconds", "tasks_above_target")}
)
"""Tables and columns of them that runs of earlier versions do not have; they are read as nulls."""
ON_REQUEST = frozenset({row.table for row in (SketchRow, OnlineRow, EarlierRow, UpdateRow, ClassRow)})
"""Tables that are written only where a suite asks for what is in them."""
TABLES = {name: row_type for name, row_type in ALL_TABLES.items() if name not in ON_REQUEST}
"""Those that every run has, be they empty."""

_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[float, ...]: pa.list_(pa.float32()),
}
KEY_FIELDS = [pa.field(name, pa.int64() if name == "seed" else pa.string(), nullable=False) for name in KEY_COLUMNS]


def arrow_schema(row_type: type[Row]) -> pa.Schema:
    """Key columns, then the row's fields; the schema version is in the metadata."""
    return versioned_schema([*KEY_FIELDS, *arrow_fields(row_type)])


def versioned_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """A schema with the version in its metadata."""
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


def arrow_fields(row_type: type[Any]) -> list[pa.Field]:
    """The fields of a dataclass of texts and numbers as Arrow has them, nullable where they may be None."""
    hints = typing.get_type_hints(row_type)
    fields = []
    for field in dataclasses.fields(row_type):
        hint = hints[field.name]
        nullable = isinstance(hint, types.UnionType)
        base = next(a for a in typing.get_args(hint) if a is not types.NoneType) if nullable else hint
        fields.append(pa.field(field.name, _ARROW[base], nullable=nullable))
    return fields


def arrow_table(row_type: type[Row], rows: Sequence[tuple[Trial, Row]]) -> pa.Table:
    """The rows with their trials' key columns, in order."""
    names = [field.name for field in dataclasses.fields(row_type)]
    columns: dict[str, list[Any]] = {key: [] for key in (*KEY_COLUMNS, *names)}
    for trial, row in rows:
        keys = (trial.id, trial.experiment, trial.model, trial.optimizer, trial.variant, trial.seed, trial.stage)
        for name, value in zip(KEY_COLUMNS, keys, strict=True):
            columns[name].append(value)
        for name in names:
            value = getattr(row, name)
            if isinstance(value, str) and not value.isprintable():
                # A user's message may hold escape sequences, which would act on a reader's terminal.
                value = "\n".join(map(escaped, value.split("\n")))
            columns[name].append(value)
    return pa.table(columns, schema=arrow_schema(row_type))
