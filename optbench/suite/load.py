"""Load a suite file as a validated `Suite`: read, parse, override, validate and cross-check."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optbench.counting import count
from optbench.errors import OptbenchError, OptimizerError, UsageError, nearest
from optbench.kinds import AS_WRITTEN
from optbench.metrics.catalog import DEFAULT, METRICS, OF_TEST_DATA, PAIR_METRICS
from optbench.metrics.metric import base_name
from optbench.metrics.naming import check_metric, check_pair_metric, check_taken, unmeasured
from optbench.metrics.own import MetricSettings, check_rule, resolve
from optbench.suite.claim_faults import check_compared, check_of_trials, claim_faults
from optbench.suite.document import Document, KeyPath, Place, is_name_list
from optbench.suite.extends import read_document
from optbench.suite.faults import Fault, raise_faults, shown_path, validation_faults
from optbench.suite.fitting import fitting_faults, text_faults
from optbench.suite.measured import with_readings
from optbench.suite.overrides import apply_override, parse_override
from optbench.suite.references import reference_faults
from optbench.suite.remarks import suite_remarks
from optbench.suite.schema import ExperimentSettings, Suite
from optbench.suite.spaces import space_problems
from optbench.suite.variants import count_variants, variants
from optbench.targets import Source, TargetError, is_file, read_source, split, using

FindSource = Callable[[str], Source | None]
OptimizerCheck = Callable[[str, Mapping[str, Any]], None]

MAX_TRIALS = 200_000
"""Maximum number of trials of a suite; the largest shipped suite has less than a hundredth of this number."""


def load_suite(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    check_optimizer: OptimizerCheck | None = None,
    find: FindSource | None = None,
    as_written: bool = False,
    note: Callable[[str], None] | None = None,
) -> Suite:
    """Load and validate the suite in the file `path`, changed by `overrides` (each `key.path=value`).

    `check_optimizer(target, hyperparameters)` is called for every variant of every optimizer, as given in the suite and
    as overridden by each experiment; it must raise OptimizerError if they are invalid. The check is an argument because
    this layer lies below the optimizer registry; without a check, targets and hyper-parameters are not validated.

    `find(target)` reads the file of a user's kind, metric or text; by default, the file is looked up next to the suite,
    then in the working directory.

    as_written: whether to skip loading kinds, so that no user code is executed and torch is not imported; meant for the
    suite of an existing run.

    `note(text)` is called with each remark on a valid suite, such as an optimizer that no experiment uses.

    A suite can extend another (`optbench.suite.extends`); overrides apply to the merged suite.

    Raises:
        SuiteError: the suite is invalid; at most five faults are reported, one line each: `file:line:column: ...`.
        UsageError: all faults come from overrides: `--set key.path=value: ...`.
    """
    parsed = [parse_override(text) for text in overrides]
    document = read_document(path)
    _note_listed_optimizers(document)
    for override in parsed:
        apply_override(document, override)
    find = find or (lambda target: read_source(target, [path.parent]))
    sources = {} if as_written else _sources(document, find)
    with using(sources):
        try:
            suite = Suite.model_validate(document.value, context=AS_WRITTEN if as_written else None)
        except ValidationError as error:
            raise_faults(validation_faults(error, document))
        faults = list(_size_faults(suite, document)) or [
            *_optimizer_faults(suite, document, check_optimizer),
            *reference_faults(suite, document),
            *_tune_faults(suite, document, as_written),
            *(Fault(document.value_place(path), f"{shown_path(path)}: {what}") for path, what in space_problems(suite)),
            *claim_faults(suite, document, as_written=as_written),
            *_pairs_faults(suite, document),
            *_metric_faults(suite, document, sources),
            *_readings_faults(suite, document, as_written),
            *([] if as_written else fitting_faults(suite, document)),
            *([] if as_written else text_faults(suite, document, find)),
        ]
    if faults:
        raise_faults(faults)
    if note is not None:
        for remark in suite_remarks(suite, document):
            note(remark)
    return suite


def _sources(document: Document, find: FindSource) -> dict[str, Source]:
    """Read the files that define the user's kinds and metrics; skip missing files.

    Returns: the sources, by the part of the target before the colon.
    """
    experiments, claims, tune = (document.value.get(key) for key in ("experiments", "claims", "tune"))
    parts = list(experiments.values()) if isinstance(experiments, dict) else []
    parts += [c.get("readings") for c in claims.values() if isinstance(c, dict)] if isinstance(claims, dict) else []
    parts += [{"metrics": [tune.get("metric")]}] if isinstance(tune, dict) else []
    sources: dict[str, Source] = {}
    for part in parts:
        for target in _named(part) if isinstance(part, dict) else ():
            with contextlib.suppress(TargetError):
                if is_file(where := split(target)[0]) and where not in sources and (found := find(target)) is not None:
                    sources[where] = found
    return sources


def _named(experiment: dict[str, Any]) -> Iterator[str]:
    """Yield the names of kinds and metrics in a part of a document that has not been validated."""
    models, metrics = experiment.get("models"), experiment.get("metrics")
    models = models.values() if isinstance(models, dict) else ()
    metrics = metrics if isinstance(metrics, list) else ()
    for value in (*(experiment.get(key) for key in ("dataset", "transfer", "tasks")), *models, *metrics):
        while value is not None:
            kind = value.get("kind") if isinstance(value, dict) else value
            if isinstance(kind, str):
                yield kind
            value = value.get("of") if isinstance(value, dict) else None  # for a dataset derived from another


def _note_listed_optimizers(document: Document) -> None:
    """Record each item of a list `optimizers: [sgd, adam]` as the location of the key that it stands for."""
    experiments = document.value.get("experiments")
    for name, experiment in experiments.items() if isinstance(experiments, dict) else ():
        listed = experiment.get("optimizers") if isinstance(experiment, dict) else None
        if is_name_list(listed):
            path: KeyPath = ("experiments", name, "optimizers")
            for i, optimizer in enumerate(listed):
                document.keys[(*path, optimizer)] = document.values[(*path, i)]


def _size_faults(suite: Suite, document: Document) -> Iterator[Fault]:
    """Yield a fault if the suite has an implausible number of trials, which are counted before any is created."""
    whole = sum(_settings(optimizer.hyperparameters) for optimizer in suite.optimizers.values())
    trials = 0
    for experiment in suite.experiments.values():
        settings = whole
        if experiment.optimizers is not None:
            given = ((suite.optimizers.get(name), changes) for name, changes in experiment.optimizers.items())
            settings = sum(_settings(known.hyperparameters | changes) for known, changes in given if known)
        trials += settings * len(experiment.models) * len(suite.seeds)
    if trials > MAX_TRIALS:
        overridden = [place for place in document.keys.values() if place.is_override]
        place = overridden[-1] if overridden else document.key_place(("experiments",))
        yield Fault(place, f"expected at most {count(MAX_TRIALS, 'trial')}, got {trials}")


def _settings(hyperparameters: Mapping[str, Any]) -> int:
    try:
        return count_variants(hyperparameters)
    except OptimizerError:
        return 0  # reported by the check of each optimizer


def _optimizer_faults(suite: Suite, document: Document, check: OptimizerCheck | None) -> Iterator[Fault]:
    for name, optimizer in suite.optimizers.items():
        yield from _settings_faults(document, check, optimizer.target, optimizer.hyperparameters, ("optimizers", name))
    for experiment, settings in suite.experiments.items():
        for name, changes in (settings.optimizers or {}).items():
            path: KeyPath = ("experiments", experiment, "optimizers", name)
            if name in suite.optimizers and "target" in changes:
                what = "expected only hyper-parameters, got 'target'; for another target, add an optimizer to the suite"
                yield Fault(document.key_place((*path, "target")), f"{shown_path(path)}: {what}")
            elif name in suite.optimizers and changes:
                optimizer = suite.optimizers[name]
                merged = optimizer.hyperparameters | changes
                yield from _settings_faults(document, check, optimizer.target, merged, path, ("optimizers", name))


def _tune_faults(suite: Suite, document: Document, as_written: bool) -> Iterator[Fault]:
    """Yield a fault for each metric that cannot be used to choose settings, and for tuning seeds used in evaluation."""
    tune = suite.tune
    rules: dict[KeyPath, MetricSettings] = {}
    if tune is not None and not as_written:
        rules[("tune", "metric")] = tune.metric
        rules |= {("tune", "experiments", name, "metric"): e.metric for name, e in tune.experiments.items() if e.metric}
    for path, rule in rules.items():
        try:
            for metric in resolve([rule]):
                check_rule(metric)
                chosen_by = [name for name in suite.experiments if tune and tune.metric_on(name) == rule]
                on_test = [name for name in chosen_by if _evaluates_test_data(suite.experiments[name])]
                if metric.kind == "curve" and on_test:
                    how = f"on test data in {on_test[0]}, which has early_stopping: {{on: test}}"
                    what = f"{metric.name} is measured {how}"
                    yield Fault(document.value_place(path), f"{shown_path(path)}: {what}")
        except UsageError as error:
            yield Fault(document.value_place(path), f"{shown_path(path)}: {error}")
    both = sorted(set(suite.tune.seeds or ()) & set(suite.seeds)) if suite.tune and suite.stage == "eval" else []
    if both:
        place = document.key_place(("seeds",))
        place = place if place.is_override else document.key_place(("tune", "seeds"))
        what = "results must not use the seeds on which settings are chosen"
        message = f"seed {both[0]} is in 'tune.seeds' and in 'seeds'; {what}"
        yield Fault(place, message)


def _evaluates_test_data(experiment: ExperimentSettings) -> bool:
    early = experiment.protocol.early_stopping
    return early is not None and early.on == "test"


def _pairs_faults(suite: Suite, document: Document) -> Iterator[Fault]:
    for name, experiment in suite.experiments.items():
        if experiment.pairs is not None and not experiment.checkpoints:
            path: KeyPath = ("experiments", name)
            message = f"{shown_path(path)}: 'pairs' needs 'checkpoints: true', because weights are compared"
            yield Fault(document.key_place((*path, "checkpoints")), message)


def _metric_faults(suite: Suite, document: Document, sources: Iterable[str]) -> Iterator[Fault]:
    own: dict[str, str] = {}
    for path, entry in _listed_metrics(suite):
        if entry.is_users and (other := own.setdefault(base_name(entry.name), entry.kind)) != entry.kind:
            message = f"{entry.kind}: has the same name as {other}; rename one of the functions"
            yield Fault(document.value_place(path), f"{shown_path(path[:-1])}: {message}")
    for name, experiment in suite.experiments.items():
        for i, entry in enumerate(experiment.metrics or ()):
            if entry.kind == "transfer_accuracy" and experiment.transfer is None:
                path = ("experiments", name, "metrics", i)
                what = "expected the key 'transfer' next to 'metrics', as in transfer: fashion-mnist"
                yield Fault(document.value_place(path), f"{shown_path(path)}: transfer_accuracy: {what}")
    known = {
        name: e
        for experiment in with_readings(suite).experiments.values()
        for name, e in experiment.own_metrics.items()
    }
    for path, metric, check in _named_metrics(suite):
        try:
            check(metric)
        except UsageError as error:
            is_key = path[-1] == metric  # e.g. `where: {forgetting: {below: 0.1}}`
            place = document.key_place(path) if is_key else document.value_place(path)
            what = str(error)
            if what.startswith("unknown"):
                if (listed := known.get(metric) or _users_metric(metric, sources)) is not None:
                    what = unmeasured(metric, None if listed.settings else listed.kind)
                elif (guess := nearest(metric, [*known, *METRICS])) in known:
                    what = f"unknown metric '{metric}'; did you mean '{guess}'?"
            yield Fault(place, f"{shown_path(path[:-1])}: {what}")


def _users_metric(name: str, files: Iterable[str]) -> MetricSettings | None:
    """Return the metric of this name, without settings, in one of the user's files; None if no file has one.

    files: the files that define the suite's kinds and metrics.
    """
    for file in files if base_name(name) == name else ():
        with contextlib.suppress(OptbenchError, ValidationError):
            return MetricSettings.model_validate(f"{file}:{name}")
    return None


def _listed_metrics(suite: Suite) -> Iterator[tuple[KeyPath, MetricSettings]]:
    """Yield each entry in a list of metrics to measure, with the entry's path."""
    for name, experiment in suite.experiments.items():
        yield from ((("experiments", name, "metrics", i), entry) for i, entry in enumerate(experiment.metrics or ()))
    for name, claim in suite.claims.items():
        listed = claim.readings.metrics if claim.readings else ()
        yield from ((("claims", name, "readings", "metrics", i), entry) for i, entry in enumerate(listed))


