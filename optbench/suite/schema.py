"""The schema of a suite file: typed classes for the YAML, with every default.

The classes are frozen values without behaviour beyond validation; `optbench.suite.load` builds them from a file.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from optbench.data.settings import DatasetSettings
from optbench.kinds import MODELS, TASKS, Kind, PlainValue, Whole
from optbench.metrics.own import MetricSettings
from optbench.suite.claims import Claim
from optbench.suite.fields import (
    HYPERPARAMETER_PATTERN,
    HyperparameterName,
    MetricName,
    Name,
    OffByFalse,
    Settings,
    Text,
    distinct_metrics,
    listed_once,
    once,
)
from optbench.suite.protocol import Protocol
from optbench.suite.seed_ranges import instead_of_range
from optbench.targets import TEXT

Stage = Literal["tune", "eval"]


def _seed_list(value: Any) -> Any:
    """Expand a number of seeds to a list: `10` means the seeds 0 to 9."""
    if isinstance(value, str) and (form := instead_of_range(value, brackets=True)):
        raise ValueError(f"expected a number of seeds or a list of seeds, got '{value}'; {form}")
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value < 1:
        raise ValueError(f"expected at least 1 seed, got {value}")
    if value > MAX_SEEDS:
        raise ValueError(f"expected at most {MAX_SEEDS} seeds, got {value}")
    return list(range(value))


MAX_SEEDS = 100_000
Seeds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**63)]],
    Field(min_length=1, max_length=MAX_SEEDS),
    once("seed"),
    BeforeValidator(_seed_list),
]


class LogGrid(Settings):
    """`{log: [1e-4, 1e-1], points: 7}`: `points` values evenly spaced on a log scale.

    Values between the bounds are rounded to the fewest significant digits, at least 3, that keep all values distinct.
    """

    # YAML has no tuples, so the bounds are a list of two.
    log: Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], Field(strict=False)]
    points: Annotated[Whole, Field(ge=2, le=1000)]

    def values(self) -> list[float]:
        low, high = (math.log(bound) for bound in self.log)
        step = (high - low) / (self.points - 1)
        inner = [math.exp(low + i * step) for i in range(1, self.points - 1)]
        # Rounded because variants are named by their values: to the fewest significant digits, at least three, that
        # distinguish them.
        for digits in range(3, 17):
            rounded = [self.log[0], *(float(f"{value:.{digits}g}") for value in inner), self.log[1]]
            if len(set(rounded)) == self.points:
                break
        return rounded


class OptimizerSettings(BaseModel):
    """An optimizer: its `target`, and its hyper-parameters as further keys.

    A hyper-parameter given as a list, or as `{log: [low, high], points: n}`, is swept; every combination is a variant.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, strict=True)

    __pydantic_extra__: dict[str, PlainValue] = Field(init=False)

    target: Annotated[str, Field(min_length=1, max_length=400)]

    @model_validator(mode="after")
    def _names(self) -> OptimizerSettings:
        # Older versions of pydantic validate the values of extra keys, but not the keys themselves.
        for key in self.hyperparameters:
            if len(key) > 80 or re.fullmatch(HYPERPARAMETER_PATTERN, key) is None:
                what = "expected letters, digits and _ only, with no digit first"
                raise ValueError(f"{key!r} is not a hyper-parameter: {what}")
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class TaskSettings(Kind):
    """A task sequence, built in or user-defined."""

    registry = TASKS


class ModelSettings(Kind):
    """A model, built in or user-defined."""

    registry = MODELS


Sampler = Literal["grid", "random", "tpe"]
"""`grid`: every combination; `random`: independent draws; `tpe`: a tree-structured Parzen estimator (Bergstra et al.
2011), which favours regions where earlier settings did well."""


class Tuning(Settings):
    """The budget spent on choosing an optimizer's settings, recorded so that readers can check that budgets were equal.

    Written by `optbench tune`. Hyper-parameters are named by their path: `lr`, `base.lr`.
    """

    settings: Annotated[Whole, Field(ge=1)]
    """Number of settings tried."""
    seeds: Annotated[Whole, Field(ge=1)]
    """Number of seeds per setting; none of them is among the suite's own."""
    sampler: Sampler = "grid"
    """How the settings were drawn from the search space."""
    space: dict[Text, PlainValue] | None = None
    """The search space: for each hyper-parameter a list of values, `{log: [low, high], points: n}`, or
    `{of: optimizer.key, times: x}`; null: not stated."""
    chosen: dict[Text, PlainValue] | None = None
    """The chosen values; null: not stated."""
    edge: list[Text] = Field(default=[])
    """Hyper-parameters whose chosen value is at an end of the search space."""


