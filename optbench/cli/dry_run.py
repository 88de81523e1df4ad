"""`optbench run --dry-run`: show the plan.

Torch is imported only to check deep models, metrics at chosen layers, and users' optimizers, models and metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from optbench.cli.output import results
from optbench.counting import count, grouped, number_ranges
from optbench.data.catalog import FACTS
from optbench.data.settings import DatasetSettings
from optbench.errors import DataError, escaped
from optbench.execution.backends import Place
from optbench.execution.preflight import (
    check_metrics,
    check_optimizers,
    check_penalties,
    check_places,
    check_tasks,
    find_code,
    placed,
    reported,
)
from optbench.execution.schedule import Plan
from optbench.execution.session import Options
from optbench.kinds import value_name
from optbench.metrics.measuring import Accuracy
from optbench.metrics.metric import Metric
from optbench.metrics.own import resolve
from optbench.plan import Cohort
from optbench.report.document import Cell, Table, columns
from optbench.report.formats.terminal import print_table
from optbench.report.recipe import recipe
from optbench.stats.power import shortage_text, suite_shortages
from optbench.suite.measured import unlisted, with_readings
from optbench.suite.readings import Readings
from optbench.suite.schema import ExperimentSettings, ModelSettings
from optbench.suite.scoring import scoring
from optbench.suite.variants import leaves
from optbench.targets import using
from optbench.tasks.examples import check_augment, check_dataset, check_sizes, check_task_size

MANY_VARIANTS = 4

LOCK_STEP = {
    "cpu": "trained with torch.func for all members if a test shows that this is faster and gives the same bits",
    "accelerator": "trained in lock-step if a test shows that torch.func gives the results of separate training",
}


def show_plan(plan: Plan, options: Options, notes: Sequence[str] = ()) -> None:
    """Print a plan's experiments, cohorts and trials, and which trials are done.

    notes: remarks on the suite and on what was selected from it.

    Raises:
        OptbenchError: a user's optimizer rejects its settings, a user's dataset or metric raises an exception, a model
            does not fit its data or an optimizer, or a protocol requests more examples than a dataset has.
    """
    place = Place.parse(options.on, options.set_on)
    place.check_device(options.device)
    _check_sizes(plan)
    check_penalties(plan.suite, plan.trials)
    tried, resume, claims = _tried(plan, options), options.resume, plan.suite.claims
    done = len(plan.done & {trial.id for trial in plan.trials})
    with results() as console:
        planned = f"{plan.count} in {count(len(plan.cohorts), 'cohort')}"
        left = (
            f"; {done} of them already done in {escaped(str(resume))}, {len(plan.trials) - done} to train"
            if resume
            else ""
        )
        console.print(Text(f"{plan.suite.name}: {planned}{left}"), soft_wrap=True)
        if not place.is_local:
            console.print(Text(f"on {place.describe(options.device)}"), soft_wrap=True)
        if repeated := sum(len(cohort.trials) - len(cohort.trainings) for cohort in plan.cohorts):
            said = f"{repeated} of them differ from other trials only in name and are not trained again"
            console.print(Text(said), soft_wrap=True)
        if plan.comparisons:
            console.print(Text(_pairs(plan)), soft_wrap=True)
        shortages = suite_shortages(plan.suite, plan.trials)
        for remark in (*notes, *([shortage_text(shortages)] if shortages else [])):
            console.print(Text(f"warning: {remark}", "yellow"), soft_wrap=True)
        console.print("\nTasks")
        for name, experiment in plan.suite.experiments.items():
            tasks = count(plan.outlines[name].count, "task") if plan.outlines[name].count else "tasks"
            line = f"  {name}: {tasks} of {_data_summary(experiment)}, {_task_summary(experiment)}"
            console.print(Text(line), soft_wrap=True)
        for line in _protocols(plan):
            console.print(Text(f"    {line}"), soft_wrap=True)
        if read := [f"  {name}: {_readings(claim.readings)}" for name, claim in claims.items() if claim.readings]:
            console.print("\nReadings of claims")
            for line in read:
                console.print(Text(line), soft_wrap=True)
        for title, lines in (("Models", tried.models), ("Metrics", tried.metrics)):
            if lines:
                console.print(f"\n{title}")
            for line in lines:
                console.print(Text(f"  {line}"), soft_wrap=True)
        console.print()
        print_table(_cohorts(plan, resumed=resume is not None), console)
        console.print("\nTrials")
        for line in _trials(plan):
            console.print(Text(f"  {line}"), soft_wrap=True)


def _check_sizes(plan: Plan) -> None:
    """Check protocols against the sizes of shipped datasets, which are known without loading them.

    Raises:
        UsageError: a protocol requests more examples than exist, or leaves none for training; or each task draws too
            many or too few training examples.
    """
    for name, experiment in plan.suite.experiments.items():
        known = experiment.dataset.known
        if known is not None and known.train_size is not None and known.test_size is not None:
            with placed(f"experiments.{name}"):
                check_sizes(experiment.protocol, known.train_size, known.test_size, experiment.dataset.kind)
                drawn = None if experiment.tasks.is_users else experiment.tasks.model_dump().get("examples_per_task")
                if drawn is not None:
                    check_task_size(experiment.protocol, drawn, known.train_size)


def _data_summary(experiment: ExperimentSettings) -> str:
    """Describe a dataset, e.g. `mnist at 14 × 14`, `text-domains (tokens bytes)`, `imbalanced (ratio 100) of mnist`."""
    return " of ".join(map(_dataset_summary, experiment.dataset.chain))


def _dataset_summary(dataset: DatasetSettings) -> str:
    settings = {} if dataset.is_users else dataset.settings
    if dataset.kind not in FACTS:
        return _with_details(dataset.kind, {key: value for key, value in settings.items() if key != "of"})
    side = settings.get("resize")
    return dataset.kind + (f" at {side} × {side}" if side else "")


def _task_summary(experiment: ExperimentSettings) -> str:
    """Describe a task sequence, e.g. `permuted (permutations per-seed, first permuted)`."""
    settings = {key: value for key, value in experiment.tasks.settings.items() if key != "count" and value is not None}
    return _with_details(experiment.tasks.kind, settings)


def _trials(plan: Plan) -> list[str]:
    """List trials, combining those that differ only in seed, e.g. `to do permuted/net/sgd/default/seed=0-9`."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for trial in plan.trials:
        before, seed, after = trial.id.rpartition(f"seed={trial.seed}")
        found.setdefault(("done " if trial.id in plan.done else "to do", before + seed[:5], after), []).append(
            trial.seed
        )
    return [f"{state} {before}{number_ranges(sorted(seeds))}{after}" for (state, before, after), seeds in found.items()]