def _readings_faults(suite: Suite, document: Document, as_written: bool) -> Iterator[Fault]:
    """Yield a fault for each claim with `data: last` and a metric that is not measured on each task's test data."""
    for name, claim in suite.claims.items():
        if as_written or claim.readings is None or "last" not in claim.readings.data:
            continue
        path: KeyPath = ("claims", name, "readings", "data")
        try:
            found = resolve(claim.readings.metrics)
        except UsageError:
            continue  # reported with the list
        without = [metric.name for metric in found if metric.kind not in OF_TEST_DATA]
        if without:
            what = f"'last': expected metrics measured on each task's test data, got {without[0]}"
            yield Fault(document.value_place((*path, claim.readings.data.index("last"))), f"{shown_path(path)}: {what}")


def _named_metrics(suite: Suite) -> Iterator[tuple[KeyPath, str, Callable[[str], object]]]:
    """Yield each reference that must name a metric of the catalog: path, name, and a check that raises UsageError."""
    measured = with_readings(suite).experiments
    for path, entry in _listed_metrics(suite):
        if entry.kind != DEFAULT and not entry.is_users:
            yield path, entry.kind, check_metric
    for name, experiment in suite.experiments.items():
        path = ("experiments", name)
        for i, metric in enumerate(experiment.primary or ()):
            if metric not in measured[name].own_metrics:
                yield (*path, "primary", i), metric, check_metric
        for i, figure in enumerate(experiment.figures or ()):
            at = (*path, "figures", i)
            yield from _taken(measured[name], [((*at, "x"), figure.x), ((*at, "y"), figure.y)])
        chosen = enumerate(experiment.pairs.metrics or ()) if experiment.pairs is not None else ()
        yield from (((*path, "pairs", "metrics", i), metric, check_pair_metric) for i, metric in chosen)
    for name, claim in suite.claims.items():
        if claim.experiment not in measured:
            continue  # reported with the references; only an experiment determines which metrics are valid
        listed: list[tuple[KeyPath, str]] = [(("claims", name, "metric"), claim.metric)] if claim.metric else []
        listed += [(("claims", name, "beside", i), metric) for i, metric in enumerate(claim.beside)]
        if claim.about_pairs:
            of_pairs = functools.partial(check_compared, experiment=suite.experiments[claim.experiment])
            yield from ((path, metric, of_pairs) for path, metric in listed)
            listed = []
        listed += [(("claims", name, "where", metric), metric) for metric in claim.where]
        yield from ((path, metric, check_of_trials) for path, metric in listed if metric in PAIR_METRICS)
        listed = [(path, metric) for path, metric in listed if metric not in PAIR_METRICS]
        yield from _taken(measured[claim.experiment], listed)


