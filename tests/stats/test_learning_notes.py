"""Parts of notes that reports determine themselves are removed from what they show."""

import pytest

from optbench.stats.learning import without_learning


@pytest.mark.parametrize("words", ["its start", "its initial value"], ids=["0.2.0", "now"])
def test_notes_on_tasks_not_learnt_are_removed_whatever_version_wrote_them(words: str) -> None:
    note = f"no better than guessing right after training (task 2); training loss above 10 times {words} (tasks 1, 3-5)"
    assert without_learning(note) == ""
    assert without_learning(f"{note}; resumed after task 2") == "resumed after task 2"
