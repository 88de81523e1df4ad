"""Gradients of the penalty on the rank of features agree with autograd of the complete loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.data import InputSpec
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.blueprint import METHOD
from optbench.engine.gradients import Bound
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.mlp import MlpGradients
from optbench.engine.gradients.mlp_together import MlpTogether
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.passes import Passes
from optbench.engine.penalties import Penalties, Penalty
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.models import Network, build
from optbench.optimizers.rank_penalty import entropy, random_frame
from optbench.suite.schema import ModelSettings
from optbench.tasks import Examples

STRENGTHS = (0.3, -0.2, 0.0, 0.7)
BATCH = 16
NORMALISE = Normaliser(torch.tensor(1 / 255), torch.tensor(-0.1), 1 / 255, torch.float64)


class Own(nn.Module):
    """A user's model whose output layer is not the last of its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.first = nn.Linear(9, 10), nn.Linear(784, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x.flatten(1)).sin())


class WithMethod(Own):
    """A user's model with a method `features`, whose result is scaled before the last layer."""

    def features(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)).sin()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x) * 3.0)


class Uncalled(WithMethod):
    def forward(self, x: Tensor) -> Tensor:
        return Own.forward(self, x)


def spectral_entropy(features: Tensor) -> Tensor:
    """Return H of features (N, d) by definition, differentiable by autograd."""
    values = torch.linalg.eigvalsh(torch.cov(features.T))
    p = values / values.sum()
    return -(p * p.clamp_min(1e-300).log()).sum()