def _taken(
    where: ExperimentSettings, listed: Iterable[tuple[KeyPath, str]]
) -> Iterator[tuple[KeyPath, str, Callable[[str], object]]]:
    """Yield the references in `listed`, with their checks, in the same form as `_named_metrics`.

    listed: references to metrics that the experiment `where` must measure.
    """
    taken = None if where.metrics is None else [entry.kind for entry in where.metrics if entry.in_catalog]
    checks = (check_metric, functools.partial(check_taken, listed=taken))
    own = where.own_metrics
    yield from ((path, metric, check) for path, metric in listed if metric not in own for check in checks)


def _settings_faults(
    document: Document, check: OptimizerCheck | None, target: str, hyperparameters: Mapping[str, Any], *paths: KeyPath
) -> Iterator[Fault]:
    """Yield at most one fault, the first in an optimizer's settings. paths: their locations, most specific first."""
    try:
        for variant in variants(hyperparameters):
            if check is not None:
                check(target, variant.hyperparameters)
    except OptimizerError as error:
        quoted = {**dict(zip(hyperparameters, hyperparameters, strict=True)), target: "target", "target": "target"}
        place = _place_of_settings(document, str(error), quoted, paths)
        yield Fault(place, f"{shown_path(paths[0])}: {error}")


def _place_of_settings(document: Document, message: str, quoted: Mapping[str, str], paths: Sequence[KeyPath]) -> Place:
    """Return the location of the first setting quoted in the message, or of the optimizer if no setting is quoted.

    quoted: the key of each setting, by the text that the message may quote.
    """
    named = sorted((message.index(f"'{text}'"), key) for text, key in quoted.items() if f"'{text}'" in message)
    for _, key in named:
        for path in paths:
            if (*path, key) in document.keys:
                return document.key_place((*path, key))
    places = [place for path, place in document.keys.items() if any(path[: len(start)] == start for start in paths)]
    changed = [place for place in places if place.is_override]
    return changed[-1] if changed else document.key_place(paths[0])
