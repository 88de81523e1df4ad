"""Metadata of checkpoints, and identical bytes at every save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load, save

from optbench.store.run import _sorted_metadata


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=6))
def test_metadata_are_sorted_and_nothing_else_changes(metadata: dict[str, str]) -> None:
    weights = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros((0, 2), np.float32)}
    found = {_sorted_metadata(save(weights, metadata)) for _ in range(3)}
    assert len(found) == 1
    read = load(data := found.pop())
    assert all(np.array_equal(read[name], weights[name]) for name in weights)
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0


def test_metadata_can_be_read_back(tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    file.write_bytes(_sorted_metadata(save({"a": np.ones(2)}, {"trial": "é", "seed": "1", "optimizer": "sgd"})))
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"optimizer": "sgd", "seed": "1", "trial": "é"}
    assert file.read_bytes().index(b'"optimizer"') < file.read_bytes().index(b'"trial"')
