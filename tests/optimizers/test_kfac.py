"""K-FAC: factors agree with their definition, and steps with the natural gradient where it is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optbench.data import Dataset
from optbench.optimizers.kfac import Kfac, LayerSignals, damped_inverses
from optbench.optimizers.symmetric import whole
from tests.conftest import same_bits, small_suite, train_suite, trial_row


def network(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(*layers).double()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64) / 2)
    return model


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sampled_labels(logits: Tensor, seed: int) -> Tensor:
    """Return the labels that `Kfac` draws with a generator of this seed."""
    random = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.detach().softmax(1), 1, generator=random).squeeze(1)


def backward(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.int64)).backward()


def outer_products_by_hand(model: nn.Sequential, x: Tensor, labels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Compute A and G of every layer of a small MLP, example by example, with gradients by the chain rule."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    first, last = model[0], model[2]
    for row, label in zip(x, labels, strict=True):
        hidden = torch.tanh(first.weight @ row + first.bias)
        chance = (last.weight @ hidden + last.bias).softmax(0)
        g_last = chance - nn.functional.one_hot(label, len(chance))
        g_first = (last.weight.T @ g_last) * (1 - hidden**2)
        for k, a, g in ((0, row, g_first), (2, hidden, g_last)):
            with_one = torch.cat([a, torch.ones(1, dtype=a.dtype)])
            before = found.get(k, (torch.zeros(()), torch.zeros(())))
            found[k] = (
                before[0] + torch.outer(with_one, with_one) / len(x),
                before[1] + torch.outer(g, g) / len(x),
            )
    return found


def factors_of(signals: LayerSignals) -> tuple[Tensor, Tensor]:
    a, g = (x.new_full((x.shape[1],) * 2, torch.nan) for x in (signals.inputs, signals.gradients))
    signals.average_into(a, g, 0.0)
    return whole(a), whole(g)


def test_factors_of_a_tiny_mlp_agree_with_the_definition() -> None:
    model = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    x = inputs(7, 3)
    optimizer = Kfac(model, generator=torch.Generator().manual_seed(5))
    logits = model(x)
    expected = outer_products_by_hand(model, x, sampled_labels(logits, 5))
    for k, (a, g) in expected.items():
        found_a, found_g = factors_of(optimizer.signals[model[k]])
        torch.testing.assert_close(found_a, a)
        torch.testing.assert_close(found_g, g)


def test_factors_of_a_tiny_convolution_agree_with_the_definition() -> None:
    conv = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2))
    model = network(conv, nn.Tanh(), nn.Flatten(), nn.Linear(3 * 3 * 5, 4))
    x = inputs(6, 2, 5, 5)
    optimizer = Kfac(model, generator=torch.Generator().manual_seed(5))
    logits = model(x)
    height, width = conv(x).shape[2:]
    assert height * width * 3 == model[3].in_features

    # For every position: the input patch under the kernel, and the gradient of the output.
    seen: dict[str, Tensor] = {}
    outputs = conv(x)
    outputs.retain_grad()
    nn.functional.cross_entropy(model[1:](outputs), sampled_labels(logits, 5), reduction="sum").backward()
    assert outputs.grad is not None
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    a = torch.zeros(2 * 3 * 2 + 1, 2 * 3 * 2 + 1, dtype=torch.float64)
    g = torch.zeros(3, 3, dtype=torch.float64)
    for n in range(6):
        for i in range(height):
            for j in range(width):
                patch = padded[n, :, 2 * i : 2 * i + 3, [j, j + 2]].flatten()
                with_one = torch.cat([patch, torch.ones(1, dtype=torch.float64)])
                a += torch.outer(with_one, with_one) / 6
                g += torch.outer(outputs.grad[n, :, i, j], outputs.grad[n, :, i, j]) / (6 * height * width)
    seen["a"], seen["g"] = factors_of(optimizer.signals[conv])
    torch.testing.assert_close(seen["a"], a)
    torch.testing.assert_close(seen["g"], g)


def test_for_one_example_the_kronecker_product_equals_the_fisher_block() -> None:
    model = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    x = inputs(1, 3)
    optimizer = Kfac(model, generator=torch.Generator().manual_seed(2))
    logits = model(x)
    labels = sampled_labels(logits, 2)
    for layer in (model[0], model[2]):
        a, g = factors_of(optimizer.signals[layer])
        by_weight, by_bias = torch.autograd.grad(
            nn.functional.cross_entropy(logits, labels), list(layer.parameters()), retain_graph=True
        )
        flat = torch.cat([by_weight, by_bias.unsqueeze(1)], 1).flatten()
        torch.testing.assert_close(torch.kron(g, a), torch.outer(flat, flat))


class Masked(nn.Module):
    """A network like BERT: predictions at chosen positions of sequences, and one per sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.pair = nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        return self.token(x).flatten(0, 1)[places], self.pair(x[:, 0])


def test_the_fisher_matrix_at_chosen_positions_is_a_mean_over_predictions() -> None:
    """For equal inputs the Kronecker product is exact; for a mean loss it is the mean over predictions."""
    model = Masked().double()
    x, places = inputs(3).expand(2, 5, 3), torch.tensor([0, 3, 4, 8, 9])
    optimizer = Kfac(model, generator=torch.Generator().manual_seed(2))
    outputs = model(x, places)
    random = torch.Generator().manual_seed(2)
    with_one = torch.cat([x[0, 0], torch.ones(1, dtype=torch.float64)])
    for layer, logits in zip((model.token, model.pair), outputs, strict=True):
        chance = logits.detach().softmax(1)
        labels = torch.multinomial(chance, 1, generator=random).squeeze(1)
        gradients = chance - nn.functional.one_hot(labels, chance.shape[1])
        a, g = factors_of(optimizer.signals[layer])
        expected = torch.kron(gradients.T @ gradients / len(logits), torch.outer(with_one, with_one))
        torch.testing.assert_close(torch.kron(g, a), expected)


