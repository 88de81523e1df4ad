"""Units are handed to workers, and results survive errors while the next unit is handed out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from optbench.cli import main
from optbench.execution.local import LocalProcesses, LocalWorker
from optbench.execution.messages import Finished, Job, Train
from optbench.execution.nursery import FORKS, Nursery
from optbench.execution.pool import Pool
from optbench.execution.schedule import make_plan, spread
from optbench.suite import dump_suite
from tests.conftest import PoolHere, small_suite

OURS = {"sgd": {"target": "sgd"}, "adam": {"target": "adam"}}
SHORT: dict[str, Any] = {"seeds": 1, "train_examples": 64}
WORDS = ["--device", "cpu", "--jobs", "1", "--quiet"]


def calling(before: Callable[[], None], method: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """Wrap a method so that its n-th call runs `before` first."""
    calls = iter(range(1, 100))

    def called(*arguments: Any, **named: Any) -> Any:
        if next(calls) == nth:
            before()
        return method(*arguments, **named)

    return called


def test_a_worker_gets_its_next_unit_before_its_result_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(small_suite(OURS, **SHORT))
    first, second = units = [Train(cohort, {}) for cohort in spread(plan, 1, 8)]
    order: list[tuple[str, str]] = []
    give = LocalWorker.give

    def noted(worker: LocalWorker, unit: Train, job: Job) -> None:
        order.append(("given", unit.id))
        give(worker, unit, job)

    monkeypatch.setattr(LocalWorker, "give", noted)
    pool = Pool(LocalProcesses(["cpu"]))
    try:
        events = pool.train(units, Job(plan.suite, None, tmp_path, {}))
        order.extend(("taken", event.cohort.id) for event in events if isinstance(event, Finished))
    finally:
        pool.close()
    assert order == [("given", first.id), ("given", second.id), ("taken", first.id), ("taken", second.id)]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def refuse() -> None:
    raise OSError("no more processes")


@pytest.fixture
def _heeds_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs ignore it
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_interrupts")
@pytest.mark.parametrize(("owner", "name"), [(LocalWorker, "give"), (Pool, "_hand_out")], ids=["before", "after"])
def test_an_interrupt_around_a_write_neither_loses_nor_duplicates_the_result(
    owner: type, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(dump_suite(small_suite(OURS, **SHORT)))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, calling(interrupt, getattr(owner, name), 2))  # at the end of the first cohort
        assert main(["run", str(tmp_path / "suite.yaml"), "--runs-dir", str(tmp_path), "--name", "cut", *WORDS]) == 130
    assert "interrupted; 1 finished trial is kept" in capsys.readouterr().err
    kept = pd.read_parquet(tmp_path / "cut" / "trials.parquet")
    monkeypatch.setattr("optbench.execution.session.Pool", PoolHere)
    monkeypatch.setattr("optbench.execution.nursery.FORKS", False)  # start no process
    assert main(["run", "--resume", str(tmp_path / "cut"), *WORDS]) == 0
    found = pd.read_parquet(tmp_path / "cut" / "trials.parquet")
    assert sorted(found.optimizer) == sorted(OURS)
    same = found[found.optimizer.isin(kept.optimizer)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, kept, check_exact=True)  # even the seconds: it was not trained again


@pytest.mark.skipif(not FORKS, reason="workers are forked only on Linux")
def test_failing_to_start_a_process_does_not_lose_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the next optimizer, a worker that has run a user's code is replaced, which starts a process."""
    (tmp_path / "mine.py").write_text("from torch.optim import SGD\nclass A(SGD): ...\nclass B(SGD): ...\n")
    users = {name: {"target": f"{tmp_path}/mine.py:{name.upper()}", "lr": 0.1} for name in ("a", "b")}
    (tmp_path / "suite.yaml").write_text(dump_suite(small_suite(users, **SHORT)))
    monkeypatch.setattr(Nursery, "start", calling(refuse, Nursery.start, 2))
    words = ["--runs-dir", str(tmp_path), "--name", "cut", *WORDS]
    assert main(["run", str(tmp_path / "suite.yaml"), *words]) == 70
    assert "OSError: no more processes" in capsys.readouterr().err
    assert len(pd.read_parquet(tmp_path / "cut" / "trials.parquet")) == 1
