"""The tables of a run: for each table, a frozen dataclass for its rows and the Arrow schema made from this class.

Every table starts with the key columns, taken from the trial, followed by the row's fields.
Legend: `after_task` is 0 before training and 1..T after that task; `task` is 1..T; null means "does not apply" or
"undefined".
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
"""The key of the schema version in every file's metadata."""

KEY_COLUMNS = ("trial", "experiment", "model", "optimizer", "variant", "seed", "stage")


@dataclass(frozen=True)
class TrialRow:
    """The outcome and cost of one trial."""

    table: ClassVar[str] = "trials"

    status: str
    """`ok`, `diverged` (a loss or weight was not finite) or `failed` (an exception was raised)."""
    error_type: str | None
    """Class of the exception of a failed trial."""
    error_message: str | None
    """Message of the exception of a failed trial."""
    last_step: int
    """The last completed training step of the trial; for a diverged trial, the step at which it diverged."""
    steps: int
    """Optimizer steps over all tasks."""
    parameters: int
    """Number of trainable parameters of the network."""
    device: str
    """Device on which the trial was trained: `cpu`, `cuda`, ..."""
    hyperparameters: str
    """Hyper-parameters of the optimizer, as JSON."""
    init_hash: str
    """Hash of the initial weights, which are the same for all optimizers with the same seed."""
    train_seconds: float
    """This trial's share of the time that its cohort spent on batches, gradients and updates."""
    optimizer_seconds: float
    """The part of `train_seconds` spent in the optimizer."""
    optimizer_state_bytes: int
    """Memory of the optimizer's state in bytes, counting every storage once."""
    checkpoint: str | None
    """Path of the final weights, relative to the run directory."""
    fallbacks: int
    """Number of matrix roots that the optimizer could not compute and for which it kept the previous root."""
    note: str | None
    """Remarks, for example on tasks that were not learnt, fallbacks or a resumption."""
    source_hash: str | None = None
    """Hash of the user's files that the trial used; null if it used only optbench and registered optimizers."""
    gradients: str | None = None
    """How gradients were computed: `written out` (plain MLPs), `member by member` or, for all members together,
    `torch.func`. On a CPU, the fastest method is chosen; results do not depend on the choice."""
    evaluation_seconds: float | None = None
    """This trial's share of the time that its cohort spent on scoring and measuring."""
    tasks_above_target: int | None = None
    """Number of tasks that ended with a training loss above `early_stopping.target`; null without a target, or if the
    trial diverged or failed."""


@dataclass(frozen=True)
class AccuracyRow:
    """One entry R[after_task, task] of the accuracy matrix, on test and on validation data."""

    table: ClassVar[str] = "accuracy"

    after_task: int
    """Row of the matrix; 0 before training."""
    task: int
    """Column of the matrix: the task that is scored."""
    accuracy: float | None
    """Accuracy on test data."""
    loss: float | None
    """Mean cross-entropy on test data, in nats."""
    examples: int
    """Number of test examples."""
    validation_accuracy: float | None
    """Accuracy on validation data."""
    validation_loss: float | None
    """Mean cross-entropy on validation data, in nats."""
    majority: float | None = None
    """Fraction of test examples in the most frequent class: the accuracy of always predicting that class."""
    bits_per_byte: float | None = None
    """For text, bits per byte on test data: Σ -log₂ p(token) / Σ bytes of the tokens. R contains the negative value."""
    validation_bits_per_byte: float | None = None
    """For text, bits per byte on validation data."""


@dataclass(frozen=True)
class MetricRow:
    """One value of one metric; an undefined value is null, with a note."""

    table: ClassVar[str] = "metrics"

    after_task: int
    """Number of tasks on which the network had been trained before the measurement."""
    task: int | None
    """The task whose data were used; null for all tasks together, or if no data were used."""
    layer: str | None
    """The layer; null for the entire network or its features."""
    metric: str
    """Name of the metric, with settings that differ from the defaults."""
    value: float | None
    """Value of the metric; null if undefined."""
    note: str | None
    """Why the value is undefined, or a remark about the value."""


@dataclass(frozen=True)
class SpectrumRow:
    """One eigenvalue of the feature covariance; index 0 is the largest."""

    table: ClassVar[str] = "spectra"

    after_task: int
    """Number of tasks on which the network had been trained before the measurement."""
    task: int | None
    """The task whose test data were used; null for all tasks together."""
    layer: str
    """The layer whose features were used."""
    index: int
    """Position among the eigenvalues in descending order, from 0."""
    eigenvalue: float | None
    """Eigenvalue of the covariance of the centred features."""