def features_of(network: nn.Module, weights: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and logits with their autograd graphs."""
    seen: list[Tensor] = []
    head = network.head if isinstance(network, Network) else network.out
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    logits = functional_call(network, weights, (inputs,))
    handle.remove()
    return seen[-1], logits


class Ground:
    """Four float64 members of one network, their batches, and ways to compute their gradients."""

    def __init__(self, network: nn.Module, shared: list[int], features: str = "head", *, rotated: bool = False) -> None:
        draws = torch.Generator().manual_seed(0)
        self.network = network.to_empty(device="cpu").double() if isinstance(network, Network) else network.double()
        self.ours = isinstance(network, Network)
        self.layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
        self.weights = torch.zeros(len(shared), self.layout.width, dtype=torch.float64)
        for view in self.layout.views(self.weights).values():
            view.copy_(torch.randn(view.shape, generator=draws, dtype=torch.float64) * 0.1)
        raw = torch.randint(0, 256, (64, 1, 28, 28), generator=draws, dtype=torch.uint8)
        examples = Examples(raw, torch.randint(0, 10, (64,), generator=draws))
        distinct = [BatchStream(examples, BATCH, suite_seed=0, trial_seed=seed, task=0) for seed in range(4)]
        self.streams = [distinct[i] for i in shared]
        self.penalties = [
            Penalty(strength, rotated, lambda step, i=i: 100 * i + step, features)  # type: ignore[misc]
            for i, strength in zip(shared, STRENGTHS, strict=True)
        ]

    def gradients(self, way: Any, step: int, members: tuple[int, ...] = (0, 1, 2, 3), **penalties: Any) -> Any:
        """Return the gradients (M, P) of these members and their losses (M,)."""
        weights = self.weights[list(members)].clone()
        found, losses = torch.zeros_like(weights), torch.zeros(len(members), dtype=torch.float64)
        passes = []
        if not self.ours:
            passes = [Passes(self.network, self.layout, row, lambda step, evaluation: 0) for row in weights]
        own = Penalties.of([self.penalties[i] for i in members])
        bound = Bound(weights, found, [self.streams[i] for i in members], passes, own)
        if penalties:
            bound = dataclasses.replace(bound, **penalties)
        if way in (Vmap, MlpTogether):
            gradients: Any = TogetherGradients(
                way(self.network, self.layout, bound), bound, NORMALISE, Recordings(None)
            )
        else:
            gradients = way(self.network, self.layout, BatchBuffer(BATCH, NORMALISE), bound)
        if bound.penalties is not None:
            bound.penalties.begin(step)
        for raised in (gradients(step, losses) or {}).values():
            raise raised.error
        return found, losses

    def packed(self, i: int, step: int) -> dict[str, Tensor]:
        weights = {name: view.clone().requires_grad_() for name, view in self.layout.views(self.weights[i]).items()}
        inputs, labels = BatchBuffer(BATCH, NORMALISE).take(self.streams[i], step)
        features, logits = features_of(self.network, weights, inputs.clone())
        loss = nn.functional.cross_entropy(logits, labels) + STRENGTHS[i] * spectral_entropy(features)
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def ours(kind: str, **settings: Any) -> Network:
    return build(ModelSettings.of(kind, **settings), InputSpec((1, 28, 28)), 10)


NETWORKS: dict[str, Any] = {
    "mlp": lambda: ours("mlp", hidden=[9], activation="tanh"),
    "deep relu": lambda: ours("mlp", hidden=[12, 7]),
    "normalised": lambda: ours("mlp", hidden=[12, 8], activation="gelu", normalisation="layer"),
    "cnn": lambda: ours("cnn", channels=[3, 4], hidden=6),
    "own": Own,
}


@pytest.mark.parametrize("shared", [[0, 1, 2, 3], [0, 0, 1, 0]], ids=["own batches", "shared batches"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_agree_with_autograd_in_lock_step_and_alone(name: str, shared: list[int]) -> None:
    network = NETWORKS[name]()
    ground = Ground(network, shared, "out" if name == "own" else "head")
    written_out = MlpGradients.supports(network)
    for way in (LoopGradients, Vmap, *([MlpGradients, MlpTogether] if written_out else [])):
        grads, losses = ground.gradients(way, step=2)
        plain, plain_losses = ground.gradients(way, step=2, penalties=None)
        assert torch.allclose(losses, plain_losses, rtol=1e-12), "recorded losses exclude the penalty"
        for i, strength in enumerate(STRENGTHS):
            for key, expected in ground.packed(i, step=2).items():
                found = ground.layout.views(grads[i])[key]
                assert (found - expected).abs().max() < 1e-8, (way, i, key)
                moved = bool((found - ground.layout.views(plain[i])[key]).abs().max() > 1e-6)
                below = not key.startswith(("head", "out"))
                # The push sums to 0 over a batch, so biases of units alive or dead on the whole batch get none.
                assert moved == (strength != 0 and below) or (below and key.endswith("bias")), (way, i, key)
        if way in (LoopGradients, MlpGradients):
            assert torch.equal(grads[2], plain[2]), "strength 0 gives the bits of training without a penalty"
            for i in range(4):
                assert torch.equal(ground.gradients(way, 2, (i,))[0][0], grads[i]), (
                    "a member alone equals the member among others"
                )


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_all_ways_to_compute_gradients_rotate_the_push_equally(name: str) -> None:
    ground = Ground(NETWORKS[name](), [0, 0, 1, 2], rotated=True)
    straight = Ground(NETWORKS[name](), [0, 0, 1, 2])
    ways = (LoopGradients, Vmap, *([MlpGradients, MlpTogether] if name == "mlp" else []))
    first, *others = [ground.gradients(way, step=1)[0] for way in ways]
    for other in others:
        assert (other - first).abs().max() < 1e-9
    assert (first - ground.gradients(LoopGradients, step=1)[0]).abs().max() == 0
    turned = (first - straight.gradients(LoopGradients, step=1)[0]).abs().amax(1)
    assert (turned > 1e-3).tolist() == [strength != 0 for strength in STRENGTHS]


def test_the_result_of_a_features_method_is_penalised() -> None:
    for way in (LoopGradients, Vmap):
        scaled = Ground(WithMethod(), [0, 1, 2, 3], METHOD)
        grads, _ = scaled.gradients(way, step=0)
        for i in range(4):
            for key, expected in scaled.packed(i, step=0).items():  # H is invariant to scale
                assert (scaled.layout.views(grads[i])[key] - expected).abs().max() < 1e-8
        with pytest.raises(ValueError, match=r"expected Uncalled.forward to call its method features\(x\)"):
            Ground(Uncalled(), [0, 1, 2, 3], METHOD).gradients(way, step=0)


def by_definition(features: Tensor) -> tuple[Tensor, Tensor]:
    leaf = features.clone().requires_grad_()
    value = spectral_entropy(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("shape", [(40, 7), (5, 12), (2, 3)], ids=["more rows", "smaller than the width", "two rows"])
def test_entropy_and_its_gradient_agree_with_the_definition(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * torch.logspace(
        0, -2, shape[1], dtype=torch.float64
    )
    value, gradient = entropy(features)
    expected, push = by_definition(features)
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    assert (gradient - push).abs().max() < 1e-8
    stacked = torch.stack([features, 3 * features])
    values, gradients = entropy(stacked)
    assert torch.allclose(values, value.expand(2), atol=1e-12), "the entropy is invariant to scale"
    assert torch.allclose(gradients, torch.stack([gradient, gradient / 3]), atol=1e-10)


def test_dead_units_get_no_push_and_do_not_affect_others() -> None:
    alive = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    features = torch.zeros(30, 9, dtype=torch.float64)
    features[:, [0, 2, 3, 5, 6, 8]] = alive
    features[:, 4] = 7.0  # a constant unit has no variance either
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        value, gradient = entropy(features.to(dtype))
        expected, push = entropy(alive)
        assert value.item() == pytest.approx(expected.item(), abs=tolerance)
        assert (gradient[:, [0, 2, 3, 5, 6, 8]] - push).abs().max() < tolerance
        assert gradient[:, [1, 4, 7]].abs().max() < tolerance


@pytest.mark.parametrize("value", [0.0, 3.0, float("nan"), float("inf")])
def test_constant_or_non_finite_features_get_no_push(value: float) -> None:
    features = torch.full((6, 4), 1.0)
    features[2] = value if value in (0.0, 3.0) else 1.0
    features[2, 1] = value
    if value in (0.0, 3.0):
        features[:] = value
    found, gradient = entropy(features)
    assert found.item() == 0
    assert not gradient.any()


def test_a_rotation_is_orthogonal_and_keeps_the_centred_spectrum_of_the_push() -> None:
    features = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    frame = random_frame(features, torch.Generator().manual_seed(4))
    assert torch.allclose(frame.T @ frame, torch.eye(8, dtype=torch.float64), atol=1e-12)
    centred = features - features.mean(0)
    spectra = []
    for own in (None, frame):
        matrix = torch.linalg.lstsq(
            centred, entropy(features, own)[1]
        ).solution  # (2/N) A, because the push is (h - h̄) A
        assert torch.allclose(matrix, matrix.T, atol=1e-12)
        spectra.append(torch.linalg.eigvalsh(matrix))
    assert torch.allclose(spectra[0] - spectra[0].mean(), spectra[1], atol=1e-12)
    assert random_frame(features[:5], torch.Generator()).shape == (8, 5)
