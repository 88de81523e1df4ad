"""Shared settings of the tests: one thread, and small experiments on the embedded MNIST."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hypothesis
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck

from optbench.cli import main
from optbench.data import Dataset, Split, load
from optbench.engine import TrialResult, Workspace, train
from optbench.engine.transfer import load_transfer
from optbench.execution.backend import Backend
from optbench.execution.messages import Compare, Compared, Divide, Failed, Finished, Job, Train, Unit, halved
from optbench.execution.work import do
from optbench.plan import Cohort, cohorts, complete, trials
from optbench.store.interim import Begun
from optbench.store.tables import ALL_TABLES, TABLES, TrialRow
from optbench.suite import Suite

# The time to generate an example depends on the load of the machine.
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process a contiguous part of the tests, so that the fixtures of a module are created in only one."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None  # -n implies load


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # as in worker processes; bit-identity is guaranteed only for one thread


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load("mnist")


@pytest.fixture(scope="session")
def coarse_mnist() -> Dataset:
    """MNIST at 7 x 7 pixels, for tests of many optimizers, since some decompose a matrix with one row per pixel."""
    mnist = load("mnist")  # not the fixture `mnist`, which a module may override with this one
    halves = {
        name: Split(half.inputs[..., 2::4, 2::4].contiguous(), half.targets)
        for name, half in (("train", mnist.train), ("test", mnist.test))
    }
    return dataclasses.replace(mnist, **halves)


CLOCK = ["train_seconds", "optimizer_seconds", "evaluation_seconds", "gradients"]
"""Columns of `trials` that depend on the clock."""


class PoolHere:
    """A replacement for `execution.pool.Pool` that trains in this process, to save the time of starting others."""

    def __init__(self, backend: Backend) -> None:
        self.device = torch.device(backend.device)
        self._backend = backend

    def kill(self) -> None:
        """Do nothing, as there are no processes."""

    def train(
        self,
        units: Sequence[Train],
        job: Job,
        more: Callable[[], Sequence[Compare]] = tuple,
        places: Callable[[Cohort], Mapping[str, Begun]] = lambda cohort: {},
        held: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        take: Callable[[list[Unit], int], Unit] = list.pop,
    ) -> Iterator[Finished | Compared | Failed]:
        workspaces: dict[str, Workspace] = {}
        waiting: list[Unit] = [*reversed(more()), *reversed(units)]
        while waiting:
            unit = take(waiting, len(waiting) - 1)
            if unit.experiment not in workspaces:
                experiment = job.suite.experiments[unit.experiment]
                dataset, other = load(experiment.dataset), load_transfer(experiment, None)
                workspaces[unit.experiment] = Workspace.of(experiment, dataset, job.suite.seed, self.device, other)
            answer = do(unit, workspaces[unit.experiment], lambda progress: None, job.interim)
            if isinstance(answer, Divide):
                waiting += reversed(halved(answer, places))
            else:
                yield answer
                waiting[:0] = reversed(more())

    def close(self) -> None:
        self._backend.close()


@pytest.fixture(scope="module")
def _train_here() -> Iterator[None]:
    """Train in this process; used by modules that do not test processes (`pytestmark = usefixtures("_train_here")`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optbench.execution.session.Pool", PoolHere)
        patch.setattr("optbench.execution.nursery.FORKS", False)  # start no process in advance
        yield


def tables(path: Path) -> dict[str, pd.DataFrame]:
    """Read the tables of a run without the columns that depend on the clock."""
    files = {name: path / f"{name}.parquet" for name in ALL_TABLES}
    found = {name: pd.read_parquet(file) for name, file in files.items() if name in TABLES or file.exists()}
    found["trials"] = found["trials"].drop(columns=CLOCK)
    return found


def assert_same_tables(a: Path, b: Path) -> None:
    one, other = tables(a), tables(b)
    assert one.keys() == other.keys()
    for name, table in one.items():
        pd.testing.assert_frame_equal(table, other[name], check_exact=True)


PROTOCOL: dict[str, Any] = {
    "batch_size": 32,
    "max_epochs": 2,
    "evaluate_every": 0.5,
    "early_stopping": {"patience": 1},
    "validation_examples": 200,
    "train_examples": 800,
    "test_examples": 200,
}
FORMATS = ("terminal", "markdown", "html", "latex", "csv", "json")
PERMUTED = {"kind": "permuted", "count": 2}
PAIRS = {"kind": "class-incremental"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one intra-op thread as in a worker, so that a member alone has the same bits as among others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_suite(
    optimizers: dict[str, dict[str, Any]],
    *,
    tasks: dict[str, Any] = PERMUTED,
    model: dict[str, Any] | None = None,
    seeds: list[int] | int = 3,
    metrics: list[str] | None = None,
    **protocol: Any,
) -> Suite:
    """Return a suite of one experiment `small` with the model `net`, which trains in a second."""
    suite = Suite.model_validate(
        {
            "name": "test",
            "seeds": seeds,
            "optimizers": optimizers,
            "experiments": {
                "small": {
                    "tasks": tasks,
                    "models": {"net": model or {"kind": "mlp", "hidden": [20]}},
                    "protocol": {**PROTOCOL, **protocol},
                    "metrics": metrics,
                }
            },
        }
    )
    return complete(suite)


def run_file(folder: Path, text: str, name: str = "made") -> Path:
    """Write the suite file `name` in `folder` and run it from the command line; return the run directory."""
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    words = ["--runs-dir", str(folder / "runs"), "--name", name, "--device", "cpu", "--jobs", "1", "--quiet"]
    assert main(["run", str(file), *words]) == 0
    return folder / "runs" / name


NEEDS_DATA = {"cifar"}
"""Shipped suites whose data is not part of the package; see tests/cli/test_cifar_suite.py."""


def report(path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of `optbench report` for a run."""
    capsys.readouterr()
    assert main(["report", str(path), "--format", form]) == 0
    return capsys.readouterr().out


def train_suite(suite: Suite, dataset: Dataset, only: int | None = None) -> list[TrialResult]:
    """Train all trials of a small suite in their cohorts, or trial number `only` alone; return results in order."""
    chosen = trials(suite)
    chosen = chosen if only is None else [chosen[only]]
    workspace = Workspace.of(suite.experiments["small"], dataset, suite.seed, torch.device("cpu"))
    results = [result for cohort in cohorts(chosen) for result in train(cohort, workspace, lambda progress: None)]
    order = [trial.id for trial in chosen]
    return sorted(results, key=lambda result: order.index(result.trial.id))


def trial_row(result: TrialResult) -> TrialRow:
    return next(row for row in result.rows if isinstance(row, TrialRow))


def same_bits(a: TrialResult, b: TrialResult) -> bool:
    """Return True if two results agree in every row, except for times, and in every bit of the weights."""
    if (a.weights is None) != (b.weights is None):
        return False
    if (
        a.weights is not None
        and b.weights is not None
        and not all(map(torch.equal, a.weights.values(), b.weights.values()))
    ):
        return False
    return [timeless(row) for row in a.rows] == [timeless(row) for row in b.rows]


def timeless(row: object) -> str:
    """Return a row as text, exact to the last bit, without fields that depend on the clock."""
    fields = {name: value for name, value in vars(row).items() if not name.endswith(("_seconds", "gradients"))}
    return json.dumps(fields)
