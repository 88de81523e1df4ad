"""The shipped suites are valid, and their statements about tuning are true."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.cli import main
from optbench.execution.backend import Backend
from optbench.execution.pool import Pool
from optbench.optimizers.registry import check_settings
from optbench.plan import trials
from optbench.store import read_run
from optbench.studies.tuning.space import effective, searches
from optbench.studies.tuning.tuned_suite import MARKER
from optbench.suite import Suite, dump_suite, load_suite, shipped_suites
from tests.conftest import NEEDS_DATA, assert_same_tables

TUNED = (
    *("basins", "collapse", "continual", "equal-loss", "finetune", "followups", "grokking", "imbalance", "shampoo"),
    *("shortcuts", "sparsity"),
)


def shipped(name: str) -> Suite:
    path = shipped_suites()[name]
    return load_suite(path, check_optimizer=check_settings)


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_every_shipped_suite_loads_and_names_itself(name: str) -> None:
    suite = shipped(name)
    assert suite.name == name
    assert suite.description
    assert trials(suite)


@pytest.mark.parametrize("name", TUNED)
def test_the_stated_tuning_of_a_suite_agrees_with_its_values(name: str) -> None:
    suite = shipped(name)
    assert suite.tune is not None
    assert suite.tune.seeds is not None
    assert not set(suite.seeds) & set(suite.tune.seeds)
    found = searches(suite)
    searched = {(search.experiment, search.optimizer): search for search in found.searches}
    tied = {(tie.experiment, tie.optimizer): tie for tie in found.ties}
    for experiment, settings in suite.experiments.items():
        assert settings.tuning is not None
        budgets = set()
        for optimizer, cost in settings.tuning.items():
            if (experiment, optimizer) in tied:
                continue
            budgets.add((cost.settings, cost.seeds))
            search = searched[experiment, optimizer]
            for dimension in search.dimensions:
                used = value_at(effective(suite, experiment, optimizer), dimension.path)
                if cost.chosen is not None:
                    assert cost.chosen[dimension.name] == used
                assert used in dimension.values or cost.settings > len(search.grid), (
                    "values are on the grid unless it was widened"
                )
        assert len(budgets) == 1, "all optimizers have the same budget"
        assert {o for e, o in searched if e == experiment} <= settings.tuning.keys()
    for (experiment, optimizer), tie in tied.items():
        leader = value_at(effective(suite, experiment, tie.of), tie.of_path)
        assert value_at(effective(suite, experiment, optimizer), tie.path) == pytest.approx(tie.times * leader)


@pytest.mark.parametrize("name", ["continual", "sparsity", "basins"])
def test_a_tuned_suite_names_the_command_that_chose_its_values(name: str) -> None:
    first, command = shipped_suites()[name].read_text().splitlines()[:2]
    assert first == MARKER
    assert command.startswith(f"#   optbench tune {name}")


def value_at(hyperparameters: dict[str, Any], path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path, hyperparameters)


def test_suite_continual_follows_section_3_1_of_the_paper() -> None:
    suite = shipped("continual")
    assert len(suite.seeds) == 10
    assert set(suite.experiments["permuted-mnist"].models) == {"mlp-50", "mlp-100", "mlp-200"}
    assert suite.optimizers["shampoo"].hyperparameters["preset"] == "gupta"
    claims = suite.claims.values()
    assert {claim.metric for claim in claims} == {
        "average_accuracy",
        "forgetting",
        "effective_rank",
        "earlier_tasks_accuracy",
        "class_cosine_mean",
    }
    assert all(claim.text and claim.source.startswith("arXiv:2507.12224") for claim in claims)
    smoke = shipped("smoke")
    assert smoke.experiments.keys() == suite.experiments.keys()
    assert smoke.optimizers.keys() <= suite.optimizers.keys()


# Suites are reduced only in seeds, steps, tasks and examples, and of several widths to those that claims name.
# Two seeds are kept where that costs little, so that there is work to spread over processes.
PROTOCOL = {"max_steps": 2, "train_examples": 1500, "validation_examples": 200, "test_examples": 200}
OF_TEXT = {"max_steps": 2, "validation_examples": 10, "test_examples": 10}
SEEDS = {"smoke": 2}


def small(name: str) -> list[str]:
    """Return the options that reduce a suite."""
    suite = shipped(name)
    settings: dict[str, Any] = {}
    for place, experiment in suite.experiments.items():
        protocol = OF_TEXT if experiment.dataset.domains else PROTOCOL
        settings |= {f"experiments.{place}.protocol.{key}": value for key, value in protocol.items()}
        named = {model for claim in suite.claims.values() for model in claim.models or ()} & experiment.models.keys()
        if named:
            models = {model: experiment.models[model].model_dump() for model in sorted(named)}
            settings[f"experiments.{place}.models"] = json.dumps(models)
        if experiment.tasks.kind == "class-incremental":
            settings[f"experiments.{place}.tasks.group_size"] = 5
        elif experiment.tasks.kind == "domains":
            settings[f"experiments.{place}.tasks.order"] = ["code", "prose"]
        elif experiment.tasks.settings.get("count", 1) > 2:
            settings[f"experiments.{place}.tasks.count"] = 2
        if experiment.tasks.model_dump().get("examples_per_task"):
            settings[f"experiments.{place}.tasks.examples_per_task"] = 200
    for optimizer, its in suite.optimizers.items():
        if its.target == "switch":
            settings[f"optimizers.{optimizer}.at"] = [1]
        if its.target == "gradient-noise":
            settings[f"optimizers.{optimizer}.steps"] = [1]
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    kept = [word for optimizer in FEW.get(name, ()) for word in ("--optimizer", optimizer)]
    return ["--seeds", str(SEEDS.get(name, 1)), *kept, *chosen]


FEW = {
    "plasticity-full": ("adam", "shampoo", "fresh-adam"),
    "continual-full": ("adam", "adamw", "shampoo"),
    "collapse": ("sgd", "adamw"),
    "imbalance": ("adamw", "shampoo"),
    "shortcuts": ("sgd", "adamw"),
    "finetune": ("adamw", "adamw-muon", "sam-adamw"),
    "followups": ("adamw", "muon"),
    "fingerprint": ("adamw", "power-sgd"),
}
"""Optimizers that represent a suite; most of its optimizers are also in other suites."""
ALIKE = ("collapse", "imbalance", "shortcuts")
"""Suites that differ from `followups` only in data and metrics, which are tested separately."""
AGAIN = ("basins", "smoke", "text")
"""Suites that are repeated from their run: switches, pairs and controls; images; text."""
TITLES = {
    "sparsity": ["weights kept", "Twins"],
    "basins": ["Switching optimizers", "One solution against another"],
}


class KeptPool(Pool):
    """A pool that outlives its run, to save the seconds of starting processes again."""

    def close(self) -> None: ...

    def end(self) -> None:
        super().close()


@pytest.fixture(scope="module")
def _kept_pools() -> Iterator[None]:
    pools: dict[tuple[str, int], KeptPool] = {}

    def kept(backend: Backend) -> KeptPool:
        if (key := (backend.device, backend.jobs)) not in pools:
            pools[key] = KeptPool(backend)
        else:
            backend.close()
        return pools[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optbench.execution.session.Pool", kept)
        yield
    for pool in pools.values():
        pool.end()


def run_suite(suite: str, to: Path, jobs: int, *words: str) -> Path:
    command = ["run", suite, "--runs-dir", str(to.parent), "--name", to.name, "--jobs", str(jobs), *words]
    assert main([*command, "--device", "cpu", "--quiet"]) == 0
    return to


@pytest.fixture(scope="module")
def small_run(request: pytest.FixtureRequest, _kept_pools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a shipped suite, reduced, with two processes; the run has the name of the suite."""
    name = request.param
    return run_suite(name, tmp_path_factory.mktemp("small") / name, 2, *small(name))