Space = dict[HyperparameterName, PlainValue]
"""The search space of an optimizer: for each hyper-parameter a list of values, `{log: [low, high], points: n}`, or
`{of: optimizer.key, times: x}`, which is x times the value chosen for another optimizer. The space of an inner
optimizer is nested: `{base: {lr: ...}}`."""


class ExperimentTune(Settings):
    """Tuning settings of one experiment, where they differ from the suite's."""

    models: Annotated[list[Name], Field(min_length=1), once("model")] | None = None
    """The models over which the metric is averaged; null: every model of the experiment."""
    metric: MetricSettings | None = None
    """The metric by which settings are chosen; null: the suite's `tune.metric`."""
    optimizers: dict[Name, Space] = Field(default={})
    """Search spaces that replace those of the suite's `tune.optimizers`."""


class Tune(Settings):
    """How `optbench tune` chooses hyper-parameters, without test data; ignored by `optbench run`."""

    seeds: Seeds | None = None
    """Tuning seeds, none of which is among the suite's own; null: 1000 and 1001."""
    metric: MetricSettings = MetricSettings(kind="average_accuracy")
    """The metric to optimize: one derived from the accuracy matrix, measured on validation data; `steps_to_accuracy`,
    measured by the evaluations during training; or one of the kind `online`, such as `online_accuracy`, measured on
    each training batch before its update."""
    learning_margin: Annotated[float, Field(ge=0)] | None = 0.03
    """Only settings whose learning accuracy is within this margin of the optimizer's best are eligible, so that a
    learning rate too small to learn with cannot win by not forgetting. null: all settings are eligible. With a metric
    of the kind `online`, which measures learning itself, all settings are always eligible."""
    optimizers: dict[Name, Space] | None = None
    """The search space of each optimizer, with the same number of settings for each. null: for every optimizer, seven
    learning rates over two decades around its own learning rate."""
    experiments: dict[Name, ExperimentTune] = Field(default={})
    """Experiments whose tuning settings differ, by name."""

    def metric_on(self, experiment: str) -> MetricSettings:
        """Return the metric by which settings are chosen on an experiment."""
        here = self.experiments.get(experiment)
        return (here and here.metric) or self.metric


class Pairs(Settings):
    """Comparisons between solutions of the same seed, each reported next to its null.

    The null is the effect of another data order alone: the same optimizer is trained again from the same initial
    weights on the same tasks with differently shuffled batches. Needs `checkpoints: true`.
    """

    against: Annotated[list[Name], Field(min_length=1), once("optimizer")] | None = None
    """The optimizers whose solutions are compared with every solution; null: every optimizer of the experiment."""
    controls: Annotated[list[Name], once("optimizer")] | None = None
    """The optimizers that are also trained with another data order; null: the same as in `against`; []: none."""
    metrics: Annotated[list[Name], Field(min_length=1), once("metric")] | None = None
    """Metrics of the kind `pair` (`optbench list metrics`) to measure; null: all of them."""


def _two(value: list[str]) -> list[str]:
    if len(value) != 2:
        raise ValueError(f"expected two optimizers, as in [sgd, adam], got {len(value)}")
    return value


def _distinct_pairs(pairs: list[list[str]]) -> list[list[str]]:
    for one, other in pairs:
        if one == other:
            raise ValueError(f"expected two optimizers, got {one!r} twice")
    listed_once("pair", [" and ".join(sorted(pair)) for pair in pairs])
    return pairs


Twins = Annotated[
    list[Annotated[list[Name], AfterValidator(_two)]], Field(min_length=1), AfterValidator(_distinct_pairs)
]


class Against(Settings):
    """A figure that plots one metric against another along each optimizer's sweep."""

    x: MetricName
    """The metric of the horizontal axis."""
    y: MetricName
    """The metric of the vertical axis."""

    @model_validator(mode="after")
    def _two_metrics(self) -> Against:
        if self.x == self.y:
            raise ValueError(f"'y': expected a different metric from 'x', got '{self.y}' for both")
        return self


