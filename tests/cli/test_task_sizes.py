"""The number of examples that a task draws is checked before data is loaded, also by a dry run."""

from __future__ import annotations

import pytest

from optbench.cli import main


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (
            70_000,
            "tasks.examples_per_task: expected at most 59000, the number of training examples after the",
        ),
        (8, "protocol.batch_size: expected at most 8, the number of examples in a task, got 16"),
    ],
)
def test_a_dry_run_refuses_tasks_with_too_many_examples(
    examples: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = f"experiments.permuted.tasks.examples_per_task={examples}"
    assert main(["run", "plasticity", "--experiment", "permuted", "--set", setting, "--dry-run"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
