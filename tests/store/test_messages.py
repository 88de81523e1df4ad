"""Messages of users' code as they are stored in tables."""

from __future__ import annotations

from pathlib import Path

from optbench.store import read_run
from tests.written_runs import trial_row, write_run

SUITE = """
name: told
seeds: 1
optimizers: {sgd: {target: sgd}}
experiments: {one: {tasks: {kind: permuted, count: 2}, models: {m: {kind: mlp, hidden: [10]}}}}
"""


def test_control_characters_in_a_message_are_stored_as_escapes(tmp_path: Path) -> None:
    path = write_run(tmp_path, SUITE, lambda trial: [trial_row("failed", "a \x1b[31mred\u202e é\nline", "0")])
    assert read_run(path).table("trials")["error_message"].to_pylist() == ["a \\x1b[31mred\\u202e é\nline"]