def _distinct_figures(figures: list[Against]) -> list[Against]:
    listed_once("figure", [f"{figure.y} against {figure.x}" for figure in figures])
    return figures


class ExperimentSettings(Settings):
    """A task sequence, the models and optimizers to train on it, and the metrics to measure."""

    dataset: DatasetSettings = DatasetSettings(kind="mnist")
    """The dataset from which tasks are made."""
    transfer: DatasetSettings | None = None
    """Another dataset with inputs of the same shape, whose classes `transfer_accuracy` predicts from the features."""
    tasks: TaskSettings
    """The sequence of tasks that one network learns."""
    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)]
    """The networks to train, by name."""
    protocol: Protocol = Protocol()
    """How each task is trained and scored."""
    optimizers: Annotated[dict[Name, dict[HyperparameterName, PlainValue]], Field(min_length=1)] | None = None
    """The suite's optimizers to use, each with overrides of its settings; null: all, unchanged."""
    metrics: Annotated[list[MetricSettings], AfterValidator(distinct_metrics)] | None = None
    """The metrics to measure, by name (`optbench list metrics`) or target; `default` or null: the default set."""
    primary: Annotated[list[MetricName], Field(min_length=1), once("metric")] | None = None
    """The metrics with a verdict, with Holm's correction over all of them; null: the default family."""
    tuning: dict[Name, Tuning] | None = None
    """The tuning budget of each optimizer; null: not stated."""
    checkpoints: bool = True
    """If true, the final weights of each trial are stored."""
    pairs: Annotated[Pairs | None, OffByFalse] = None
    """The comparisons between solutions to make; null or false: none."""
    twins: Annotated[Twins | None, OffByFalse] = None
    """Pairs of optimizers whose distance is recorded during training; null or false: none."""
    figures: Annotated[list[Against], Field(min_length=1), AfterValidator(_distinct_figures)] | None = None
    """Additional figures in the report; null: none."""

    @field_validator("optimizers", mode="before")
    @classmethod
    def _names_or_mapping(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise ValueError("expected a list of optimizer names, or a mapping from names to hyper-parameters")
            listed_once("optimizer", value)
            return {item: {} for item in value}
        if isinstance(value, dict):
            return {key: {} if item is None else item for key, item in value.items()}
        return value

    def user_targets(self, model: str) -> tuple[str, ...]:
        """Return the user-defined targets, other than optimizers, that are used to train and measure a model."""
        other = () if self.transfer is None else self.transfer.chain
        kinds = (*self.dataset.chain, *other, self.tasks, self.models[model])
        return tuple(kind.kind for kind in (*kinds, *self.own_metrics.values()) if kind.is_users)

    @property
    def text_targets(self) -> tuple[str, ...]:
        """The targets of the user's texts from which the dataset is made."""
        return tuple(f"{TEXT}{path}" for path in self.dataset.texts.values())

    @property
    def own_metrics(self) -> dict[str, MetricSettings]:
        """The listed metrics that are not in the catalog, by name: users' metrics, and metrics with settings."""
        return {entry.name: entry for entry in self.metrics or () if not entry.in_catalog}


class Suite(Settings):
    """The content of a suite file."""

    name: Name
    """The suite's name in run ids and tables."""
    description: str = ""
    """The question that the suite asks, shown by `optbench list suites` and in reports."""
    stage: Stage = "eval"
    """`tune`: the trials choose settings; `eval`: the trials are the result."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """The suite seed: every random stream is derived from this seed, the trial's seed and a purpose."""
    seeds: Seeds
    """Number of seeds (10: the seeds 0 to 9), or a list of seeds."""
    optimizers: Annotated[dict[Name, OptimizerSettings], Field(min_length=1)]
    """The optimizers to compare, by the name shown in tables."""
    experiments: Annotated[dict[Name, ExperimentSettings], Field(min_length=1)]
    """Experiments by name; in each, every optimizer is trained on every model with every seed."""
    claims: dict[Name, Claim] = Field(default={})
    """Claims by name, stated beforehand; `optbench report` judges each of them."""
    tune: Tune | None = None
    """How `optbench tune` chooses settings; null: the default of every key."""

    def taking_part(self, experiment: ExperimentSettings) -> dict[str, dict[str, Any]]:
        """Return the optimizers of an experiment by name, each with its overrides in the experiment."""
        return {name: {} for name in self.optimizers} if experiment.optimizers is None else experiment.optimizers
