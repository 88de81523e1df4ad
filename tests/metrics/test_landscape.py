"""Loss-landscape measures: worked examples, dense Hessians, and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from optbench.metrics.landscape import (
    Loss,
    accuracy_barrier,
    adaptive_sam_sharpness,
    barrier,
    barrier_note,
    displacement_angle,
    displacement_note,
    distance_from_init,
    hessian_top_eigenvalue,
    hessian_trace,
    interpolate,
    landscape_loss,
    relative_distance_from_init,
    sam_sharpness,
)

torch.set_num_threads(1)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(matrix: Tensor) -> Loss:
    """Return the loss ½ wᵀ A w, whose Hessian is A."""
    return lambda w: 0.5 * w @ matrix.to(w) @ w


def line(loss: Loss, first: Tensor, last: Tensor, points: int = 11) -> Tensor:
    alphas = torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.stack([loss(w) for w in interpolate(first, last, alphas)])


def tiny_network(activation: type[nn.Module]) -> tuple[Loss, Tensor, Callable[[], float]]:
    """Return the loss of a network of 59 weights on 40 examples, its float32 weights, and a plain reference loss."""
    generator = draws(3)
    network = nn.Sequential(nn.Linear(4, 7), activation(), nn.Linear(7, 3))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    weights = torch.randn(sum(map(math.prod, shapes.values())), generator=generator)
    inputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (40,), generator=generator)

    def named(w: Tensor) -> dict[str, Tensor]:
        parts = torch.split(w, [math.prod(shape) for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def by_hand() -> float:
        network.double().load_state_dict(named(weights.double()))
        return nn.functional.cross_entropy(network(inputs), labels).item()

    return (
        lambda w: nn.functional.cross_entropy(functional_call(network, named(w), (inputs,)), labels),
        weights,
        by_hand,
    )


def dense_hessian(loss: Loss, weights: Tensor) -> Tensor:
    hessian = torch.autograd.functional.hessian(loss, weights.double())
    assert isinstance(hessian, Tensor)
    return hessian


# Multiples of a power of two, so that differences and scaling by powers of two are exact.
numbers = st.integers(-1000, 1000).map(lambda i: i / 64)
three_solutions = st.integers(2, 12).flatmap(
    lambda size: st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=3, max_size=3)
)
values_on_a_line = st.lists(numbers, min_size=11, max_size=30).map(lambda values: vector(*values))
symmetric = st.integers(2, 6).flatmap(
    lambda size: st.lists(numbers, min_size=size * size, max_size=size * size).map(
        lambda entries: (lambda m: m + m.T)(vector(*entries).view(size, size))
    )
)


def test_the_barrier_of_a_double_well_is_its_maximum() -> None:
    assert float(barrier(line(lambda w: (w.square() - 1).square().sum(), vector(-1), vector(1)))) == 1.0


def test_the_barriers_of_a_linear_loss_and_of_a_valley_are_zero() -> None:
    first, last = vector(1, -2, 5), vector(0.3, 7, 2)
    assert float(barrier(line(lambda w: (w * vector(3, 1, -2)).sum() + 4, first, last))) == pytest.approx(0, abs=1e-14)
    assert float(barrier(line(lambda w: w.square().sum(), first, last))) == 0.0


def test_barrier_of_a_solution_with_itself_is_exactly_zero() -> None:
    loss, weights, _ = tiny_network(nn.ReLU)
    assert float(barrier(line(loss, weights, weights))) == 0.0


def test_the_accuracy_barrier_is_the_largest_drop_below_the_line() -> None:
    dip = torch.linspace(0.9, 0.8, 11, dtype=torch.float64)
    dip[5] = 0.25
    assert float(accuracy_barrier(dip)) == pytest.approx(0.6)
    assert float(barrier(dip)) == pytest.approx(0, abs=1e-15)


@given(values=values_on_a_line, slope=numbers, offset=numbers)
@settings(deadline=None)
def test_a_barrier_is_nonnegative_symmetric_and_ignores_a_linear_trend(
    values: Tensor, slope: float, offset: float
) -> None:
    found = float(barrier(values))
    alphas = np.linspace(0, 1, len(values))
    straight = np.interp(alphas, [0, 1], [float(values[0]), float(values[-1])])
    assert found >= 0
    assert found == pytest.approx(float(np.max(values.numpy() - straight)), abs=1e-12)
    assert float(barrier(values.flip(0))) == pytest.approx(found, abs=1e-12)
    assert float(barrier(values + slope * torch.from_numpy(alphas) + offset)) == pytest.approx(found, abs=1e-11)
    assert float(accuracy_barrier(-values)) == found


def test_barriers_of_stacked_lines_equal_those_of_single_lines() -> None:
    lines = torch.randn(2, 3, 15, generator=draws(), dtype=torch.float64)
    alone = torch.stack([barrier(one) for one in lines.flatten(0, 1)]).view(2, 3)
    assert torch.equal(barrier(lines), alone)


def test_a_barrier_needs_eleven_finite_points() -> None:
    with pytest.raises(ValueError, match=r"K ≥ 11, got \(10,\)"):
        barrier(torch.zeros(10))
    with pytest.raises(ValueError, match=r"K ≥ 11, got \(\)"):
        barrier(torch.tensor(1.0))
    lines = torch.zeros(3, 11)
    lines[0, 3], lines[1, 4] = math.nan, math.inf
    assert barrier(lines).isnan().tolist() == [True, True, False]
    assert barrier_note(lines[1]) == "not finite at 1 of 11 points"
    assert barrier_note(lines[2]) is None


@given(solutions=three_solutions)
@settings(deadline=None)
def test_a_line_meets_its_ends_exactly_and_is_constant_between_equal_ends(solutions: list[list[float]]) -> None:
    first, last, _ = (vector(*values) / 3 for values in solutions)
    points = interpolate(first, last, torch.linspace(0, 1, 11))
    assert points.shape == (11, len(first))
    assert torch.equal(points[0], first)
    assert torch.equal(points[-1], last)
    assert torch.equal(interpolate(first, first, torch.linspace(0, 1, 11)), first.expand(11, -1))
    torch.testing.assert_close(points[5], (first + last) / 2, rtol=1e-14, atol=1e-14)


def test_lines_of_stacked_members_equal_those_of_single_members() -> None:
    first, last = torch.randn(2, 3, 5, generator=draws())
    alphas = torch.linspace(0, 1, 11)
    together = interpolate(first, last, alphas)
    assert together.dtype == torch.float64
    assert torch.equal(together, torch.stack([interpolate(first[i], last[i], alphas) for i in range(3)]))


def test_distances_and_angles_agree_with_the_three_four_five_triangle() -> None:
    start, solution = vector(1, 0, 0), vector(1, 3, 4)
    assert float(distance_from_init(solution, start)) == 5
    assert float(relative_distance_from_init(solution, 2 * start)) == pytest.approx(math.sqrt(26) / 2)
    assert float(displacement_angle(start, solution, vector(1, 0, 2))) == pytest.approx(
        math.degrees(math.acos(4 / 5)), rel=1e-14
    )
    assert float(displacement_angle(vector(0, 0), vector(1, 0), vector(1, 1e-9))) == pytest.approx(
        math.degrees(1e-9), rel=1e-12
    )


@given(solutions=three_solutions, power=st.integers(-20, 20))
@settings(deadline=None)
def test_distance_is_a_metric_and_the_angle_is_scale_free(solutions: list[list[float]], power: int) -> None:
    start, a, b = (vector(*values) for values in solutions)
    assert float(distance_from_init(start, start)) == 0
    assert float(distance_from_init(a, start)) == float(distance_from_init(start, a))
    total = float(distance_from_init(a, b) + distance_from_init(b, start))
    assert float(distance_from_init(a, start)) <= total * (1 + 1e-12)
    scale = 2.0**power
    angle = displacement_angle(start, a, b)
    if torch.equal(a, start) or torch.equal(b, start):
        assert angle.isnan()
        return
    assert 0 <= float(angle) <= 180
    assert torch.equal(displacement_angle(start, b, a), angle)
    assert torch.equal(displacement_angle(start * scale, a * scale, b * scale), angle)
    assert float(displacement_angle(start, a, a)) == 0
    assert float(displacement_angle(start, a, 2 * start - a)) == pytest.approx(180)
    u, v = (a - start).numpy(), (b - start).numpy()
    cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert math.cos(math.radians(float(angle))) == pytest.approx(cosine, abs=1e-12)
    if start.any():
        assert torch.equal(relative_distance_from_init(a * scale, start * scale), relative_distance_from_init(a, start))


def test_distances_of_stacked_members_equal_those_of_single_members() -> None:
    start, a, b = torch.randn(3, 4, 7, generator=draws())
    for function, given_ in (
        (distance_from_init, (a, start)),
        (relative_distance_from_init, (a, start)),
        (displacement_angle, (start, a, b)),
    ):
        alone = [function(*(w[i] for w in given_)) for i in range(4)]
        torch.testing.assert_close(function(*given_), torch.stack(alone), rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("weights", "start", "distance", "note"),
    [
        (vector(3, 4), vector(0, 0), 5.0, "all initial weights are zero"),
        (vector(3, math.nan), vector(1, 0), math.nan, "the weights are not finite"),
        (vector(3, 4), vector(math.inf, 0), math.nan, "the initial weights are not finite"),
        (vector(), vector(), math.nan, "no weights"),
        (vector(1e308, 1e308), vector(-1e308, 1), math.nan, "the distance overflows"),
    ],
    ids=["zero", "nan", "infinite start", "none", "overflow"],
)
def test_an_undefined_distance_is_nan_with_a_note(weights: Tensor, start: Tensor, distance: float, note: str) -> None:
    assert float(distance_from_init(weights, start)) == pytest.approx(distance, nan_ok=True)
    assert relative_distance_from_init(weights, start).isnan()
    assert displacement_note(weights, start) == note


def test_defined_distances_have_no_note_and_a_scalar_is_refused() -> None:
    assert displacement_note(vector(1), vector(2)) is None
    with pytest.raises(ValueError, match=r"shape \(\.\.\., P\)"):
        distance_from_init(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize(("at", "plain", "adaptive"), [(1.0, 0.315, 0.315), (2.0, 0.615, 1.26)])
def test_sharpness_agrees_with_the_formula_for_a_parabola(at: float, plain: float, adaptive: float) -> None:
    def loss(w: Tensor) -> Tensor:
        return 1.5 * w.square().sum()

    assert sam_sharpness(loss, vector(at), 0.1).value == pytest.approx(plain, rel=1e-12)
    assert adaptive_sam_sharpness(loss, vector(at), 0.1).value == pytest.approx(adaptive, rel=1e-12)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_sharpness_of_a_network_agrees_with_the_formula(activation: type[nn.Module]) -> None:
    loss, weights, by_hand = tiny_network(activation)
    w = weights.double().requires_grad_()
    (g,) = torch.autograd.grad(loss(w), w)
    with torch.no_grad():
        plain = loss(w + 0.05 * g / g.norm()) - loss(w)
        adaptive = loss(w + 0.5 * w**2 * g / (w.abs() * g).norm()) - loss(w)
    assert sam_sharpness(loss, weights, 0.05).value == pytest.approx(float(plain), rel=1e-11)
    assert adaptive_sam_sharpness(loss, weights, 0.5).value == pytest.approx(float(adaptive), rel=1e-11)
    assert landscape_loss(loss, weights).value == pytest.approx(by_hand(), rel=1e-14)


@given(power=st.integers(-8, 8))
@settings(max_examples=10, deadline=None)
def test_adaptive_sharpness_is_invariant_to_rescalings_that_keep_the_function(power: int) -> None:
    # f = a·b·x is the same for (a s, b / s), but plain sharpness differs.
    def loss(w: Tensor) -> Tensor:
        return (w[0] * w[1] - 1).square() + (w[2] - w[0] * w[1]).square()

    scale = 2.0**power
    here, there = vector(1.5, 0.5, 1), vector(1.5 * scale, 0.5 / scale, 1)
    expected = adaptive_sam_sharpness(loss, here, 0.3).value
    assert adaptive_sam_sharpness(loss, there, 0.3).value == pytest.approx(expected, rel=1e-12)
    if power:
        assert sam_sharpness(loss, there, 0.3).value != pytest.approx(sam_sharpness(loss, here, 0.3).value, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "weights", "plain", "adaptive"),
    [
        (lambda w: w.square().sum(), vector(0, 0), "the gradient is zero", "all weights are zero"),
        (lambda w: w.square().sum() * 0 + 1, vector(1, 2), "the gradient is zero", "the gradient is zero"),
        (lambda w: torch.tensor(1.0), vector(1, 2), "the gradient is zero", "the gradient is zero"),
        (lambda w: w.sum(), vector(1, math.nan), "the weights are not finite", "the weights are not finite"),
        (lambda w: w.log().sum(), vector(-1, 1), "the loss is not finite", "the loss is not finite"),
        (lambda w: w.abs().sqrt().sum(), vector(0, 1), "the gradient is not finite", "the gradient is not finite"),
        (lambda w: w.sum(), vector(), "no weights", "no weights"),
        (
            lambda w: (0.05 - w).log().sum(),
            vector(-0.04, -0.04),
            None,
            None,
        ),
        (
            lambda w: -w.log().sum(),
            vector(0.01),
            "the loss at the perturbed weights is not finite",
            None,
        ),
    ],
    ids=["minimum", "flat", "constant", "nan", "log", "root", "none", "fine", "cliff"],
)
def test_an_undefined_sharpness_is_nan_with_a_note(
    loss: Loss, weights: Tensor, plain: str | None, adaptive: str | None
) -> None:
    for found, note in (
        (sam_sharpness(loss, weights, 0.05), plain),
        (adaptive_sam_sharpness(loss, weights, 0.05), adaptive),
    ):
        assert found.note == note
        assert math.isnan(found.value) == (note is not None)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.inf, math.nan])
def test_rho_must_be_positive_and_finite(rho: float) -> None:
    for measure in (sam_sharpness, adaptive_sam_sharpness):
        with pytest.raises(ValueError, match="expected rho to be positive and finite"):
            measure(lambda w: w.sum(), vector(1), rho)


def test_a_loss_that_is_not_finite_is_nan_with_a_note() -> None:
    found = landscape_loss(lambda w: w.log().sum(), vector(-1))
    assert math.isnan(found.value)
    assert found.note == "the loss is not finite"


def test_the_top_eigenvalue_is_the_largest_not_the_largest_in_magnitude() -> None:
    found = hessian_top_eigenvalue(quadratic(torch.diag(vector(3, 1, -5))), vector(1, 1, 1), draws())
    assert found.value == pytest.approx(3, rel=1e-12)
    assert found.residual < 1e-12
    assert found.note is None


@given(matrix=symmetric, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_top_eigenvalue_and_trace_of_a_quadratic_agree_with_its_matrix(matrix: Tensor, seed: int) -> None:
    eigenvalues = np.linalg.eigvalsh(matrix.numpy())
    size = np.abs(eigenvalues).max()
    loss, at = quadratic(matrix), torch.ones(len(matrix))
    found = hessian_top_eigenvalue(loss, at, draws(seed), tolerance=1e-9)
    assert found.value == pytest.approx(eigenvalues[-1], abs=1e-8 * size + 1e-300)
    # If λ nearly cancels to zero, a relative residual cannot guarantee any of its digits.
    if abs(found.value) > 1e-3 * size:
        assert found.residual <= 1e-9
        assert found.note is None
    trace = hessian_trace(loss, at, draws(seed), probes=50)
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    deviation = math.sqrt(2 * float(off_diagonal.square().sum()) / 50)  # of the mean, by Hutchinson's formula
    assert abs(trace.value - float(matrix.trace())) <= 8 * deviation + 1e-9 * size


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_the_top_eigenvalue_of_a_network_agrees_with_its_dense_hessian(activation: type[nn.Module]) -> None:
    loss, weights, _ = tiny_network(activation)
    hessian = dense_hessian(loss, weights)
    expected = torch.linalg.eigvalsh(hessian)
    assert expected[0] < 0 < expected[-1], "the test needs an indefinite Hessian"
    for seed in range(3):
        found = hessian_top_eigenvalue(loss, weights, draws(seed))
        assert found.residual <= 1e-4
        assert found.value == pytest.approx(float(expected[-1]), rel=1e-6)
        assert found.iterations < len(weights)
        assert found.note is None
    exact = hessian_top_eigenvalue(loss, weights, draws(), tolerance=1e-12)
    assert exact.value == pytest.approx(float(expected[-1]), rel=1e-12)


def test_the_residual_bounds_the_error_of_the_eigenvalue() -> None:
    # On an even spectrum with few iterations the residual bounds the error.
    eigenvalues = torch.linspace(1, 10, 50, dtype=torch.float64)
    found = hessian_top_eigenvalue(quadratic(torch.diag(eigenvalues)), torch.ones(50), draws(), iterations=5)
    assert found.iterations == 5
    assert found.residual > 1e-4
    assert found.note == f"residual {found.residual:.1g} after 5 iterations"
    assert found.value < 10
    assert float((eigenvalues - found.value).abs().min()) <= found.residual * found.value


def test_the_basis_stays_orthogonal_where_plain_lanczos_fails() -> None:
    # The dominant eigenvalue converges immediately; without reorthogonalisation its vector would reappear.
    eigenvalues = torch.cat([torch.linspace(-1, 0.9, 78), torch.tensor([0.95, -1e7])]).double()
    found = hessian_top_eigenvalue(quadratic(torch.diag(eigenvalues)), torch.ones(80), draws(), tolerance=1e-6)
    assert found.value == pytest.approx(0.95, rel=1e-7)
    assert found.note is None


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_the_trace_of_a_network_is_within_its_standard_errors_of_the_dense_one(activation: type[nn.Module]) -> None:
    loss, weights, _ = tiny_network(activation)
    hessian = dense_hessian(loss, weights)
    found = [hessian_trace(loss, weights, draws(seed), probes=200) for seed in range(5)]
    off_diagonal = hessian - torch.diag(hessian.diagonal())
    deviation = math.sqrt(2 * float(off_diagonal.square().sum()) / 200)
    for trace in found:
        assert abs(trace.value - float(hessian.trace())) < 4 * deviation
        assert trace.error == pytest.approx(deviation, rel=0.4)
    assert len({trace.value for trace in found}) == 5, "seeds have different probes"


def test_the_trace_of_a_diagonal_hessian_is_exact() -> None:
    found = hessian_trace(quadratic(torch.diag(vector(3, 1, -5))), vector(1, 2, 3), draws(), probes=4)
    assert (found.value, found.error, found.probes, found.note) == (-1.0, 0.0, 4, None)


@given(power=st.integers(-100, 100))
@settings(max_examples=10, deadline=None)
def test_scaling_the_loss_scales_the_hessian_but_not_the_residual(power: int) -> None:
    loss, weights, _ = tiny_network(nn.ReLU)
    scale = 2.0**power
    plain, scaled = (hessian_top_eigenvalue(one, weights, draws(1)) for one in (loss, lambda w: loss(w) * scale))
    assert scaled.value == pytest.approx(plain.value * scale, rel=1e-12)
    assert scaled.residual == pytest.approx(plain.residual, rel=1e-6)
    assert scaled.iterations == plain.iterations


def test_equal_generators_give_equal_bits_and_the_global_one_is_unused() -> None:
    loss, weights, _ = tiny_network(nn.Tanh)
    before = torch.get_rng_state()
    assert hessian_top_eigenvalue(loss, weights, draws(7)) == hessian_top_eigenvalue(loss, weights, draws(7))
    assert hessian_trace(loss, weights, draws(7)) == hessian_trace(loss, weights, draws(7))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loss", [lambda w: (2 * w).sum(), lambda w: torch.tensor(1.0), lambda w: w.relu().sum()])
def test_a_loss_without_curvature_has_eigenvalue_zero_and_no_residual(loss: Loss) -> None:
    found = hessian_top_eigenvalue(loss, vector(1, 2, 3), draws())
    assert found.value == 0
    assert math.isnan(found.residual)
    assert found.note == "the eigenvalue is zero"
    trace = hessian_trace(loss, vector(1, 2, 3), draws())
    assert (trace.value, trace.error, trace.note) == (0, 0, None)


@pytest.mark.parametrize(
    ("loss", "weights", "note"),
    [
        (lambda w: w.sum(), vector(math.inf, 1), "the weights are not finite"),
        (lambda w: w.log().sum(), vector(-1, 1), "the loss is not finite"),
        (lambda w: w.abs().sqrt().sum(), vector(0, 1), "the gradient is not finite"),
        (lambda w: w.abs().pow(1.5).sum(), vector(0, 1), "the Hessian is not finite"),
        (lambda w: w.sum(), vector(), "no weights"),
    ],
    ids=["weights", "loss", "gradient", "hessian", "none"],
)
def test_an_undefined_hessian_is_nan_with_a_note(loss: Loss, weights: Tensor, note: str) -> None:
    top, trace = hessian_top_eigenvalue(loss, weights, draws()), hessian_trace(loss, weights, draws())
    assert math.isnan(top.value)
    assert math.isnan(top.residual)
    assert math.isnan(trace.value)
    assert math.isnan(trace.error)
    assert top.note == trace.note == note


def test_measuring_does_not_change_weights_and_works_without_grad() -> None:
    loss, weights, _ = tiny_network(nn.ReLU)
    before = weights.clone()
    with torch.no_grad():
        off = hessian_top_eigenvalue(loss, weights, draws()), sam_sharpness(loss, weights, 0.1)
    assert off == (hessian_top_eigenvalue(loss, weights, draws()), sam_sharpness(loss, weights, 0.1))
    assert torch.equal(weights, before)
    assert weights.grad is None


def test_invalid_arguments_are_refused() -> None:
    loss, weights = quadratic(torch.eye(2)), vector(1, 1)
    for wrong in ({"tolerance": 0.0}, {"iterations": 0}, {"tolerance": math.nan}):
        with pytest.raises(ValueError, match="Lanczos: expected tolerance > 0 and iterations ≥ 1"):
            hessian_top_eigenvalue(loss, weights, draws(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 probes for a standard error, got 1"):
        hessian_trace(loss, weights, draws(), probes=1)
    with pytest.raises(ValueError, match=r"expected weights of shape \(P,\), got \(1, 2\)"):
        hessian_trace(loss, weights[None], draws())
