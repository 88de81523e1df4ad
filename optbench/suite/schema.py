"""What a suite file may say: the typed form of the YAML, with every default in one place.

The classes are values: frozen, without behaviour beyond validation. `optbench.suite.load` makes them from a file.
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
    """`10` means the seeds 0..9."""
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
    """`{log: [1e-4, 1e-1], points: 7}`: `points` values, evenly spaced in log, rounded to 3 digits or more."""

    # YAML has no tuples: a list of two serves.
    log: Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], Field(strict=False)]
    points: Annotated[Whole, Field(ge=2, le=1000)]

    def values(self) -> list[float]:
        low, high = (math.log(bound) for bound in self.log)
        step = (high - low) / (self.points - 1)
        inner = [math.exp(low + i * step) for i in range(1, self.points - 1)]
        # Rounded, since the values name their variants: to three significant digits, or as many as tell them apart.
        for digits in range(3, 17):
            rounded = [self.log[0], *(float(f"{value:.{digits}g}") for value in inner), self.log[1]]
            if len(set(rounded)) == self.points:
                break
        return rounded


class OptimizerSettings(BaseModel):
    """An optimizer by name (`target`) with its hyper-parameters as further keys.

    A hyper-parameter given as a list, or as `{log: [low, high], points: n}`, is swept: every combination is a variant.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, strict=True)

    __pydantic_extra__: dict[str, PlainValue] = Field(init=False)

    target: Annotated[str, Field(min_length=1, max_length=400)]

    @model_validator(mode="after")
    def _names(self) -> OptimizerSettings:
        # Older pydantic validates the values of extra keys, but not the keys.
        for key in self.hyperparameters:
            if len(key) > 80 or re.fullmatch(HYPERPARAMETER_PATTERN, key) is None:
                raise ValueError(f"{key!r} is no hyper-parameter: expected letters, digits and _, no digit first")
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class TaskSettings(Kind):
    """A task sequence, ours or a user's."""

    registry = TASKS


class ModelSettings(Kind):
    """A model, ours or a user's."""

    registry = MODELS


Sampler = Literal["grid", "random", "tpe"]
"""`grid`: every combination; `random`: independent draws; `tpe`: a tree-structured Parzen estimator (Bergstra et al.
2011), which draws where settings did well before."""


class Tuning(Settings):
    """What choosing an optimizer's settings has cost, so that a reader can see whether it was the same for all.

    `optbench tune` writes it. Hyper-parameters are named by their path: `lr`, `base.lr`.
    """

    settings: Annotated[Whole, Field(ge=1)]
    """How many settings were tried."""
    seeds: Annotated[Whole, Field(ge=1)]
    """On how many seeds each; none of them among the suite's own."""
    sampler: Sampler = "grid"
    """How settings were drawn from what was searched."""
    space: dict[Text, PlainValue] | None = None
    """What was searched: a list of values, or `{log: [low, high], points: n}`; null: not stated."""
    chosen: dict[Text, PlainValue] | None = None
    """The values that were chosen; null: not stated."""
    edge: list[Text] = Field(default=[])
    """The hyper-parameters whose chosen value lies at an end of what was searched."""


Space = dict[HyperparameterName, PlainValue]
"""What to search of an optimizer: for each hyper-parameter a list of values, `{log: [low, high], points: n}`, or
`{of: optimizer.key, times: x}`: x times what is chosen for another optimizer. Of a base: `{base: {lr: ...}}`."""


class ExperimentTune(Settings):
    """What is different when tuning for one experiment."""

    models: Annotated[list[Name], Field(min_length=1), once("model")] | None = None
    """The models that settings are judged on, by their mean; null: every model of the experiment."""
    metric: MetricSettings | None = None
    """Chosen by this instead of the suite's `tune.metric`; null: by that."""
    optimizers: dict[Name, Space] = Field(default={})
    """What to search instead of what the suite's `tune.optimizers` says."""


class Tune(Settings):
    """How `optbench tune` chooses hyper-parameters, without test data. `optbench run` does not look at it."""

    seeds: Seeds | None = None
    """None of them among the suite's own; null: two, from 1000 on."""
    metric: MetricSettings = MetricSettings(kind="average_accuracy")
    """The best of this is chosen: a metric of the accuracy matrix, which is of validation data; or of the kind
    `online`, such as `online_accuracy`, which is of each training batch before its update."""
    learning_margin: Annotated[float, Field(ge=0)] | None = 0.03
    """Among the settings whose learning accuracy is within this of the optimizer's best: one too small to learn must
    not win by not forgetting. null: among all, as always with a metric of the kind `online`: there what is learnt is
    what is measured."""
    optimizers: dict[Name, Space] | None = None
    """What to search; the same number of settings for each. null: of every optimizer seven learning rates over two
    decades around its own."""
    experiments: dict[Name, ExperimentTune] = Field(default={})
    """What is different for single experiments."""

    def metric_on(self, experiment: str) -> MetricSettings:
        """What settings are chosen by on an experiment."""
        here = self.experiments.get(experiment)
        return (here and here.metric) or self.metric


