"""Units of work on local and remote workers: retries, refusals, and the number of units in flight.

The backend is scripted: each worker sends a given list of messages in order.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from optbench.cli import main
from optbench.errors import DeviceError, UsageError, WorkerError
from optbench.execution import elsewhere
from optbench.execution.backend import Died, Lost, Message, Ready, Refused
from optbench.execution.backends import Place
from optbench.execution.elsewhere import refusal, versions
from optbench.execution.messages import Failed, Finished, Job, Said, Train, Unit
from optbench.execution.pool import LOST_AT_START, Pool
from optbench.execution.schedule import make_plan, spread
from optbench.plan import Cohort
from optbench.store.interim import Begun
from tests.conftest import small_suite

SUITE = small_suite({f"sgd-{i}": {"target": "sgd", "lr": 0.1, "momentum": 0.1 * i} for i in range(6)}, seeds=2)
DONE = "done"
"""In a script: the worker has finished its unit."""
GONE = Lost("its node has died")


class ScriptedWorker:
    def __init__(self, backend: ScriptedBackend, script: Sequence[Message | str]) -> None:
        self.backend, self.script = backend, deque(script)
        self.is_ready = False
        self.unit: Unit | None = None

    def give(self, unit: Unit, job: Job) -> None:
        assert self.is_ready, "a unit was given to a worker that is not ready"
        assert self.unit is None
        self.unit = unit
        self.backend.given.append((self, unit))
        self.backend.most = max(self.backend.most, sum(worker.unit is not None for worker in self.backend.workers))

    def receive(self) -> Message:
        message = self.script.popleft() if len(self.script) > 1 else self.script[0]  # the last message repeats
        if isinstance(message, str):
            assert isinstance(self.unit, Train)
            cohort, self.unit = self.unit.cohort, None
            return Finished(cohort, (), ())
        if isinstance(message, Ready):
            self.is_ready = True
        return message

    def renew(self) -> None:
        self.unit = None


class ScriptedBackend:
    device = "cpu"

    def __init__(self, jobs: int, scripts: Sequence[Sequence[Message | str]]) -> None:
        self.jobs = jobs
        self.scripts = iter(scripts)
        self.workers: list[ScriptedWorker] = []
        self.given: list[tuple[ScriptedWorker, Unit]] = []
        self.most = 0

    def begin(self, job: Job, units: Sequence[Unit]) -> None: ...

    def start(self, place: int) -> ScriptedWorker:
        self.workers.append(worker := ScriptedWorker(self, next(self.scripts)))
        assert len(self.workers) <= self.jobs
        return worker

    def wait(self, workers: Sequence[Any]) -> Sequence[Any]:
        assert workers, "wait was called without workers"
        # A worker without further messages never becomes ready to read.
        return [worker for worker in workers if worker.script[0] is not None]

    def discard(self, worker: Any) -> None:
        self.workers.remove(worker)

    def close(self) -> None: ...

    def kill(self) -> None: ...


def units() -> list[Train]:
    return [Train(cohort, {}) for cohort in spread(make_plan(SUITE), 2, 1)]


def train(backend: ScriptedBackend, given: Sequence[Train] | None = None, **more: Any) -> list[Any]:
    pool = Pool(backend)
    job = Job(SUITE, None, Path("nowhere"))
    return list(pool.train(units() if given is None else given, job, **more))


def trained(events: Sequence[Any]) -> list[str]:
    return sorted(event.cohort.id for event in events if isinstance(event, Finished))


def wanted() -> list[str]:
    return sorted(unit.id for unit in units())


def test_a_lost_workers_unit_is_retried_unchanged_and_reported() -> None:
    backend = ScriptedBackend(2, [[Ready(), DONE, GONE], [Ready(), DONE], [Ready(), DONE]])
    events = train(backend)
    assert trained(events) == wanted()
    lost = [unit for _, unit in backend.given if [u.id for _, u in backend.given].count(unit.id) == 2]
    assert len({unit.id for unit in lost}) == 1
    assert all(isinstance(unit, Train) and unit.note is None for unit in lost), (
        "a note would make the tables differ from those of an undisturbed run"
    )
    (said,) = [event.text for event in events if isinstance(event, Said)]
    assert said == "a worker was lost (its node has died): 1 trial is trained again elsewhere"


def test_a_unit_fails_with_the_reason_after_its_worker_was_lost_three_times() -> None:
    first, *rest = units()
    backend = ScriptedBackend(1, [[Ready(), GONE], [Ready(), GONE], [Ready(), GONE], [Ready(), DONE]])
    events = train(backend, [first, *rest])
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.unit.id == first.id
    assert (failed.error_type, failed.message) == ("WorkerLost", "its worker was lost 3 times (its node has died)")
    assert [unit.id for _, unit in backend.given].count(first.id) == 3
    assert trained(events) == sorted(unit.id for unit in rest), "the other units are still trained"


@pytest.mark.parametrize(
    ("saved", "failures"), [([1, 2, 3, 4], 0), ([0, 1, 2, 2], 0), ([0, 0, 2, 3], 0), ([1, 1, 1], 1), ([0, 0, 0], 1)]
)
def test_only_losses_without_a_newly_saved_task_count_against_a_unit(saved: list[int], failures: int) -> None:
    """A training that takes longer than several of the jobs' time limits finishes if it saves its state in each job."""
    (unit, *_) = units()
    backend = ScriptedBackend(1, [*[[Ready(), GONE]] * 4, [Ready(), DONE]])
    tasks = iter(saved)

    def places(cohort: Cohort) -> dict[str, Begun]:
        task = next(tasks)
        return {trial.id: Begun(Path("part"), task) for trial in cohort.trials} if task else {}

    events = train(backend, [unit], places=places)
    assert len([event for event in events if isinstance(event, Failed)]) == failures
    assert len(trained(events)) == 1 - failures