@dataclass(frozen=True)
class SimilarityRow:
    """Cosine between the mean features of two classes."""

    table: ClassVar[str] = "similarity"

    after_task: int
    """Number of tasks on which the network had been trained before the measurement."""
    layer: str
    """The layer whose features were used."""
    class_a: int
    """The first class."""
    class_b: int
    """The second class."""
    cosine: float | None
    """Cosine between the mean features of the two classes. The features are not centred."""


@dataclass(frozen=True)
class PruningRow:
    """Accuracy on all tasks after zeroing all but the weights of largest magnitude, without further training."""

    table: ClassVar[str] = "pruning"

    after_task: int
    """Number of tasks on which the network had been trained before the measurement."""
    scope: str
    """`global` if the largest of all weights are kept; `layer` if the largest weights of each layer are kept."""
    keep: float
    """The fraction of weights that is kept."""
    accuracy: float | None
    """Accuracy on the test data of all tasks."""


@dataclass(frozen=True)
class CurveRow:
    """One evaluation during training.

    `eval_loss` and `eval_accuracy` are measured in eval mode on the examples used for early stopping: validation or
    test data or, with `on: train_loss`, the fixed subset of the task's training examples.
    """

    table: ClassVar[str] = "curves"

    task: int
    """The task being trained."""
    step: int
    """Optimizer steps taken in this task so far."""
    epoch: float
    """Passes over the training examples of this task so far."""
    train_loss: float | None
    """Mean cross-entropy over the batches since the previous evaluation, in nats."""
    eval_loss: float | None
    """Mean cross-entropy in eval mode, in nats."""
    eval_accuracy: float | None
    """Accuracy in eval mode, on the same examples as `eval_loss`."""
    eval_bits_per_byte: float | None = None
    """For text, bits per byte in eval mode, on the same examples as `eval_loss`."""
    lr: float | None = None
    """Learning rate of the first parameter group times the factor of `protocol.schedule` in the preceding step; null if
    no group has an `lr`."""


@dataclass(frozen=True)
class SketchRow:
    """The weights at one evaluation, or before the first step, as a count sketch (`optbench.metrics.sketch`)."""

    table: ClassVar[str] = "sketches"

    task: int
    """The task being trained."""
    step: int
    """Optimizer steps taken in this task so far; in task 1, step 0 is before training."""
    sketch: tuple[float, ...]
    """The sketch: 1,024 numbers."""


@dataclass(frozen=True)
class OnlineRow:
    """Mean scores over one task's batches, each scored before its update, and measurements before the first update."""

    table: ClassVar[str] = "online"

    task: int
    """The task being trained."""
    steps: int
    """Optimizer steps taken in this task."""
    online_accuracy: float | None
    """Mean over this task's steps of the accuracy on the step's batch before the update."""
    online_loss: float | None
    """Mean over this task's steps of the cross-entropy on the step's batch before the update, in nats."""
    dead: float | None
    """Fraction of features that are zero on every input. This field and the following ones are taken from
    `engine.before_task.BeforeTask`, which is measured on at most 2,000 of the task's inputs."""
    dormant: float | None
    """Fraction of units whose activity is at most .025 times the mean activity."""
    effective_rank: float | None
    """Effective rank of the features."""
    weight_magnitude: float | None
    """Mean |w| over all weights, excluding biases and gains."""
    gradient_norm: float | None
    """Norm of the gradient of the training loss on the inputs used for the measurements."""
    examples: int
    """Number of inputs used for the measurements."""
    width: int
    """Number of features."""
    note: str | None
    """Why a value is undefined."""


@dataclass(frozen=True)
class EarlierRow:
    """The score on an earlier task's validation data at one evaluation during a later task."""

    table: ClassVar[str] = "earlier"

    task: int
    """The task being trained."""
    step: int
    """Optimizer steps taken in this task so far."""
    earlier_task: int
    """The task that is scored."""
    loss: float | None
    """Mean cross-entropy on the validation data of `earlier_task`, in nats."""
    accuracy: float | None
    """Accuracy on the validation data of `earlier_task`."""
    bits_per_byte: float | None
    """For text, bits per byte on the validation data of `earlier_task`."""


