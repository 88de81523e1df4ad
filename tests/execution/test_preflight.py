"""Settings that are refused in one line before anything is trained, leaving no run behind; the sizes that this check
counts agree with those of training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from optbench.data import Dataset
from optbench.data.dataset import Split
from optbench.errors import UsageError
from optbench.suite.protocol import Protocol
from optbench.suite.schema import TaskSettings
from optbench.tasks import TaskFamily
from tests.execution.test_run_directories import QUICK
from tests.refusals import refusal

SUITE = """
name: sizes
seeds: 3
optimizers: {{sgd: {{target: sgd, lr: 0.1}}}}
experiments:
  good:
    tasks: {{kind: permuted, count: 1}}
    models: {{net: {{kind: mlp, hidden: [4]}}}}
    protocol: &p {{max_steps: 2, train_examples: 640, validation_examples: 32, test_examples: 300, batch_size: 32}}
  last:
    tasks: {tasks}
    models: {{net: {{kind: mlp, hidden: [4]}}}}
    protocol: {{<<: *p, {protocol}}}
"""
PAIRS = "{kind: class-incremental}"
SHUFFLED = "{kind: class-incremental, group_size: 1, order: shuffled}"
PERMUTED = "{kind: permuted, count: 9}"
# Tasks, protocol, and part of the message
CASES = {
    "all tasks": (PERMUTED, "batch_size: 641", "batch_size: expected at most the 640 training examples of task 1"),
    "one of the tasks": (PAIRS, "batch_size: 130", "batch_size: expected at most the"),
    "a task of one of the seeds": (
        SHUFFLED,
        "validation_examples: 300, batch_size: 60",
        "batch_size: expected at most the",
    ),
    "no examples": (PAIRS, "train_examples: 5, batch_size: 1", "so a task would be empty"),
    "groups": ("{kind: class-incremental, group_size: 3}", "max_steps: 2", "experiments.last.tasks.group_size"),
    "more than there are": (
        PAIRS,
        "train_examples: 60001",
        "experiments.last.protocol.train_examples: expected at most 59968",
    ),
    "all held out": (
        PAIRS,
        "validation_examples: 60000",
        "experiments.last.protocol.validation_examples: expected at most 59999",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_in_the_last_experiment_is_found_before_the_first_is_trained(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, protocol, words = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SUITE.format(tasks=tasks, protocol=protocol), encoding="utf-8")
    said = refusal(capsys, tmp_path, "run", "s.yaml", *QUICK)
    assert words in said
    place = re.match(r"s\.yaml:(\d+):(\d+): experiments\.last\.(tasks|protocol)", said)
    assert place is not None
    assert Path("s.yaml").read_text().splitlines()[int(place[1]) - 1].strip().startswith(place[3])


@pytest.mark.parametrize("name", ["more than there are", "all held out"])
def test_a_dry_run_checks_sizes_of_shipped_datasets(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, protocol, words = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SUITE.format(tasks=tasks, protocol=protocol), encoding="utf-8")
    dry = refusal(capsys, tmp_path, "run", "s.yaml", "--dry-run")
    assert words in dry
    assert dry == refusal(capsys, tmp_path, "run", "s.yaml", *QUICK), "the run gives the same message"


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.builds(TaskSettings.of, kind=st.just("permuted"), count=st.integers(1, 4)),
        st.builds(TaskSettings.of, kind=st.just("rotated"), angles=st.lists(st.floats(0, 90), min_size=1, max_size=3)),
        st.builds(
            TaskSettings.of,
            kind=st.just("class-incremental"),
            group_size=st.sampled_from([1, 2, 3, 6]),
            order=st.sampled_from(["fixed", "shuffled"]),
        ),
    ),
    st.lists(st.integers(0, 5), min_size=40, max_size=120),
    st.integers(1, 8),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True),
)
def test_counted_sizes_equal_those_of_the_trained_tasks(
    tasks: TaskSettings, labels: list[int], batch: int, seeds: list[int]
) -> None:
    """Compare the minimum and every reported size with counts over the arrays of all tasks and seeds."""
    half = Split(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.tensor(labels))
    dataset = Dataset("made", half, half, 6, (0.1,), (0.3,))
    protocol = Protocol(batch_size=batch, validation_examples=len(labels) // 4)
    try:
        family = TaskFamily(tasks, dataset, protocol, 0, torch.device("cpu"))
    except UsageError as error:
        with pytest.raises(UsageError, match=r"so a task would be empty"):
            TaskFamily(tasks, dataset.without_pixels(), protocol, 0, torch.device("cpu"))
        assume("empty" not in str(error))
        raise
    light = TaskFamily(tasks, dataset.without_pixels(), protocol, 0, torch.device("cpu"))
    sizes = {(seed, task): len(family.sequence(seed).train(task)) for seed in seeds for task in range(family.count)}
    found = {(seed, task): size for seed, task, size in light.train_sizes(seeds)}
    assert found.items() <= sizes.items()
    assert min(found.values()) == min(sizes.values())