def _with_details(kind: str, settings: Mapping[str, object]) -> str:
    details = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in settings.items())
    return f"{kind} ({details})" if details else kind


def _protocols(plan: Plan) -> list[str]:
    """Return remarks on protocols (recipe, schedule, reduced scoring), each with the experiments that it applies to."""
    experiments = plan.suite.experiments
    said = grouped(
        (sentence, name)
        for say in (_recipe, _unscheduled, _scored)
        for name in experiments
        if (sentence := say(plan, name))
    )
    return [
        sentence if len(names) == len(experiments) else f"{', '.join(names)}: {sentence}"
        for sentence, names in said.items()
    ]


def _recipe(plan: Plan, experiment: str) -> str:
    return recipe(plan.suite.experiments[experiment].protocol)


def _unscheduled(plan: Plan, experiment: str) -> str:
    schedule = plan.suite.experiments[experiment].protocol.schedule
    if schedule is None or schedule.is_flat:
        return ""
    trials = (trial for trial in plan.trials if trial.experiment == experiment and trial.without_schedule is not None)
    optimizers = ", ".join(dict.fromkeys(trial.optimizer for trial in trials))
    return (
        f"Optimizers that do not support the schedule and are trained without it: {optimizers}." if optimizers else ""
    )


def _scored(plan: Plan, experiment: str) -> str:
    return scoring(plan.suite.experiments[experiment].protocol.score, plan.outlines[experiment].count) or ""