@dataclass(frozen=True)
class UpdateRow:
    """The geometry of one update of one weight matrix (`optbench.metrics.updates`); undefined values are null."""

    table: ClassVar[str] = "updates"

    task: int
    """The task being trained."""
    step: int
    """Index of this update in the task, from 1."""
    layer: str
    """Name of the weight matrix."""
    stable_rank: float | None
    """Stable rank of the update Δ: ‖Δ‖²_F / ‖Δ‖²₂."""
    cosine_gradient: float | None
    """Cosine between Δ and -G, where G is the gradient."""
    cosine_sign: float | None
    """Cosine between Δ and -sign G."""
    cosine_polar: float | None
    """Cosine between Δ and -UVᵀ, the polar factor of -G."""
    relative_size: float | None
    """‖Δ‖_F / ‖W‖_F, where W is the weight matrix before the update."""
    angle: float | None
    """Angle between W and W + Δ, in degrees."""


@dataclass(frozen=True)
class ClassRow:
    """Accuracy on one class of the test data; `task` is null for all tasks together."""

    table: ClassVar[str] = "classes"

    after_task: int
    """Number of tasks on which the network had been trained before the measurement."""
    task: int | None
    """The task whose test data were used; null for all tasks together."""
    label: int
    """The class."""
    examples: int
    """Number of test examples of this class."""
    accuracy: float | None
    """Fraction of the class's test examples that are classified correctly."""


_Measured = AccuracyRow | MetricRow | SpectrumRow | SimilarityRow | PruningRow | ClassRow
Row = TrialRow | _Measured | CurveRow | SketchRow | OnlineRow | EarlierRow | UpdateRow
ROW_TYPES: tuple[type[Row], ...] = typing.get_args(Row)
ALL_TABLES: dict[str, type[Row]] = {row_type.table: row_type for row_type in ROW_TYPES}
ADDED = frozenset(
    {("accuracy", name) for name in ("majority", "bits_per_byte", "validation_bits_per_byte")}
    | {("curves", name) for name in ("eval_bits_per_byte", "lr")}
    | {("trials", name) for name in ("source_hash", "gradients", "evaluation_seconds", "tasks_above_target")}
)
"""Columns that runs made with earlier versions lack, as (table, column); they are read as nulls."""
ON_REQUEST = frozenset({row.table for row in (SketchRow, OnlineRow, EarlierRow, UpdateRow, ClassRow)})
"""Tables written only if a suite requests their content."""
TABLES = {name: row_type for name, row_type in ALL_TABLES.items() if name not in ON_REQUEST}
"""Tables that every run has, possibly empty."""

_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[float, ...]: pa.list_(pa.float32()),
}
KEY_FIELDS = [pa.field(name, pa.int64() if name == "seed" else pa.string(), nullable=False) for name in KEY_COLUMNS]

_SCHEMAS: dict[type[Any], pa.Schema] = {}
"""Schemas by row class, created once, because resolving type hints takes longer than filling a small table."""


def arrow_schema(row_type: type[Row]) -> pa.Schema:
    """Return a table's schema: the key columns, then the row's fields, with the schema version in the metadata."""
    if row_type not in _SCHEMAS:
        _SCHEMAS[row_type] = versioned_schema([*KEY_FIELDS, *arrow_fields(row_type)])
    return _SCHEMAS[row_type]


def versioned_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """Return a schema with the schema version in its metadata."""
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


def arrow_fields(row_type: type[Any]) -> list[pa.Field]:
    """Return the Arrow fields for the fields of a dataclass, nullable where None is allowed."""
    hints = typing.get_type_hints(row_type)
    fields = []
    for field in dataclasses.fields(row_type):
        hint = hints[field.name]
        nullable = isinstance(hint, types.UnionType)
        base = next(a for a in typing.get_args(hint) if a is not types.NoneType) if nullable else hint
        fields.append(pa.field(field.name, _ARROW[base], nullable=nullable))
    return fields


def arrow_table(row_type: type[Row], rows: Sequence[tuple[Trial, Row]]) -> pa.Table:
    """Return the rows as a table, in the given order, with the key columns of their trials."""
    names = [field.name for field in dataclasses.fields(row_type)]
    columns: dict[str, list[Any]] = {key: [] for key in (*KEY_COLUMNS, *names)}
    for trial, row in rows:
        keys = (trial.id, trial.experiment, trial.model, trial.optimizer, trial.variant, trial.seed, trial.stage)
        for name, value in zip(KEY_COLUMNS, keys, strict=True):
            columns[name].append(value)
        for name in names:
            value = getattr(row, name)
            if isinstance(value, str) and not value.isprintable():
                # A user's message may contain escape sequences, which a reader's terminal would interpret.
                value = "\n".join(map(escaped, value.split("\n")))
            columns[name].append(value)
    return pa.table(columns, schema=arrow_schema(row_type))
