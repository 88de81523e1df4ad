"""`optbench tune`: train settings in rounds, in one run directory, until no settings are left to try.

    suite -> searches -> settings of a round -> run (stage `tune`) -> results of the settings -> the next round

Every round depends only on the previous ones. A resumed tuning therefore repeats all rounds, with the settings that the
run's suite records, and reads existing results instead of training again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optbench.counting import count
from optbench.errors import SuiteError
from optbench.execution.schedule import Plan, make_plan
from optbench.execution.session import Options, Outcome, Session
from optbench.execution.view import View
from optbench.metrics import METRICS
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.streams import stream_seed
from optbench.studies.tuning.following import chosen_dimensions, followed_values
from optbench.studies.tuning.recorded import Recorded, recorded_settings
from optbench.studies.tuning.samplers import Tried, Values, batch_size, can_widen, draw, widen
from optbench.studies.tuning.space import Key, Search, Searches, effective, overrides, searches, takes, tuning_seeds
from optbench.studies.tuning.statistics import TunedOptimizer, best_learning, tunings
from optbench.suite import Suite, load_suite
from optbench.suite.schema import ExperimentTune, Sampler, Tune
from optbench.suite.variants import LISTED, variant_name, with_values

MOST_WIDENINGS = 5


@dataclass(frozen=True)
class Method:
    """The search method.

    trials: number of settings that a random or TPE sampler draws per optimizer; None for as many as the grid has.
    widen: whether to extend a grid if the best setting is at an edge.
    """

    sampler: Sampler = "grid"
    trials: int | None = None
    widen: bool = False


@dataclass
class Tuner:
    """One suite's tuning in progress."""

    suite: Suite
    method: Method
    seeds: Sequence[int]
    searches: Searches
    tried: dict[Key, list[Values]] = field(default_factory=dict)
    """Tried settings by experiment and optimizer, in the order tried."""
    recorded: Recorded = field(default_factory=dict)
    """The settings of the run that is resumed, which are tried before any others."""
    rounds: int = 0

    @staticmethod
    def of(suite: Suite, method: Method, seeds: Sequence[int] | None = None) -> Tuner:
        """Return a tuner that has not tried any settings yet.

        seeds: the tuning seeds; None for those returned by `tuning_seeds`.

        Raises:
            SuiteError: a space is invalid, budgets are unequal, or a seed is an evaluation seed.
            UsageError: there is nothing to choose.
        """
        chosen = list(seeds if seeds is not None else tuning_seeds(suite))
        both = sorted(set(chosen) & set(suite.seeds))
        if both:
            raise SuiteError(
                f"seed {both[0]} is one of the suite's own seeds, but settings must be chosen on other seeds; "
                "give tuning seeds with --seeds or in 'tune.seeds'"
            )
        tuner = Tuner(suite, method, chosen, searches(suite))
        tuner._check_budgets()
        return tuner

    @property
    def _begun(self) -> list[Search]:
        return [search for search in self.searches.searches if self.tried.get(search.key)]

    @property
    def tuning_suite(self) -> Suite:
        """The suite of the tuning run, with all tried settings as variants, and only the rule's metric."""
        experiments = {}
        begun = self._begun
        for name in dict.fromkeys(search.experiment for search in begun):
            here = [search for search in begun if search.experiment == name]
            experiment = self.suite.experiments[name]
            rule = (self.suite.tune or Tune()).metric_on(name)
            taking_part = {search.optimizer: self._variants(search) for search in here}
            models = {m: experiment.models[m] for m in experiment.models if any(m in search.models for search in here)}
            experiments[name] = experiment.model_copy(
                update={
                    "models": models,
                    "optimizers": taking_part,
                    "metrics": [] if rule.in_catalog and METRICS[rule.kind].kind == "continual" else [rule],
                    "primary": None,
                    "tuning": None,
                    "checkpoints": False,
                    "pairs": None,
                    "twins": None,
                    "transfer": None,
                }
            )
        used = {search.optimizer for search in begun}
        return self.suite.model_copy(
            update={
                "name": f"{self.suite.name}-tune",
                "stage": "tune",
                "seeds": list(self.seeds),
                "optimizers": {name: o for name, o in self.suite.optimizers.items() if name in used},
                "experiments": experiments,
                "claims": {},
                "tune": self._declared(),
            }
        )

    def propose(self, found: Sequence[TunedOptimizer]) -> bool:
        """Add the settings of the next round to `tried`, and return whether there are any.

        An optimizer with a hyper-parameter that follows another optimizer's is tuned after that optimizer.

        found: the results of earlier rounds.
        """
        known = {(tuned.experiment, tuned.optimizer): tuned for tuned in found}
        chosen = chosen_dimensions(self.searches, found)
        # a value that other hyper-parameters already follow stays fixed
        closed = {leader for key, tried in self.tried.items() if tried for leader in self.searches.leaders(key)}
        new: dict[Key, list[Values]] = {}
        for search in self.searches.in_order:
            tried, leaders = self.tried.get(search.key, []), self.searches.leaders(search.key)
            waits = not tried and any(new.get(leader) or leader not in known for leader in leaders)
            if waits or search.key in closed:
                new[search.key] = []
            elif self.method.sampler == "grid":
                new[search.key] = self._widened(search, known) if tried else list(search.grid)
            else:
                new[search.key] = self._drawn(search, tried, known.get(search.key))
            new[search.key] = self._left(search.key)[: len(new[search.key])] or new[search.key]
        if not any(new.values()):
            # recorded settings that would not be proposed any more
            new = {search.key: self._left(search.key) for search in self._begun if search.key not in closed}
        for key, values in new.items():
            followed = followed_values(self.searches.ties_of(key), chosen)
            new[key] = [{**one, **followed} for one in values]
        if not any(new.values()):
            return False
        for key, values in new.items():
            self.tried.setdefault(key, []).extend(values)
        self.rounds += 1
        return True

    def _left(self, key: Key) -> list[Values]:
        """Return the recorded settings of a search that have not been tried again yet."""
        return list(self.recorded.get(key, ())[len(self.tried.get(key, ())) :])

    def _widened(self, search: Search, known: Mapping[Key, TunedOptimizer]) -> list[Values]:
        """Return further settings for a search if any optimizer on the experiment has its best setting at an edge."""
        if not self.method.widen or self.rounds > MOST_WIDENINGS:
            return []
        here = [one for one in self.searches.searches if one.experiment == search.experiment and one.key in known]
        if not any(self._beyond(one, known[one.key]) for one in here):
            return []
        tuned = known[search.key]
        return self._beyond(search, tuned) or self._beside(search, tuned, ())

    def _beyond(self, search: Search, tuned: TunedOptimizer) -> list[Values]:
        """Return settings beyond the edge at which the best setting lies, omitting those that the optimizer rejects."""
        return self._beside(search, tuned, tuned.edges) if can_widen(search, tuned.edges) else []

    def _beside(self, search: Search, tuned: TunedOptimizer, edges: Sequence[str]) -> list[Values]:
        if tuned.chosen is None:
            return []
        tried = self.tried[search.key]
        best = next(values for values in tried if variant_name(values) == tuned.chosen.variant)
        target = self.suite.optimizers[search.optimizer].target
        given = effective(self.suite, search.experiment, search.optimizer)
        return [values for values in widen(search, tried, best, edges) if takes(target, with_values(given, values))]

    def _drawn(self, search: Search, tried: Sequence[Values], tuned: TunedOptimizer | None) -> list[Values]:
        total = self.method.trials or len(search.grid)
        size = total if self.method.sampler == "random" else batch_size(total)
        # an incomplete batch means that the space is exhausted
        count = min(size, total - len(tried)) if len(tried) % size == 0 else 0
        if count <= 0:
            return []
        assert self.method.sampler != "grid"
        purpose = f"tuning {search.experiment} {search.optimizer} round {len(tried) // size}"
        # Optuna accepts 32-bit seeds.
        seed = stream_seed(self.suite.seed, None, purpose) % 2**32
        return draw(search, _history(search, tried, tuned), count, self.method.sampler, seed)

    def _variants(self, search: Search) -> dict[str, Any]:
        settings = [with_values({}, values) for values in self.tried.get(search.key, [])]
        return {**overrides(self.suite, search.experiment, search.optimizer), LISTED: settings}

    def _declared(self) -> Tune:
        """Return the suite's `tune` for the searches that have begun, with seeds, models and spaces written out."""
        tune = self.suite.tune or Tune()
        experiments: dict[str, ExperimentTune] = {}
        for search in self._begun:
            stated = tune.experiments.get(search.experiment, ExperimentTune())
            new = ExperimentTune(models=list(search.models), metric=stated.metric)
            here = experiments.get(search.experiment, new)
            space = with_values({}, {dimension.path: dimension.stated for dimension in search.dimensions})
            spaces = {**here.optimizers, search.optimizer: space}
            experiments[search.experiment] = here.model_copy(update={"optimizers": spaces})
        return tune.model_copy(update={"seeds": list(self.seeds), "optimizers": {}, "experiments": experiments})

    def _check_budgets(self) -> None:
        if self.method.sampler != "grid" and self.method.trials is not None:
            return
        for name in self.suite.experiments:
            counts = {s.optimizer: len(s.grid) for s in self.searches.searches if s.experiment == name}
            if len(set(counts.values())) > 1:
                listed = ", ".join(f"{optimizer} {count}" for optimizer, count in counts.items())
                raise SuiteError(
                    f"tune: expected the same number of settings for every optimizer of {name}, got {listed}"
                )