def _readings(readings: Readings) -> str:
    """Describe readings, e.g. `4 readings: 1 metric × 2 layers × 2 data; the verdict is on effective_rank, pooled`."""
    sizes = [count(len(readings.metrics), "metric")]
    sizes += [count(len(readings.layers), "layer")] if len(readings.layers) > 1 else []
    sizes += [f"{len(readings.data)} data"] if len(readings.data) > 1 else []
    verdict = f"the verdict is on {readings.primary_cell.name}, {readings.primary_cell.data}"
    return f"{count(len(readings.cells), 'reading')}: {' × '.join(sizes)}; {verdict}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(value)
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Tried:
    """The parts of a plan that were tried, one line each.

    models: the size and training of each user-defined or deep built-in model.
    metrics: the users' metrics of each experiment.
    """

    models: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)


def _tried(plan: Plan, options: Options) -> _Tried:
    """Try users' and deep models on a few examples and users' metrics on random numbers, without downloading data.

    Users' optimizers are imported and constructed with their settings.
    """
    if not any(trial.user_code for trial in plan.trials):
        return _with_data(plan, options)
    with using(find_code(plan, options.resume, options.suite_folder, force=True).sources):
        check_optimizers(trial for trial in plan.trials if trial.user_optimizers)
        return _with_data(plan, options)


def _with_data(plan: Plan, options: Options) -> _Tried:
    tried = _Tried()
    for name, experiment in with_readings(plan.suite).experiments.items():
        shown = [model for model, settings in experiment.models.items() if settings.is_users or _deep(settings)]
        metrics = resolve(experiment.metrics)
        somewhere = any(metric.placed and metric.settings for metric in metrics)
        own = [metric for metric in metrics if metric.is_users]
        if not (shown or somewhere or own):
            continue
        from optbench.data import load
        from optbench.engine.blueprint import Blueprint
        from optbench.engine.device import resolve as resolve_device

        # This machine may have none of a cluster's devices.
        is_local = Place.parse(options.on, options.set_on).is_local
        device = resolve_device(options.device).type if is_local else options.device
        lock_step = LOCK_STEP["cpu" if device in ("cpu", "auto") else "accelerator"]

        try:
            with reported(f"experiments.{name}.dataset", experiment.dataset):
                dataset = load(experiment.dataset, options.data_dir, download=False)
        except DataError:
            missing = "not tried, since the data are missing"
            tried.models.extend(f"{name}, {model}: {missing}" for model in shown)
            tried.metrics.extend(_metrics_line(name, own, missing))
            continue
        with placed(f"experiments.{name}"):
            check_dataset(experiment.protocol, dataset)
            check_augment(experiment.protocol.augment, dataset)
        # The plan's outline is empty if the number of classes is known only from the data.
        outline = plan.outlines[name]
        if not experiment.tasks.is_users:
            outline = check_tasks(name, experiment, dataset, plan.suite)
        for model in experiment.models if somewhere else shown:
            blueprint = Blueprint.of(experiment, model, dataset, f"experiments.{name}.models.{model}")
            check_places(name, experiment, model, blueprint, unlisted(plan.suite, name))
            if model not in shown:
                continue
            how = f"trained member by member: {blueprint.alone}" if blueprint.alone else lock_step
            tried.models.append(f"{name}, {model}: {blueprint.layout.parameters:,} parameters; {how}")
        if own:
            check_metrics(name, experiment, dataset, outline.count)
            untried = [] if outline.count else [metric for metric in own if metric.kind in Accuracy.kinds]
            called = [metric for metric in own if metric not in untried]
            tried.metrics.extend(_metrics_line(name, called, "tried on random numbers and untrained networks"))
            tried.metrics.extend(_metrics_line(name, untried, "not tried, since the number of tasks is unknown"))
    return tried