def test_idle_workers_that_were_lost_unnoticed_do_not_count_against_a_unit() -> None:
    """When a node goes down, or a time limit ends all jobs, workers that are idle are lost as well."""
    gone: list[Message | str] = [Ready(), DONE, GONE]
    backend = ScriptedBackend(4, [gone, gone, gone, [Ready(), *[Said("")] * 3, GONE], [Ready(), DONE]])
    given = units()[:4]
    events = train(backend, given)
    assert trained(events) == sorted(unit.id for unit in given)
    assert len(backend.given) == 4 + 4
    assert not any(isinstance(event, Failed) for event in events)


def test_a_unit_fails_when_its_worker_process_dies_twice() -> None:
    first, *rest = units()
    backend = ScriptedBackend(1, [[Ready(), Died("SIGSEGV"), Died("SIGSEGV"), DONE]])
    events = train(backend, [first, *rest])
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.error_type, failed.message) == ("WorkerDied", "the worker process died twice (SIGSEGV)")
    assert trained(events) == sorted(unit.id for unit in rest)


def test_at_most_one_unit_per_job_is_in_flight() -> None:
    backend = ScriptedBackend(3, [[Ready(), DONE]] * 3)
    assert trained(train(backend)) == wanted()
    assert backend.most == 3


def test_a_worker_that_never_starts_does_not_block_the_run() -> None:
    """When half of a cluster is lost, its replacement actors wait for resources that never become available."""
    backend = ScriptedBackend(2, [[Ready(), DONE, GONE], [Ready(), DONE], [None]])
    assert trained(train(backend)) == wanted()


def test_a_refusal_is_reported_once_and_the_other_workers_train() -> None:
    other = Refused("torch on b: expected 2.13.0, got 2.12.0")
    backend = ScriptedBackend(3, [[other], [other], [Ready(), DONE]])
    events = train(backend)
    assert trained(events) == wanted()
    assert [event.text for event in events if isinstance(event, Said)] == [other.reason]
    assert len(backend.workers) == 1, "a refused worker is not replaced"


