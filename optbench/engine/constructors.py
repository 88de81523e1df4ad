"""Construction of a plan's optimizers before training, so that invalid settings are found at the start."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from optbench.data import Dataset
from optbench.data.loading import Load
from optbench.engine.blueprint import Blueprint
from optbench.engine.controls import renews_state
from optbench.engine.faults import of_the_machine
from optbench.engine.members import Schedule
from optbench.engine.randomness import SEEDS
from optbench.engine.recipe import obstacle_to
from optbench.engine.user_code import UserCode
from optbench.errors import OptimizerError, spoken
from optbench.models import materialised
from optbench.optimizers.explain import in_words
from optbench.optimizers.make import maker, resolve_made, resolve_spec
from optbench.plan import Trial
from optbench.streams import generator, stream_seed
from optbench.suite import Suite
from optbench.suite.schema import ExperimentSettings
from optbench.tasks import TaskFamily

MOST_LINES = 20
"""Maximum number of rejected variants listed in the message; the others are only counted."""


def try_constructors(
    suite: Suite,
    trials: Iterable[Trial],
    device: torch.device,
    load: Load,
    notify: Callable[[str], None],
) -> None:
    """Construct each variant's optimizer for each of its datasets and models, on a network with initial weights.

    notify: called with the text of each distinct warning that a constructor issues.

    Raises:
        OptimizerError: some variants are rejected; the message has a line for each of the first `MOST_LINES`.
    """
    warned: dict[str, None] = {}
    refused: dict[tuple[str, str], str] = {}
    for place in _places(suite, trials, load):
        for trial in place.trials:
            arm = (trial.optimizer, trial.variant)
            if arm in refused:
                continue
            with _collected(trial.optimizer, warned):
                if (message := place.refusal(trial, device)) is not None:
                    refused[arm] = message
    for text in warned:
        notify(text)
    if refused:
        lines = [f"optimizers.{name} {variant}: {text}" for (name, variant), text in refused.items()]
        more = [f"... and {len(lines) - MOST_LINES} more variants"] if len(lines) > MOST_LINES else []
        raise OptimizerError(*lines[:MOST_LINES], *more)


def _places(suite: Suite, trials: Iterable[Trial], load: Load) -> Iterator[_Place]:
    """Yield the distinct variants to try, grouped by experiment and model."""
    groups: dict[tuple[str, str], dict[str, Trial]] = {}
    seen: set[str] = set()
    for trial in trials:
        settings = suite.experiments[trial.experiment]
        where = [settings.dataset.model_dump(mode="json"), settings.models[trial.model].model_dump(mode="json")]
        recipe = [setting is not None for setting in (settings.protocol.clip_norm, settings.protocol.weight_averaging)]
        key = json.dumps([where, recipe, trial.target, dict(trial.hyperparameters)], sort_keys=True)
        if key not in seen:
            seen.add(key)
            groups.setdefault((trial.experiment, trial.model), {})[key] = trial
    for (experiment, name), chosen in groups.items():
        yield _Place(suite, experiment, name, list(chosen.values()), load(suite.experiments[experiment].dataset))


class _Place:
    """A model of an experiment, and the trials whose optimizers are constructed for this model."""

    def __init__(self, suite: Suite, experiment: str, model: str, trials: list[Trial], dataset: Dataset) -> None:
        self.trials = trials
        self._suite_seed = suite.seed
        self._experiment: ExperimentSettings = suite.experiments[experiment]
        self._dataset = dataset
        self._model, self._place = model, f"experiments.{experiment}.models.{model}"
        self._networks: dict[torch.device, nn.Module] = {}

    def refusal(self, trial: Trial, device: torch.device) -> str | None:
        """Return the reason why the constructor or the protocol rejects a trial's optimizer; None if both accept it."""
        error = self._raised(trial, torch.device("cpu"))
        if error is not None and device.type != "cpu":  # the code may work only on `device`
            error = self._raised(trial, device)
        if error is None:
            return None
        if isinstance(error, OptimizerError):
            return spoken(error)
        return in_words(error, trial.target, trial.hyperparameters)

    def _raised(self, trial: Trial, device: torch.device) -> Exception | None:
        try:
            spec = resolve_spec(trial.spec, trial.settings)
            alone = "model" in spec.needs or trial.user_optimizers
            network = self._network(device) if alone else self._shared(device)
            given = {
                "generator": generator(self._suite_seed, trial.seed, "optimizer"),
                "model": network,
                "total_steps": self._total_steps(trial) if "total_steps" in spec.needs else 0,
                "examples": self._first_task if "examples" in spec.needs else 0,
            }
            seed = stream_seed(self._suite_seed, trial.seed, "optimizer/made/task 0") % SEEDS
            with (
                contextlib.redirect_stdout(sys.stderr),
                UserCode(spec, trial.settings, device).aside(seed),
            ):
                made = maker(spec, trial.settings, given)(list(network.parameters()))
            needs = resolve_made(spec, made, trial.settings).needs
            if (obstacle := obstacle_to(self._experiment.protocol, needs)) is not None:
                return OptimizerError(obstacle)
        except Exception as error:  # a user's constructor may raise anything
            if of_the_machine(error):
                raise
            return error
        return None

    def _network(self, device: torch.device) -> nn.Module:
        """Return a new network, because a constructor may add hooks or change weights."""
        network = materialised(self._blueprint.network, device)
        self._blueprint.layout.copy_to(network, self._start)
        return network

    @functools.cached_property
    def _blueprint(self) -> Blueprint:
        return Blueprint.of(self._experiment, self._model, self._dataset, self._place)

    @functools.cached_property
    def _start(self) -> Tensor:
        return self._blueprint.layout.pack(self._blueprint.start(self._suite_seed, 0))

    def _shared(self, device: torch.device) -> nn.Module:
        """Return the network shared by all registered optimizers, whose constructors do not change parameters."""
        if device not in self._networks:
            self._networks[device] = self._network(device)
        return self._networks[device]

    def _total_steps(self, trial: Trial) -> int:
        """Return the optimizer's total number of steps, assuming that all of its tasks have as many steps as the first.

        Only the first task is generated.
        """
        protocol = self._experiment.protocol
        tasks = 1 if protocol.optimizer_state == "reset" or renews_state(trial) else self._tasks.count
        return tasks * Schedule.of(protocol, max(1, self._first_task // protocol.batch_size)).total

    @functools.cached_property
    def _first_task(self) -> int:
        """Return the number of training examples of the first task."""
        return len(self._tasks.sequence(self.trials[0].seed).train(0))

    @functools.cached_property
    def _tasks(self) -> TaskFamily:
        settings = self._experiment
        return TaskFamily(settings.tasks, self._dataset, settings.protocol, self._suite_seed, torch.device("cpu"))


@contextlib.contextmanager
def _collected(optimizer: str, found: dict[str, None]) -> Iterator[None]:
    """Add the Python warnings issued in the block to the keys of `found` instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = " ".join(str(warning.message).split())
        found[f"optimizers.{optimizer}: {warning.category.__name__}: {text}"] = None
