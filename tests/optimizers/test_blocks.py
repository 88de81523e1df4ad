"""Shampoo in blocks: every block is a separate matrix, blocks tile the parameter, and nothing else changes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from optbench.data import Dataset
from optbench.optimizers.blocks import block_side, joined, parts
from optbench.optimizers.shampoo import Shampoo
from tests.conftest import same_bits, small_suite, train_suite, trial_row

pytestmark = [pytest.mark.filterwarnings("ignore:Shampoo. small_side"), pytest.mark.usefixtures("one_thread")]
SHAPES: list[tuple[int, ...]] = [(7, 10), (6, 3, 2, 2), (9,), ()]
SETTINGS: list[dict[str, Any]] = [
    {"momentum": 0.9},
    {"preset": "adam-grafted", "precondition_frequency": 3, "small_side": 2},
    {"structure": "diagonal-factor"},
    {"root": "newton", "epsilon": 1e-3},
    {"epsilon": 1e-3},  # factors are accumulated in float32
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(starts: list[Tensor], gradients: list[list[Tensor]], **settings: Any) -> tuple[list[Tensor], Shampoo]:
    parameters = [nn.Parameter(start.clone()) for start in starts]
    optimizer = Shampoo(parameters, **settings)
    for i, step in enumerate(gradients):
        if i == 4:
            optimizer.begin_task()
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [p.detach() for p in parameters], optimizer


def gradients(shapes: list[tuple[int, ...]], steps: int) -> list[list[Tensor]]:
    return [[normal(*shape, seed=10 * t + i) for i, shape in enumerate(shapes)] for t in range(steps)]


@given(m=st.integers(1, 12), n=st.integers(1, 12), size=st.none() | st.integers(1, 13), longest=st.integers(1, 13))
def test_blocks_tile_the_matrix_and_none_is_longer_than_its_size(
    m: int, n: int, size: int | None, longest: int
) -> None:
    x = torch.arange(2.0 * m * n).view(2, m, n)
    found = parts(m, n, size, longest)
    assert len(found) <= 4
    assert torch.equal(joined({part: part.cut(x) for part in found}, x), x)
    assert sum(part.count * part.height * part.width for part in found) == m * n
    for part in found:
        assert part.height <= block_side(m, size, longest)
        assert part.width <= block_side(n, size, longest)
        assert part.cut(x).shape == (2 * part.count, part.height, part.width)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_block_that_covers_the_matrix_changes_nothing(settings: dict[str, Any]) -> None:
    starts = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    given = gradients(SHAPES, 8)
    whole, one = trained(starts, given, **settings)
    covered, other = trained(starts, given, block_size=24, **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole, covered, strict=True))
    for p, q in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert one.state[p].keys() == other.state[q].keys()
        assert all(torch.equal(value, other.state[q][name]) for name, value in one.state[p].items())


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.get("preset") != "adam-grafted"])
def test_every_block_is_updated_like_a_separate_parameter(settings: dict[str, Any]) -> None:
    shape, size = (7, 10), 4
    start, given = normal(*shape), gradients([shape], 8)
    (together,), _ = trained([start], given, block_size=size, **settings)
    places = [*itertools.product((slice(0, 4), slice(4, 7)), (slice(0, 4), slice(4, 8), slice(8, 10)))]
    apart, _ = trained([start[p] for p in places], [[step[0][p] for p in places] for step in given], **settings)
    for place, found in zip(places, apart, strict=True):
        assert torch.equal(together[place], found), place
    (whole,), _ = trained([start], given, **settings)
    assert settings.get("structure") == "diagonal-factor" or not torch.allclose(whole, together, rtol=1e-3)


def test_grafting_uses_norms_of_the_whole_parameter() -> None:
    given = gradients([(7, 10)], 5)
    cut, _ = trained([normal(7, 10)], given, block_size=4, preset="adam-grafted", lr=1.0)
    before, _ = trained([normal(7, 10)], given[:-1], block_size=4, preset="adam-grafted", lr=1.0)
    adam = nn.Parameter(normal(7, 10))
    optimizer = torch.optim.Adam([adam], lr=1.0)
    for (gradient,) in given:
        last = adam.detach().clone()
        adam.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close((cut[0] - before[0]).norm(), (adam.detach() - last).norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_member_alone_equals_the_member_among_others(settings: dict[str, Any]) -> None:
    shapes = [(5, *shape) for shape in SHAPES]
    starts, given = [normal(*shape, seed=i) for i, shape in enumerate(shapes)], gradients(shapes, 6)
    lr = torch.tensor([0.1, 0.2, 0.3, 0.01, 0.02], dtype=torch.float64)
    together, _ = trained(starts, given, stacked=True, block_size=4, **{**settings, "lr": lr})
    for members in ([2], [4, 1]):
        own = [[gradient[members] for gradient in step] for step in given]
        few, optimizer = trained(
            [s[members] for s in starts], own, stacked=True, block_size=4, **{**settings, "lr": lr[members]}
        )
        assert all(torch.equal(a, b[members]) for a, b in zip(few, together, strict=True))
        assert all(len(v) == len(members) for state in optimizer.state.values() for v in state.values())
        assert optimizer.fallbacks().tolist() == [0] * len(members)


def test_training_from_a_saved_state_continues_identically() -> None:
    starts, given = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)], gradients(SHAPES, 9)
    settings: dict[str, Any] = {"block_size": 4, "momentum": 0.5, "preset": "adam-grafted"}
    straight, _ = trained(starts, given, **settings)
    half, optimizer = trained(starts, given[:6], **settings)
    parameters = [nn.Parameter(p.clone()) for p in half]
    resumed = Shampoo(parameters, lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in given[6:]:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        resumed.step()
    assert all(torch.equal(a, b.detach()) for a, b in zip(straight, parameters, strict=True))


def test_the_accelerator_path_agrees_with_the_cpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(2, *shape) for shape in SHAPES]
    starts, given = [normal(*shape, seed=i) for i, shape in enumerate(shapes)], gradients(shapes, 5)
    settings: dict[str, Any] = {"stacked": True, "block_size": 4, "precondition_frequency": 1, "epsilon": 1e-3}
    expected, here = trained(starts, given, **settings)
    with monkeypatch.context() as patched:
        for module in ("shampoo", "shampoo_roots", "factors", "roots"):
            patched.setattr(f"optbench.optimizers.{module}.one_by_one", lambda x: False)
        found, there = trained(starts, given, **settings)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        moved = Shampoo([nn.Parameter(p.clone()) for p in expected], **settings)
        moved.load_state_dict(copy.deepcopy(here.state_dict()))
        for p in moved.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        assert moved.upcoming() is None, "eigh may synchronise to check its convergence"
    for p, q in zip(moved.param_groups[0]["params"], there.param_groups[0]["params"], strict=True):
        assert moved.state[p].keys() == there.state[q].keys()
        for name, value in there.state[q].items():
            torch.testing.assert_close(moved.state[p][name], value, rtol=1e-3, atol=1e-5)


def test_an_embedding_has_no_factor_of_its_vocabulary() -> None:
    table = nn.Parameter(normal(30_522, 6))
    for size, sides in ((None, {(1, 30_522), (1, 6, 6)}), (4, {(1, 1, 30_522), (1, 1, 4, 4), (1, 1, 2, 2)})):
        optimizer = Shampoo([table], block_size=size)
        table.grad = normal(30_522, 6, seed=1)
        optimizer.step()
        state = optimizer.state[table]
        assert {tuple(v.shape) for k, v in state.items() if k.endswith(("left", "right"))} == sides


def test_a_trial_alone_equals_the_trial_in_a_cohort(coarse_mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": "shampoo", "block_size": 20, "lr": [0.1, 0.3]}}, seeds=2, max_epochs=1)
    together = train_suite(suite, coarse_mnist)
    assert {trial_row(result).status for result in together} == {"ok"}
    for i in (0, 3):
        assert same_bits(train_suite(suite, coarse_mnist, only=i)[0], together[i])


def test_an_invalid_block_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block_size: expected an integer of at least 1, got 0"):
        Shampoo([nn.Parameter(normal(2, 2))], block_size=0)


@pytest.mark.parametrize("size", [None, 4, 100])
@pytest.mark.parametrize("settings", [*SETTINGS, {"max_side": 8}, {"root_precision": "float64"}, {"small_side": 4}])
def test_the_planned_state_equals_the_actual_state(size: int | None, settings: dict[str, Any]) -> None:
    starts = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    planned, _ = Shampoo([nn.Parameter(s.to("meta")) for s in starts], block_size=size, **settings).planned()
    _, optimizer = trained(starts, gradients(SHAPES, 1), block_size=size, **settings)
    held = sum(value.untyped_storage().nbytes() for state in optimizer.state.values() for value in state.values())
    assert planned == held