def test_a_run_whose_workers_are_all_refused_ends_with_the_reason() -> None:
    backend = ScriptedBackend(2, [[Refused("torch on b: expected 2.13.0, got 2.12.0")]] * 2)
    events = Pool(backend).train(units(), Job(SUITE, None, Path("nowhere")))
    with pytest.raises(WorkerError, match=r"torch on b: expected 2\.13\.0, got 2\.12\.0"):
        next(events)
    assert backend.given == []


def test_a_run_ends_when_workers_keep_being_lost_before_they_are_ready() -> None:
    backend = ScriptedBackend(1, [[GONE]] * (LOST_AT_START + 1))
    with pytest.raises(WorkerError, match="lost before they were ready: its node has died"):
        train(backend)


def test_the_unit_of_a_refused_worker_is_given_to_another() -> None:
    """A worker can be refused late, because the user's packages are only compared when the job arrives."""
    backend = ScriptedBackend(2, [[Ready(), Refused("lion on b: expected source 1, got 2")], [Ready(), DONE]])
    assert trained(train(backend)) == wanted()


# Versions


@pytest.fixture
def set_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    def changed(package: str, version: str) -> None:
        found = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == package else found(name))
        versions.cache_clear()

    yield changed
    monkeypatch.undo()
    versions.cache_clear()


def test_another_version_of_torch_or_optbench_is_refused_but_another_build_is_not(
    set_version: Callable[[str, str], None],
) -> None:
    set_version("torch", "2.13.0+cpu")
    ours = versions()
    assert refusal(ours, "b") is None
    assert refusal({**ours, "torch": "2.13.0+cu126"}, "b") is None
    assert refusal({**ours, "torch": "2.12.1+cpu"}, "b") == (
        "torch on b: expected 2.13.0+cpu, got 2.12.1+cpu; --force trains anyway and adds notes to trials"
    )
    assert refusal({**ours, "torch": "none"}, "b") is not None
    other = ours["optbench"].replace("(source ", "(source 0")
    assert str(refusal({**ours, "optbench": other}, "b")).startswith(f"optbench on b: expected {ours['optbench']}, got")


def test_versions_that_differ_from_those_of_the_runs_own_process_are_described(
    set_version: Callable[[str, str], None],
) -> None:
    ours = elsewhere.made_with()
    assert elsewhere.differences(ours) == []
    set_version("torch", "2.13.0+cu126")
    (said,) = elsewhere.differences(ours)
    assert said == f"trained with torch 2.13.0+cu126; the main process has {ours['torch']}"
    (said,) = elsewhere.differences({elsewhere.INSTRUCTIONS: "SSE9"})
    assert said.endswith("; the main process has SSE9")


# Messages of --on


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_missing_extra_is_reported_with_the_install_command(
    dry: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    assert main(["run", "smoke", "--on", "ray", "--runs-dir", str(tmp_path), *dry]) == 2
    captured = capsys.readouterr()
    assert captured.err == "optbench: --on ray: Ray is not installed: pip install 'optbench[ray]'\n"
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.execution.backends.is_installed", lambda module: True)


@pytest.mark.usefixtures("_installed")
def test_values_of_the_on_option_are_parsed() -> None:
    assert Place.parse("ray:10.0.0.1:6379") == Place("ray", "10.0.0.1:6379")
    assert Place.parse("ray") == Place("ray")
    assert Place.parse("local").is_local
    for text, said in {
        "rya": "did you mean 'ray'",
        "ray:": "expected ray:HOST:PORT",
        "ray:head": "expected ray:HOST:PORT",
        "local:2": "expected local",
    }.items():
        with pytest.raises(UsageError, match=f"--on {text}: .*{said}"):
            Place.parse(text)
    with pytest.raises(DeviceError, match="expected auto, cpu or cuda with --on ray, got cuda:1"):
        Place.parse("ray").check_device("cuda:1")


@pytest.mark.usefixtures("_installed")
def test_a_dry_run_says_where_it_would_train_without_joining_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "smoke", "--on", "ray:head:6379", "--device", "cuda", "--dry-run"]) == 0
    assert "on Ray: joins head:6379; one GPU for each worker\n" in capsys.readouterr().out
