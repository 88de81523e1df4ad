"""Shampoo agrees with pytorch-optimizer's, with a slow twin in NumPy, and with its mathematical properties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from scipy.linalg import fractional_matrix_power
from torch import Tensor, nn

from optbench.optimizers.ours import SHAMPOO_PRESETS
from optbench.optimizers.shampoo import Shampoo

pytestmark = [
    pytest.mark.filterwarnings("ignore:Shampoo. small_side"),
    pytest.mark.usefixtures("one_thread"),
]
SHAPES = [(100, 784), (10, 100), (100,), (10,)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def train(
    make: Callable[..., torch.optim.Optimizer], starts: list[Tensor], gradients: list[list[Tensor]], **settings: Any
) -> list[list[Tensor]]:
    """Return the parameters after each step; `gradients[t][i]` is the gradient of parameter i at step t."""
    parameters = [nn.Parameter(start.clone()) for start in starts]
    optimizer = make(parameters, **settings)
    history = []
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        history.append([parameter.detach().clone() for parameter in parameters])
    return history


def gradients_of(shapes: list[tuple[int, ...]], steps: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    return [[normal(*s, seed=100 * t + i, dtype=dtype) for i, s in enumerate(shapes)] for t in range(steps)]


# ---------------------------------------------------------------------------------------------- independent references


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_gupta_agrees_with_pytorch_optimizer(dtype: torch.dtype, tolerance: float) -> None:
    shapes = [(6, 9), (8, 5), (7,)]
    # The float32 tolerance is due to the reference, whose factors and SVD are float32, unlike ours.
    starts = [normal(*shape, seed=50 + i, dtype=dtype) for i, shape in enumerate(shapes)]
    gradients = gradients_of(shapes, 40, dtype)
    reference = train(
        pytorch_optimizer.Shampoo, starts, gradients, lr=0.1, matrix_eps=1e-3, preconditioning_compute_steps=1
    )
    ours = train(Shampoo, starts, gradients, lr=0.1, initial_epsilon=1e-3, epsilon=0.0, precondition_frequency=1)
    for step, (expected, actual) in enumerate(zip(reference, ours, strict=True)):
        for a, b, start in zip(actual, expected, starts, strict=True):
            moved = (b - start).norm()
            assert (a - b).norm() <= tolerance * moved, step


def test_gupta_agrees_with_pytorch_optimizer_between_refreshes() -> None:
    # The reference does not move before its first refresh at step 5; every later step must agree.
    shapes, every, initial = [(6, 4), (5, 8)], 5, 1e-2
    starts = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    gradients = gradients_of(shapes, 23)
    reference = train(
        pytorch_optimizer.Shampoo, starts, gradients, lr=1.0, matrix_eps=initial, preconditioning_compute_steps=every
    )
    ours = train(
        Shampoo,
        starts,
        gradients,
        lr=1.0,
        initial_epsilon=initial,
        epsilon=0.0,
        precondition_frequency=every,
        small_side=0,
    )
    assert all(not after.any() for after in reference[every - 2])
    for t in range(every - 1, len(gradients)):
        for i in range(len(shapes)):
            torch.testing.assert_close(ours[t][i] - ours[t - 1][i], reference[t][i] - reference[t - 1][i])


def lifted_power(matrix: np.ndarray, exponent: float, epsilon: float) -> np.ndarray:
    spectrum, basis = np.linalg.eigh(matrix)
    lifted = basis @ np.diag(np.maximum(spectrum, epsilon * spectrum.max())) @ basis.T
    return np.real(fractional_matrix_power(lifted, exponent))


def raised_power(matrix: np.ndarray, power: float, epsilon: float) -> np.ndarray:
    """Return (A + ε λ_max I)^power, which `root="newton"` computes by products."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * (values + epsilon * values.max()) ** power) @ vectors.T


