"""Symmetric products computed in lower panels agree with general products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optbench.optimizers.symmetric import PANEL, add_gram, panels, times, whole


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL, 400])
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("transposed", [False, True])
def test_panels_contain_the_sum_of_products(n: int, k: int, transposed: bool) -> None:
    lower, expected = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for step, (decay, weight) in enumerate([(0.0, 2.0), (0.5, 1.0), (1.0, 0.25)]):
        x = normal(k, n, seed=step).mT if transposed else normal(n, k, seed=step)
        add_gram(lower, x, decay, weight)
        expected = decay * expected + weight * x @ x.mT
    torch.testing.assert_close(whole(lower), expected)
    v = normal(n, seed=9)
    torch.testing.assert_close(times(lower, v), expected @ v)
    if n > PANEL:
        assert not lower[0, PANEL:].any(), "entries right of the panels are not written"
    assert [row for first, end in panels(n) for row in range(first, end)] == list(range(n))


def test_previous_values_are_ignored_at_decay_zero() -> None:
    lower = torch.full((3, 3), torch.nan, dtype=torch.float64)
    add_gram(lower, normal(3, 2), 0.0, 1.0)
    assert lower.isfinite().all()