def test_drawn_labels_give_the_true_fisher_matrix_on_average() -> None:
    # For softmax regression on one example the exact factor is diag(p) - p pᵀ.
    model = network(nn.Linear(3, 4))
    x = inputs(1, 3).expand(40_000, 3)
    optimizer = Kfac(model, generator=torch.Generator().manual_seed(3))
    chance = model(x)[0].detach().softmax(0)
    _, g = factors_of(optimizer.signals[model[0]])
    # The standard error of a mean of 40,000 numbers up to 1 is at most .005.
    torch.testing.assert_close(g, torch.diag(chance) - torch.outer(chance, chance), atol=0.02, rtol=0)


def test_the_step_solves_the_damped_system() -> None:
    model = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    x = inputs(9, 3)
    optimizer = Kfac(model, lr=0.5, momentum=0.0, damping=0.1, kl_clip=None, generator=torch.Generator().manual_seed(4))
    backward(model, x)
    layer = model[0]
    a, g = factors_of(optimizer.signals[layer])
    gradient = torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], 1)
    before = torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1).detach().clone()
    optimizer.step()
    moved = (before - torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1)) / 0.5
    pi = ((a.trace() / 4) / (g.trace() / 4)).sqrt()
    eye_a, eye_g = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close((g + 0.1**0.5 / pi * eye_g) @ moved.detach() @ (a + 0.1**0.5 * pi * eye_a), gradient)


def test_the_step_is_bounded_by_the_clip() -> None:
    model = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    lengths = []
    for clip in (None, 1e9, 1e-4, 1e-6):
        twin = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
        optimizer = Kfac(twin, lr=0.5, momentum=0.0, kl_clip=clip, generator=torch.Generator().manual_seed(4))
        backward(twin, inputs(9, 3))
        grads = [p.grad.clone() for p in twin.parameters() if p.grad is not None]
        optimizer.step()
        # The clip bounds lr² Σ V·∇, and a step is lr V.
        steps = [b - p.detach() for b, p in zip(model.parameters(), twin.parameters(), strict=True)]
        change = sum(0.5 * (s * g).sum().item() for s, g in zip(steps, grads, strict=True))
        lengths.append((sum(s.square().sum().item() for s in steps) ** 0.5, change))
    assert lengths[0] == lengths[1], "a large bound changes nothing"
    assert lengths[2][0] == pytest.approx(10 * lengths[3][0]), "the step scales with the square root of the clip"
    assert lengths[2][0] < lengths[0][0]


def test_averages_follow_the_schedule_of_the_paper() -> None:
    model = network(nn.Linear(3, 4))
    optimizer = Kfac(model, lr=1e-9, decay=0.6, generator=torch.Generator().manual_seed(4))
    factors = []
    for step in range(4):
        backward(model, inputs(5 + step, 3))
        factors.append(factors_of(optimizer.signals[model[0]])[0])
        optimizer.step()
    expected = factors[0]
    for k, a in enumerate(factors[1:], start=2):
        keep = min(1 - 1 / k, 0.6)
        expected = keep * expected + (1 - keep) * a
    torch.testing.assert_close(optimizer.state[model[0].weight]["input_factor"], expected)


def test_parameters_without_factors_take_plain_steps() -> None:
    model = network(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    optimizer = Kfac(model, lr=0.5, momentum=0.0, kl_clip=None, generator=torch.Generator().manual_seed(4))
    backward(model, inputs(9, 3))
    norm = model[1]
    expected = norm.weight.detach() - 0.5 * norm.weight.grad
    optimizer.step()
    torch.testing.assert_close(norm.weight.detach(), expected)


def test_a_layer_used_twice_is_refused() -> None:
    layer = nn.Linear(3, 3)
    model = network(layer, nn.Tanh(), layer)
    Kfac(model)
    with pytest.raises(ValueError, match="Linear is used twice in one forward pass"):
        model(inputs(2, 3))


def test_inverses_of_factors_that_are_not_finite_do_not_raise() -> None:
    a, g = damped_inverses(torch.full((3, 3), torch.nan), torch.eye(2), 0.1)
    assert not torch.isfinite(a).any()
    assert torch.isfinite(g).all() or torch.isnan(g).any()
    zero, _ = damped_inverses(torch.zeros(3, 3), torch.eye(2), 0.1)
    assert torch.isfinite(zero).all()


def test_forward_passes_without_gradients_draw_nothing() -> None:
    model = network(nn.Linear(3, 4))
    random = torch.Generator().manual_seed(0)
    optimizer = Kfac(model, generator=random)
    before = random.get_state()
    with torch.no_grad():
        model(inputs(5, 3))
    assert torch.equal(before, random.get_state())
    assert optimizer.signals == {}


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_trial_alone_equals_the_trial_in_a_cohort(model: str, coarse_mnist: Dataset) -> None:
    changed = {"model": {"kind": "cnn", "channels": [4], "hidden": 16}} if model == "cnn" else {}
    suite = small_suite({"opt": {"target": "kfac", "lr": [0.1, 0.03]}}, seeds=2, max_epochs=1, **changed)
    together = train_suite(suite, coarse_mnist)
    for result in together:
        assert trial_row(result).status == "ok"
    assert same_bits(train_suite(suite, coarse_mnist, only=1)[0], together[1])