def twin(start: np.ndarray, gradients: list[np.ndarray], s: dict[str, Any]) -> list[np.ndarray]:
    """Compute the equations of the class docstring for one parameter, refreshed at every step."""
    w = start.copy()
    shape = (w.shape[0], -1) if w.ndim > 1 else (-1, 1)
    rows, columns = w.reshape(shape).shape
    left, right = s["initial_epsilon"] * np.eye(rows), s["initial_epsilon"] * np.eye(columns)
    moment, second = np.zeros((rows, columns)), np.zeros((rows, columns))
    beta1, beta2 = s["momentum"], s["beta2"]
    new = 1 if beta2 == 1 else 1 - beta2
    history = []
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.reshape(shape)
        left, right = beta2 * left + new * g @ g.T, beta2 * right + new * g.T @ g
        if s["structure"] == "diagonal-factor":
            left, right = np.diag(np.diag(left)), np.diag(np.diag(right))
        average = s["momentum_form"] == "average"
        moment = beta1 * moment + (1 - beta1 if average else 1) * g
        m = moment / (1 - beta1**t) if average else moment
        correction = 1 if beta2 == 1 else 1 - beta2**t
        power = raised_power if s["root"] == "newton" else lifted_power
        if w.ndim == 1:
            u = power(left / correction, -1 / 2, s["epsilon"]) @ m
        else:
            u = power(left / correction, -1 / 4, s["epsilon"]) @ m
            u = u @ power(right / correction, -1 / 4, s["epsilon"])
        second = beta2 * second + new * g**2
        if s["grafting"] == "adam":
            u *= np.linalg.norm(m / (np.sqrt(second / correction) + 1e-8)) / np.linalg.norm(u)
        w = w * (1 - s["lr"] * s["weight_decay"]) - s["lr"] * u.reshape(w.shape)
        history.append(w)
    return history


@pytest.mark.parametrize("structure", ["kronecker", "diagonal-factor"])
@pytest.mark.parametrize("preset", list(SHAMPOO_PRESETS))
@pytest.mark.parametrize("changes", [{}, {"momentum": 0.8, "beta2": 0.9, "weight_decay": 0.1}, {"beta2": 1.0}])
@pytest.mark.parametrize("root", ["eigh", "newton"])
def test_shampoo_agrees_with_the_slow_twin(structure: str, preset: str, changes: dict[str, float], root: str) -> None:
    shapes = [(4, 6), (5,), (3, 2, 2, 2), (5, 1), (1,)]
    starts = [normal(*shape, seed=70 + i) for i, shape in enumerate(shapes)]
    gradients = gradients_of(shapes, 7)
    explicit = {"lr": 0.05, "epsilon": 1e-4, "structure": structure, "weight_decay": 0.0, "root": root, **changes}
    ours = train(Shampoo, starts, gradients, preset=preset, precondition_frequency=1, **explicit)
    # With products the largest eigenvalue is known to half a percent here, so ε = 1e-4 differs by as much.
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if root == "eigh" else {"rtol": 1e-4, "atol": 2e-5}
    for i, start in enumerate(starts):
        expected = twin(
            start.numpy(), [step[i].numpy() for step in gradients], dict(SHAMPOO_PRESETS[preset]) | explicit
        )
        for t, value in enumerate(expected):
            np.testing.assert_allclose(ours[t][i].numpy(), value, **tolerance)


def test_a_diagonal_factor_agrees_with_hand_computed_values() -> None:
    # G = [[3, 4], [0, 5]]: squared rows sum to 25 and 25, squared columns to 9 and 41
    start, g = torch.zeros(2, 2).double(), torch.tensor([[3.0, 4.0], [0.0, 5.0]]).double()
    settings: dict[str, Any] = {"lr": 1.0, "structure": "diagonal-factor", "initial_epsilon": 0.0}
    ((after,),) = train(Shampoo, [start], [[g]], **settings)
    expected = -g / torch.tensor([25.0, 25.0]).double().pow(0.25).unsqueeze(1) / torch.tensor([9.0, 41.0]).pow(0.25)
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=0)


def test_diagonal_factor_of_vector_is_adagrad() -> None:
    start, gradients = normal(6), gradients_of([(6,)], 8)
    ours = train(Shampoo, [start], gradients, lr=0.1, structure="diagonal-factor", initial_epsilon=0.0)
    adagrad = train(torch.optim.Adagrad, [start], gradients, lr=0.1, eps=0.0)
    torch.testing.assert_close(ours[-1][0], adagrad[-1][0])