def tune(
    tuner: Tuner, options: Options, view: View, record: Mapping[str, Any], files: Mapping[str, str]
) -> tuple[Outcome, tuple[TunedOptimizer, ...]]:
    """Train all rounds; return the run's outcome and the choices, which are empty after an interruption.

    record: the entry `tune` for the run's `run.json`. files: contents of additional files for a new run, by name.

    Raises:
        OptbenchError: the settings, device, data or run directory is invalid; earlier results are kept.
    """
    if options.resume is not None:
        tuner.recorded = recorded_settings(load_suite(options.resume / "suite.yaml", as_written=True), tuner.searches)
    tuner.propose([])
    found: tuple[TunedOptimizer, ...] = ()
    with Session(options, view) as session:
        plan = session.begin(tuner.tuning_suite, {"tune": dict(record)}, files, grown=True)
        while True:
            if left := sum(trial.id not in plan.done for trial in plan.trials):
                if tuner.rounds > 1:
                    view.message(f"round {tuner.rounds}: {count(left, 'more trial')}")
                plan = session.grow(tuner.tuning_suite)
                session.train(plan)
            found = tuple(tunings(read_results(read_run(session.writer.path), plan.suite)))
            if not tuner.propose(found):
                break
            plan = make_plan(tuner.tuning_suite, session.writer.path, grown=True)
        # a resumed run with nothing left to train does not record all rounds yet
        session.grow(tuner.tuning_suite)
    return session.outcome, () if session.outcome.interrupted else found


def first_plan(tuner: Tuner, options: Options) -> Plan:
    """Return the plan of the first round.

    For a grid, this is the complete tuning, unless the grid is widened or an optimizer follows another optimizer's
    choice.
    """
    return make_plan(tuner.tuning_suite, options.resume, grown=True)


def _history(search: Search, tried: Sequence[Values], tuned: TunedOptimizer | None) -> list[Tried]:
    """Return the tried settings with their worth, for a sampler.

    A setting that learns enough is worth its score, negated if lower scores are better; all others are worth less.
    """
    if tuned is None:
        return []
    sign = 1.0 if tuned.metric.direction == "higher" else -1.0
    settings = {setting.variant: setting for setting in tuned.settings}
    best = best_learning(tuned.settings)
    good = {name: sign * s.score for name, s in settings.items() if s.eligible and s.learns}
    least = min(good.values(), default=0.0)
    worth = dict(good)
    for name, setting in settings.items():
        if name not in good:
            short = best - setting.learning if math.isfinite(setting.learning) else 1.0
            worth[name] = least - short
    own = [{path: values[path] for path in search.paths} for values in tried]
    return [Tried(one, worth[variant_name(values)]) for one, values in zip(own, tried, strict=True)]
