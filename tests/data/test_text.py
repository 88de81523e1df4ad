"""Text: how many bytes tokens stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optbench.data import Dataset, Split
from optbench.errors import DataError


def next_tokens(*rows: list[int]) -> Split:
    windows = torch.tensor(rows)
    return Split(windows[:, :-1], windows[:, 1:])


TEXT = next_tokens([0, 1, 2], [2, 1, 0])


def test_a_dataset_says_how_many_bytes_its_tokens_stand_for() -> None:
    found = Dataset("text", TEXT, TEXT, 3, token_bytes=torch.tensor([1, 2, 0]))
    assert found.token_bytes is not None
    assert found.token_bytes[found.test.targets].sum() == (2 + 0) + (2 + 1)
    assert Dataset("text", TEXT, TEXT, 3).token_bytes is None


@pytest.mark.parametrize(
    ("token_bytes", "message"),
    [
        ([1, 1, 1], "expected a tensor, got list"),
        (torch.ones(3), "expected int64 of shape (3,), one for each class, got float32 of shape (3,)"),
        (torch.tensor([1, 1]), "expected int64 of shape (3,), one for each class, got int64 of shape (2,)"),
        (torch.tensor([1, 1, -1]), "expected numbers of bytes, 0 or more, got -1"),
        (torch.tensor([0, 0, 0]), "expected train targets that stand for text, got only tokens of 0 bytes"),
    ],
)
def test_wrong_bytes_of_tokens_are_refused(token_bytes: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        Dataset("text", TEXT, TEXT, 3, token_bytes=token_bytes)
    assert str(error.value) == f"dataset text: token_bytes: {message}"


@pytest.mark.parametrize(
    ("half", "form"),
    [
        (Split(torch.zeros(2, 3), torch.tensor([0, 1])), "float32 (3,) with one target"),
        (Split(torch.zeros(2, 3).long(), torch.tensor([0, 1])), "int64 (3,) with one target"),
    ],
)
def test_only_text_with_a_target_at_every_position_has_bytes(half: Split, form: str) -> None:
    with pytest.raises(DataError, match="token_bytes: expected None") as error:
        Dataset("moons", half, half, 2, token_bytes=torch.tensor([1, 1]))
    assert form in str(error.value)