# -------------------------------------------------------------------------------------------------------- mathematics


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def rotated_gap(make: Callable[..., torch.optim.Optimizer], **settings: Any) -> float:
    """Return ‖train(U W V) − U train(W) V‖ with gradients rotated accordingly."""
    u, v = orthogonal(5, 1), orthogonal(7, 2)
    start, gradients = normal(5, 7, seed=3), gradients_of([(5, 7)], 10)
    plain = train(make, [start], gradients, **settings)[-1][0]
    rotated = train(make, [u @ start @ v], [[u @ g @ v] for (g,) in gradients], **settings)[-1][0]
    return float((rotated - u @ plain @ v).norm())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"beta2": 0.95},
        {"momentum": 0.5, "weight_decay": 0.1},
        {"root": "newton", "epsilon": 1e-4},
    ],
)
def test_shampoo_is_equivariant_under_orthogonal_maps(settings: dict[str, float]) -> None:
    assert rotated_gap(Shampoo, lr=0.1, precondition_frequency=1, **settings) < 1e-9


def test_adam_and_the_controls_are_not_equivariant() -> None:
    assert rotated_gap(torch.optim.Adam, lr=0.1) > 0.1
    assert rotated_gap(Shampoo, lr=0.1, structure="diagonal-factor") > 0.01
    assert rotated_gap(Shampoo, lr=0.1, preset="adam-grafted") > 0.01


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_without_memory_the_update_is_the_polar_factor(shape: tuple[int, int]) -> None:
    start, gradients = torch.zeros(shape).double(), gradients_of([shape], 3)
    history = train(Shampoo, [start], gradients, lr=1.0, beta2=0.0, epsilon=1e-14, precondition_frequency=1)
    previous = start
    for (after,), (g,) in zip(history, gradients, strict=True):
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        torch.testing.assert_close(previous - after, u @ vh, rtol=0, atol=1e-6)
        previous = after