@pytest.mark.parametrize(
    "small_run",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ())
        for name in sorted(shipped_suites().keys() - NEEDS_DATA)
    ],
    indirect=True,
)
def test_every_shipped_suite_runs_when_reduced(small_run: Path) -> None:
    run = read_run(small_run)
    resolved = small_run / "suite.yaml"
    assert dump_suite(load_suite(resolved)) == resolved.read_text(encoding="utf-8"), (
        "the resolved suite repeats the run"
    )
    assert set(run.table("trials")["status"].to_pylist()) == {"ok"}
    report = small_run.parent / "report.md"
    assert main(["report", str(small_run), "--format", "markdown", "-o", str(report)]) == 0
    text = report.read_text()
    for title in TITLES.get(small_run.name, []):
        assert title in text
    if small_run.name == "basins":
        switched = {trial.optimizer for trial in trials(load_suite(small_run / "suite.yaml"))}
        values = [value for value in run.pairs["value"].to_pylist() if value is not None]
        assert len(switched) == 13
        assert len(values) == run.pairs.num_rows, "every pair has a value"


@pytest.mark.parametrize(
    "small_run",
    [
        pytest.param(name, marks=() if name in AGAIN else pytest.mark.slow)
        for name in sorted(shipped_suites().keys() - NEEDS_DATA)
    ],
    indirect=True,
)
def test_every_shipped_suite_gives_the_same_tables_when_repeated(small_run: Path) -> None:
    # With one process, so that cohorts have another size.
    again = run_suite(str(small_run / "suite.yaml"), small_run.parent / "again", 1)
    assert (again / "suite.yaml").read_bytes() == (small_run / "suite.yaml").read_bytes()
    assert_same_tables(small_run, again)
    first, second = read_run(small_run), read_run(again)
    assert first.pairs.equals(second.pairs)
    assert first.table("sketches").equals(second.table("sketches"))
    places = [place for place in first.table("trials")["checkpoint"].to_pylist() if place is not None]
    for place in places:
        before, after = first.checkpoint(place), second.checkpoint(place)
        assert before is not None
        assert after is not None
        assert {name: array.tobytes() for name, array in before.items()} == {
            name: array.tobytes() for name, array in after.items()
        }