def _metrics_line(experiment: str, metrics: Sequence[Metric], said: str) -> list[str]:
    """Return a line about an experiment's `metrics`, or no line if there are none."""
    return [f"{experiment}: {', '.join(metric.name for metric in metrics)}; {said}"] if metrics else []


def _deep(settings: ModelSettings) -> bool:
    """Return the attribute `deep` of a built-in model's network class; False if the class has none."""
    return getattr(settings.registry.load(settings.kind), "deep", False)


def _pairs(plan: Plan) -> str:
    kinds = [pair.kind for comparison in plan.comparisons for pair in comparison.pairs]
    pairs, nulls = kinds.count("pair"), kinds.count("null")
    solutions = count(pairs, "pair of solutions", "pairs of solutions")
    with_controls = count(nulls, "solution with its control", "solutions with their controls")
    return f"compared afterwards: {solutions}, and {with_controls}"


def _cohorts(plan: Plan, *, resumed: bool) -> Table:
    texts, numbers = ("experiment", "model", "optimizer", "lane"), ("members", "done") if resumed else ("members",)
    titles = (*columns(*texts, texts=len(texts)), *columns(*numbers), *columns("seeds", "variants", texts=2))
    rows = []
    for cohort in plan.cohorts:
        counts = [len(cohort.trials), *([sum(trial.id in plan.done for trial in cohort.trials)] if resumed else [])]
        cells = (
            cohort.experiment,
            cohort.model,
            ", ".join(cohort.optimizers),
            cohort.trials[0].spec.lane,
            *map(str, counts),
            number_ranges(sorted({trial.seed for trial in cohort.trials})),
            _variants(cohort),
        )
        rows.append(tuple(map(Cell, cells)))
    return Table("Cohorts", titles, tuple(rows), keys=3)


def _variants(cohort: Cohort) -> str:
    """List the variants of a cohort by name; if there are many, summarise them, e.g. as `lr 0.01 to 1 (7)`."""
    arms = dict.fromkeys((trial.optimizer, trial.variant) for trial in cohort.trials)
    several = len(cohort.optimizers) > 1
    if several and all(variant == "default" for _, variant in arms):
        return "default"
    if len(arms) > MANY_VARIANTS:
        return "; ".join(_summary(cohort, optimizer, named=several) for optimizer in cohort.optimizers)
    return "; ".join(_arm(*arm) if several else arm[1] for arm in arms)


def _arm(optimizer: str, variant: str) -> str:
    return optimizer if variant == "default" else f"{optimizer} {variant}"


def _summary(cohort: Cohort, optimizer: str, *, named: bool) -> str:
    """Summarise an optimizer's variants: the range and the number of values of each hyper-parameter that varies.

    named: whether to begin with the optimizer's name.
    """
    settings = {trial.variant: leaves(trial.hyperparameters) for trial in cohort.trials if trial.optimizer == optimizer}
    tried: dict[str, dict[str, object]] = {}
    for values in settings.values():
        for path, value in values.items():
            tried.setdefault(".".join(path), {})[value_name(value)] = value
    said = ", ".join(f"{path} {_values(values)}" for path, values in tried.items() if len(values) > 1)
    size = f"{len(settings)}: " if sum(len(values) > 1 for values in tried.values()) > 1 else ""
    return " ".join(filter(None, (optimizer if named else "", f"{size}{said}")))


def _values(values: Mapping[str, object]) -> str:
    """Describe one hyper-parameter's values, e.g. as `0.01 to 1 (7)`, `false or true` or `5 values`.

    values: the values, by their formatted text.
    """
    numbers = [value for value in values.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        return f"{value_name(min(numbers))} to {value_name(max(numbers))} ({len(numbers)})"
    return " or ".join(values) if len(values) <= MANY_VARIANTS else count(len(values), "value")