def test_grafted_update_has_the_norm_of_adams_for_every_member_and_tensor() -> None:
    shapes: list[tuple[int, ...]] = [(3, 4, 5), (3, 6)]
    starts, gradients = [torch.zeros(s).double() for s in shapes], gradients_of(shapes, 7)
    scale = torch.tensor([1.0, 1e-3, 10.0]).double()
    gradients = [[g * scale.view(-1, *[1] * (g.ndim - 1)) for g in step] for step in gradients]
    settings: dict[str, Any] = {"lr": 1.0, "preset": "adam-grafted"}
    ours = train(Shampoo, starts, gradients, stacked=True, **settings)
    adam = train(torch.optim.Adam, starts, gradients, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    for t in range(1, 7):
        for i in range(len(shapes)):
            lengths = [(h[t][i] - h[t - 1][i]).flatten(1).norm(dim=1) for h in (ours, adam)]
            torch.testing.assert_close(lengths[0], lengths[1])


def test_weight_decay_is_decoupled() -> None:
    start, zero = normal(4, 3), torch.zeros(4, 3).double()
    for preset in SHAMPOO_PRESETS:
        ((after,),) = train(Shampoo, [start], [[zero]], preset=preset, lr=0.1, weight_decay=0.5)
        torch.testing.assert_close(after, start * (1 - 0.1 * 0.5))


# ---------------------------------------------------------------------------------------------------------- lock-step


def stack_of(members: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return strided views (M, *shape) into one buffer (M, P); rows do not depend on M."""
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    flat = torch.stack([normal(sum(sizes), seed=1000 * seed + i, dtype=dtype) for i in range(members)])
    return [part.view(members, *shape) for part, shape in zip(flat.split(sizes, dim=1), SHAPES, strict=True)]


def run_stack(members: list[int], steps: int, settings: dict[str, Any], spoil: int | None = None) -> list[Tensor]:
    """Train the listed members of seven together; settings that are lists have one value for each of the seven."""
    everyone = stack_of(7, 0)
    flat = torch.cat([x.flatten(1) for x in everyone], dim=1)[members]
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    views = [part.view(len(members), *s) for part, s in zip(flat.split(sizes, dim=1), SHAPES, strict=True)]
    parameters = [nn.Parameter(view) for view in views]
    assert all(p.data_ptr() == v.data_ptr() for p, v in zip(parameters, views, strict=True))
    chosen = {
        k: torch.tensor([v[i] for i in members], dtype=torch.float64) if isinstance(v, list) else v
        for k, v in settings.items()
    }
    optimizer = Shampoo(parameters, stacked=True, **chosen)
    for t in range(steps):
        if t in (0, 2):
            optimizer.begin_task()
        for parameter, gradient in zip(parameters, stack_of(7, t + 1), strict=True):
            parameter.grad = gradient[members]
            if spoil in members and t == 1:
                parameter.grad[members.index(spoil)] = float("nan")
        optimizer.step()
    # updated in place: the buffer behind the views has changed
    moved = torch.cat([p.detach().flatten(1) for p in parameters], dim=1)
    torch.testing.assert_close(moved, flat, rtol=0, atol=0, equal_nan=True)
    return [p.detach() for p in parameters]


SWEPT = {
    "lr": [0.3, 0.1, 0.03, 0.01, 0.003, 0.2, 0.05],
    "momentum": [0.0, 0.9, 0.5, 0.0, 0.99, 0.1, 0.3],
    "beta2": [1.0, 0.999, 0.9, 1.0, 0.0, 0.5, 0.99],
    "epsilon": [1e-6, 1e-3, 1e-9, 1e-4, 1e-6, 1e-2, 1e-5],
    "initial_epsilon": [1e-6, 0.0, 1e-3, 1.0, 0.0, 1e-6, 0.1],
    "weight_decay": [0.0, 0.1, 0.01, 0.0, 1.0, 0.5, 0.2],
}


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "gupta", **SWEPT},
        {"preset": "adam-grafted", "structure": "diagonal-factor", **SWEPT},
        {"preset": "gupta", "root": "newton", "max_side": 100, **SWEPT},  # more examples would take a minute
        {"preset": "gupta", "root_precision": "float32", **SWEPT},
        {"preset": "gupta", "precondition_frequency": "auto", **SWEPT},
    ],
    ids=["gupta", "grafted-diagonal", "newton", "single", "auto"],
)
def test_member_alone_equals_member_among_seven_bitwise(settings: dict[str, Any]) -> None:
    together = run_stack(list(range(7)), 2, settings)
    for members in ([4], [6, 1]):
        for alone, among in zip(run_stack(members, 2, settings), together, strict=True):
            assert torch.equal(alone, among[members])


def test_grafted_member_alone_equals_member_among_seven_bitwise() -> None:
    settings = {"preset": "adam-grafted", "weight_decay": 0.01}
    together = run_stack(list(range(7)), 2, settings)
    for alone, among in zip(run_stack([5], 2, settings), together, strict=True):
        assert torch.equal(alone[0], among[5])


@pytest.mark.parametrize("preset", list(SHAMPOO_PRESETS))
def test_stack_of_one_equals_ordinary_parameter_with_plain_numbers_bitwise(preset: str) -> None:
    shapes: list[tuple[int, ...]] = [(9, 7), (5, 3, 2, 2), (11,), ()]
    starts = [normal(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes)]
    gradients = gradients_of(shapes, 6, torch.float32)
    plain = train(Shampoo, starts, gradients, lr=0.1, preset=preset)
    stacked = train(
        Shampoo,
        [s[None] for s in starts],
        [[g[None] for g in step] for step in gradients],
        lr=torch.tensor([0.1], dtype=torch.float64),
        preset=preset,
        stacked=True,
    )
    for a, b in zip(plain[-1], stacked[-1], strict=True):
        assert torch.equal(a, b[0])


@pytest.mark.parametrize("structure", ["kronecker", "diagonal-factor"])
def test_a_diverged_member_does_not_affect_others(structure: str) -> None:
    settings = {"lr": 0.1, "structure": structure, "small_side": 16}
    clean = run_stack([2, 3, 5], 3, settings)
    spoilt = run_stack([2, 3, 5], 3, settings, spoil=3)
    for a, b in zip(clean, spoilt, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert b[1].isnan().any()


def test_dropping_members_does_not_affect_the_rest() -> None:
    """Members are dropped halfway as in the engine: index_select on axis 0 of parameters, state and settings."""
    lr = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    gradients = [normal(3, 6, 4, seed=t) for t in range(6)]
    keep = torch.tensor([2, 0])

    def run(drop: bool) -> Tensor:
        p = nn.Parameter(normal(3, 6, 4, seed=9))
        optimizer = Shampoo([p], lr=lr, preset="adam-grafted", stacked=True)
        for t, gradient in enumerate(gradients):
            if drop and t == 3:
                state = {name: value.index_select(0, keep) for name, value in optimizer.state.pop(p).items()}
                p = nn.Parameter(p.detach().index_select(0, keep))
                optimizer.param_groups[0].update(params=[p], lr=lr[keep])
                optimizer.state[p] = state
            p.grad = gradient if len(p) == 3 else gradient[keep]
            optimizer.step()
        return p.detach()

    assert torch.equal(run(drop=True), run(drop=False)[keep])


def test_members_can_have_taken_different_numbers_of_steps() -> None:
    gradients = [normal(1, 5, 4, seed=t) for t in range(5)]

    def trained(steps: int) -> tuple[nn.Parameter, Shampoo]:
        p = nn.Parameter(torch.zeros(1, 5, 4).double())
        optimizer = Shampoo([p], preset="adam-grafted", stacked=True)
        for gradient in gradients[:steps]:
            p.grad = gradient
            optimizer.step()
        return p, optimizer

    (a, one), (b, four) = trained(1), trained(4)
    both = nn.Parameter(torch.cat([a.detach(), b.detach()]))
    merged = Shampoo([both], preset="adam-grafted", stacked=True)
    merged.state[both] = {name: torch.cat([one.state[a][name], four.state[b][name]]) for name in one.state[a]}
    both.grad = gradients[4].repeat(2, 1, 1)
    a.grad = b.grad = gradients[4]
    for optimizer in (merged, one, four):
        optimizer.step()
    assert merged.state[both]["step"].tolist() == [2, 5]
    assert torch.equal(both, torch.cat([a, b]))


# ----------------------------------------------------------------------------------------------- failures


def test_long_sides_use_only_their_diagonal() -> None:
    start, gradients = normal(4, 7), gradients_of([(4, 7)], 5)
    p = nn.Parameter(start.clone())
    optimizer = Shampoo([p], max_side=6)
    p.grad = gradients[0][0]
    optimizer.step()
    assert optimizer.state[p]["left"].shape == (1, 4, 4)
    assert optimizer.state[p]["right"].shape == (1, 7)
    thin = train(Shampoo, [start], gradients, max_side=1)
    control = train(Shampoo, [start], gradients, structure="diagonal-factor")
    assert torch.equal(thin[-1][0], control[-1][0])


def test_failed_decomposition_keeps_the_last_root_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(normal(3, 4, 5))
    optimizer = Shampoo([p], stacked=True)
    assert optimizer.fallbacks().tolist() == [0, 0, 0]
    p.grad = normal(3, 4, 5, seed=1)
    optimizer.step()
    good = optimizer.state[p]["left_root"].clone()
    original, calls = torch.linalg.eigh, []

    def fails_for_member_1(matrix: Tensor) -> Any:
        calls.append(matrix)
        if len(calls) == 2:  # left sides of members 0, 1, 2, followed by the right sides
            raise torch.linalg.LinAlgError("did not converge")
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails_for_member_1)
    p.grad = normal(3, 4, 5, seed=2)
    optimizer.step()
    left = optimizer.state[p]["left_root"]
    assert torch.equal(left[1], good[1])
    assert not torch.equal(left[0], good[0])
    assert optimizer.fallbacks().tolist() == [0, 1, 0]
    assert p.isfinite().all()


def test_parameters_do_not_move_before_a_root_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(matrix: Tensor) -> Any:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", never)
    for preset in SHAMPOO_PRESETS:
        p = nn.Parameter(normal(4, 5))
        before = p.detach().clone()
        optimizer = Shampoo([p], preset=preset)
        p.grad = normal(4, 5, seed=1)
        optimizer.step()
        assert torch.equal(p, before)
        assert optimizer.fallbacks().tolist() == [2]


def test_zero_gradients_are_harmless() -> None:
    for preset in SHAMPOO_PRESETS:
        start, zero, g = normal(4, 3), torch.zeros(4, 3).double(), normal(4, 3, seed=1)
        history = train(Shampoo, [start], [[zero], [g]], preset=preset)
        torch.testing.assert_close(history[0][0], start)
        assert history[1][0].isfinite().all()
        assert not torch.equal(history[1][0], start)


# ---------------------------------------------------------------------------------------------- an ordinary optimizer


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10), nn.LayerNorm(10))
    model(torch.zeros(1, 1, 8, 8))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (p.ndim == 1))
    return model


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("preset", list(SHAMPOO_PRESETS))
def test_an_ordinary_model_learns(preset: str) -> None:
    model, x = network(), normal(64, 1, 8, 8, dtype=torch.float32)
    y = torch.arange(64) % 10
    optimizer = Shampoo(model.parameters(), preset=preset, lr=0.05, precondition_frequency=1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return float(loss.detach())

    losses = [optimizer.step(closure) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert optimizer.fallbacks().tolist() == [0]


@pytest.mark.parametrize("preset", list(SHAMPOO_PRESETS))
@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
def test_state_dict_round_trip_continues_identically(preset: str, how: str) -> None:
    settings: dict[str, Any] = {"preset": preset, "precondition_frequency": 4, "small_side": 3, "momentum": 0.5}
    gradients = gradients_of([(2, 6, 5), (2, 7)], 14, torch.float32)
    parameters = [nn.Parameter(normal(*g.shape, dtype=torch.float32)) for g in gradients[0]]
    optimizer: Shampoo = Shampoo(parameters, stacked=True, lr=torch.tensor([0.1, 0.01]).double(), **settings)
    optimizer.begin_task()

    def advance(ps: list[nn.Parameter], o: Shampoo, steps: list[list[Tensor]]) -> None:
        for step in steps:
            for p, g in zip(ps, step, strict=True):
                p.grad = g.clone()
            o.step()

    advance(parameters, optimizer, gradients[:6])
    if how == "deepcopy":
        twins, resumed = copy.deepcopy((parameters, optimizer))
    else:
        twins = [nn.Parameter(p.detach().clone()) for p in parameters]
        resumed = Shampoo(twins, stacked=True, lr=1.0)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dtypes = {name: value.dtype for name, value in resumed.state[twins[0]].items()}
    assert dtypes["left"] == dtypes["right"] == torch.float64
    assert dtypes["step"] == torch.int64
    advance(parameters, optimizer, gradients[6:])
    advance(twins, resumed, gradients[6:])
    for a, b in zip(parameters, twins, strict=True):
        assert torch.equal(a, b)


def test_half_precision_parameters_keep_full_precision_state() -> None:
    p = nn.Parameter(normal(4, 5).to(torch.bfloat16))
    optimizer = Shampoo([p], preset="adam-grafted")
    p.grad = normal(4, 5, seed=1).to(torch.bfloat16)
    optimizer.step()
    state = optimizer.state[p]
    assert p.dtype == torch.bfloat16
    assert (state["left"].dtype, state["left_root"].dtype, state["momentum"].dtype) == (
        torch.float64,
        torch.float32,
        torch.float32,
    )


def test_parameters_without_gradient_or_elements_are_skipped() -> None:
    idle, empty, busy = nn.Parameter(normal(3)), nn.Parameter(torch.zeros(0, 3)), nn.Parameter(normal(3, seed=1))
    before = idle.detach().clone()
    optimizer = Shampoo([idle, empty, busy])
    empty.grad, busy.grad = torch.zeros(0, 3), torch.ones(3).double()
    optimizer.step()
    assert torch.equal(idle, before)
    assert list(optimizer.state) == [busy]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"lr: expected a number in \[0, inf\), got -1.0"),
        ({"lr": float("nan")}, r"lr: expected a number in \[0, inf\), got nan"),
        ({"lr": "fast"}, r"lr: expected a number in \[0, inf\), got 'fast'"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"beta2": 1.5}, r"beta2: expected a number in \[0, 1\], got 1.5"),
        ({"epsilon": -1e-9}, r"epsilon: expected a number in \[0, 1\], got -1e-09"),
        ({"initial_epsilon": -1}, r"initial_epsilon: expected a number in \[0, inf\), got -1"),
        ({"weight_decay": float("inf")}, r"weight_decay: expected a number in \[0, inf\), got inf"),
        ({"precondition_frequency": 0}, "precondition_frequency: expected an integer of at least 1 or 'auto', got 0"),
        ({"small_side": 1.5}, "small_side: expected an integer of at least 0, got 1.5"),
        ({"structure": "kroneker"}, "unknown structure 'kroneker'; did you mean 'kronecker'?"),
        ({"grafting": "sgd"}, "unknown grafting 'sgd'"),
        ({"momentum_form": "x"}, "unknown momentum_form 'x'"),
        ({"root": "svd"}, "unknown root 'svd'"),
        ({"root_precision": "float16"}, "unknown root_precision 'float16'; did you mean 'float"),
        ({"root": "newton", "epsilon": 0.0}, "epsilon: expected a number above 0 with root='newton', got 0.0"),
        (
            {"root": "newton", "epsilon": 1e-80},
            "epsilon: expected a value that needs at most 200 iterations, got 1e-80",
        ),
        ({"preset": "gupt"}, "unknown preset 'gupt'; did you mean 'gupta'?"),
        ({"lr": torch.tensor([0.1, 0.2])}, r"lr: expected a number or a tensor of shape \(1,\), got shape \(2,\)"),
        ({"lr": torch.tensor([0.1, -0.2, 0.1]), "stacked": True}, r"lr: expected a number in \[0, inf\)"),
        ({"beta2": torch.ones(2), "stacked": True}, r"beta2: expected a number or a tensor of shape \(3,\)"),
        ({"graft_epsilon": torch.ones(1)}, "graft_epsilon: expected one number"),
    ],
)
def test_invalid_arguments_are_refused_with_the_allowed_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shampoo([nn.Parameter(torch.zeros(3, 2))], **arguments)


def test_unsupported_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="real floating-point parameters, got one of dtype"):
        Shampoo([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="a leading member axis"):
        Shampoo([nn.Parameter(torch.zeros(()))], stacked=True)
    optimizer = Shampoo([nn.Parameter(torch.zeros(3, 2))], stacked=True)
    with pytest.raises(ValueError, match=r"a leading axis of length 4, as in the other parameters, got shape \(5, 2\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(5, 2))]})
    assert len(optimizer.param_groups) == 1
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.zeros(3).to_sparse()
    with pytest.raises(RuntimeError, match="dense gradients"):
        Shampoo([p]).step()


@pytest.mark.first(4)
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preset", list(SHAMPOO_PRESETS))
def test_cuda_agrees_with_cpu(preset: str) -> None:
    shapes: list[tuple[int, ...]] = [(3, 20, 30), (3, 7)]
    starts, gradients = [normal(*s) for s in shapes], gradients_of(shapes, 5)
    settings: dict[str, Any] = {"preset": preset, "lr": torch.tensor([0.1, 0.2, 0.3]).double(), "stacked": True}
    cpu = train(Shampoo, starts, gradients, **settings)
    cuda = train(Shampoo, [s.cuda() for s in starts], [[g.cuda() for g in step] for step in gradients], **settings)
    for a, b in zip(cpu[-1], cuda[-1], strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-6, atol=1e-8)