class Pairs(Settings):
    """Comparing solutions of the same seed with each other, each pair beside its null.

    The null is what another data order alone does: the same optimizer from the same initial weights, trained once
    more on the same tasks with the batches shuffled otherwise. Needs `checkpoints: true`.
    """

    against: Annotated[list[Name], Field(min_length=1), once("optimizer")] | None = None
    """Every solution is compared with those of these optimizers; null: with those of every optimizer taking part."""
    controls: Annotated[list[Name], once("optimizer")] | None = None
    """The optimizers that are trained in another data order, too; null: those of `against`; []: none."""
    metrics: Annotated[list[Name], Field(min_length=1), once("metric")] | None = None
    """Names of the measures to take, all of the kind `pair` (`optbench list metrics`); null: every one."""


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
    """A figure of one metric against another, along the setting that each optimizer sweeps."""

    x: MetricName
    """The metric along the horizontal axis."""
    y: MetricName
    """The metric along the vertical axis."""

    @model_validator(mode="after")
    def _two_metrics(self) -> Against:
        if self.x == self.y:
            raise ValueError(f"'y': expected another metric than 'x', got '{self.y}' for both")
        return self


def _distinct_figures(figures: list[Against]) -> list[Against]:
    listed_once("figure", [f"{figure.y} against {figure.x}" for figure in figures])
    return figures


class ExperimentSettings(Settings):
    """A task sequence, the models and optimizers to train on it, and what to measure."""

    dataset: DatasetSettings = DatasetSettings(kind="mnist")
    """The data that tasks are made of."""
    transfer: DatasetSettings | None = None
    """Another dataset with inputs of the same shape, whose classes `transfer_accuracy` reads off the features."""
    tasks: TaskSettings
    """What is learnt, in order, by one network."""
    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)]
    """The networks to train, by name."""
    protocol: Protocol = Protocol()
    """How each task is trained, and what is scored."""
    optimizers: Annotated[dict[Name, dict[HyperparameterName, PlainValue]], Field(min_length=1)] | None = None
    """Which of the suite's optimizers take part, each with overrides of its settings; null: all, as they are."""
    metrics: Annotated[list[MetricSettings], AfterValidator(distinct_metrics)] | None = None
    """The measures to take, by name (`optbench list metrics`) or target; `default`: the default set, as null."""
    primary: Annotated[list[MetricName], Field(min_length=1), once("metric")] | None = None
    """The metrics that get a verdict, under Holm's correction over all of them; null: the default family."""
    tuning: dict[Name, Tuning] | None = None
    """What choosing the settings of each optimizer has cost; null: not stated."""
    checkpoints: bool = True
    """Whether the final weights of each trial are stored."""
    pairs: Annotated[Pairs | None, OffByFalse] = None
    """Which solutions to compare with each other; null or false: none."""
    twins: Annotated[Twins | None, OffByFalse] = None
    """Pairs of optimizers whose distance from each other is followed during training; null or false: none."""
    figures: Annotated[list[Against], Field(min_length=1), AfterValidator(_distinct_figures)] | None = None
    """Figures of the report beyond those that every experiment has; null: none."""

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
        """Targets of the user's own that training a model uses, its optimizer's aside."""
        other = () if self.transfer is None else self.transfer.chain
        kinds = (*self.dataset.chain, *other, self.tasks, self.models[model])
        return tuple(kind.kind for kind in (*kinds, *self.own_metrics.values()) if kind.is_users)

    @property
    def text_targets(self) -> tuple[str, ...]:
        """Targets of the user's own texts that training uses."""
        return tuple(f"{TEXT}{path}" for path in self.dataset.texts.values())

    @property
    def own_metrics(self) -> dict[str, MetricSettings]:
        """Metrics that the catalog does not have, by name: users', and those with settings."""
        return {entry.name: entry for entry in self.metrics or () if not entry.in_catalog}


class Suite(Settings):
    """One suite file."""

    name: Name
    """In run ids and tables."""
    description: str = ""
    """What it asks; shown by `optbench list suites` and in reports."""
    stage: Stage = "eval"
    """`tune`: these trials choose settings; `eval`: these trials are the result."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """The suite's own seed: everything random is derived from it, the trial's seed and a purpose."""
    seeds: Seeds
    """A number (10: the seeds 0 to 9), or a list of seeds."""
    optimizers: Annotated[dict[Name, OptimizerSettings], Field(min_length=1)]
    """Those that are compared, by the name that tables show."""
    experiments: Annotated[dict[Name, ExperimentSettings], Field(min_length=1)]
    """Each by its name; every optimizer is trained on every model of it, with every seed."""
    claims: dict[Name, Claim] = Field(default={})
    """What is expected, stated beforehand; `optbench report` judges each."""
    tune: Tune | None = None
    """How `optbench tune` chooses settings; null: by the defaults of its keys."""

    def taking_part(self, experiment: ExperimentSettings) -> dict[str, dict[str, Any]]:
        """The optimizers that take part in an experiment, each with its overrides."""
        return {name: {} for name in self.optimizers} if experiment.optimizers is None else experiment.optimizers
