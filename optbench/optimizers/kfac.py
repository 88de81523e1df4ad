"""K-FAC: natural gradient with one Kronecker product per layer, for fully connected and convolutional networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from optbench.optimizers.closures import evaluated
from optbench.optimizers.regions import ROOTS, STATISTICS
from optbench.optimizers.roots import one_by_one
from optbench.optimizers.symmetric import add_gram
from optbench.precision import without_casts


@dataclass(frozen=True)
class LayerSignals:
    """The inputs of one layer in a forward pass, and the gradients with respect to the layer's outputs.

    inputs: (R, a) rows to which the weight matrix was applied, with a 1 appended if there is a bias.
    gradients: (R, o) gradients of the summed negative log-likelihood of sampled labels with respect to the outputs.
    predictions: N, the network's number of predictions. R is N in a fully connected layer of a plain classifier, and
    N T in a convolution with T output positions.
    """

    inputs: Tensor
    gradients: Tensor
    predictions: int

    def average_into(self, a: Tensor, g: Tensor, kept: float) -> None:
        """Update A ← kept A + (1 − kept) Σ x xᵀ / N and G ← kept G + (1 − kept) Σ g gᵀ / R, summing over all rows.

        a: A, (a, a). g: G, (o, o). Both are lower panels on a CPU.
        """
        for factor, rows, count in ((a, self.inputs, self.predictions), (g, self.gradients, len(self.gradients))):
            if one_by_one(rows):
                add_gram(factor, rows.T, kept, (1 - kept) / count)
            else:
                factor.lerp_(rows.T @ rows / count, 1 - kept)


class Move(NamedTuple):
    """The direction of one parameter's step, before scaling."""

    group: dict[str, Any]
    parameter: Tensor
    gradient: Tensor
    direction: Tensor


class Kfac(torch.optim.Optimizer):
    """Natural-gradient optimizer that approximates the Fisher matrix by one Kronecker product per layer.

        F ≈ A ⊗ G,   A = E[x xᵀ],  G = E[g gᵀ],      V = (G + √λ/π)⁻¹ ∇W (A + π √λ)⁻¹,   W ← W - lr · momentum(ν V)

    x are a layer's inputs, with a 1 appended for the bias, and g are the gradients of log p(y | input) with respect to
    the layer's outputs. The labels y are drawn from the network's prediction, so that F is the true Fisher matrix, not
    the empirical one. In a convolution, x are the input patches, and E is the sum over positions for A but the mean
    over positions for G (Grosse & Martens 2016).
    π² = (tr A / a) / (tr G / o) distributes the damping λ over the two factors (Martens & Grosse 2015, section 6.3).
    ν = min(1, √(kl_clip / (lr² Σ V·∇W))) bounds the change in the prediction per step (Ba et al. 2017, section 5).

    The network must be a softmax classifier with logits (N, classes), or (B, T, classes) for sequences with N = B T
    predicted positions. N can be less than a layer's number of positions, e.g. for masked tokens. A is the sum over all
    rows of a layer divided by N, because the loss is a mean over predictions. G is the mean over rows, so that each
    row is treated as an example (K-FAC-expand, Eschenhagen et al. 2023).

    If the network returns a tuple of outputs, the loss is the sum of their mean losses. The gradients of a further
    output with N' predictions are weighted by √(N/N'), so that this output's part of the Fisher matrix is a mean over
    its own predictions.

    Parameters of other layers (normalisations, embeddings, grouped convolutions) take plain gradient steps: V = ∇W.

    Args:
        model: the network; forward hooks on it and its layers record inputs and draw labels.
        lr: learning rate. momentum: coefficient of the momentum of preconditioned gradients.
        weight_decay: coefficient of decoupled weight decay.
        damping: λ > 0.
        decay: upper bound on the decay of the factors' running averages; the k-th update uses min(1 - 1/k, decay).
        factor_frequency: steps between updates of the factors. inverse_frequency: steps between inversions.
        kl_clip: bound on the change in the prediction per step; None: unbounded.
        generator: the CPU generator that draws the labels; None: the global generator.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> optimizer = Kfac(model, lr=0.1)
        >>> nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 3).backward()
        >>> optimizer.step()

    Reference: Martens & Grosse 2015, arXiv:1503.05671; Grosse & Martens 2016, arXiv:1602.01407; Eschenhagen et al.
    2023, arXiv:2311.00636.

    Raises ValueError in a forward pass that uses a layer twice.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.9,
        damping: float = 1e-2,
        decay: float = 0.95,
        factor_frequency: int = 1,
        inverse_frequency: int = 20,
        kl_clip: float | None = 1e-3,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "damping": damping,
            "decay": decay,
            "factor_frequency": factor_frequency,
            "inverse_frequency": inverse_frequency,
            "kl_clip": kl_clip,
            "weight_decay": weight_decay,
            "steps": 0,
        }
        self._layers = [module for module in model.modules() if _supported(module)]
        self._generator = generator
        # One group per layer, in which weight and bias form one matrix, then one for all other parameters.
        groups = [{"params": list(layer.parameters(recurse=False))} for layer in self._layers]
        own = {p for group in groups for p in group["params"]}
        rest = [p for p in model.parameters() if p not in own]
        super().__init__([*groups, {"params": rest}] if rest else groups, defaults)
        self._looking = False
        self._inputs: dict[nn.Module, Tensor] = {}
        self._outputs: dict[nn.Module, Tensor] = {}
        self.signals: dict[nn.Module, LayerSignals] = {}
        """Signals of the last forward pass, by layer."""
        for layer in self._layers:
            layer.register_forward_hook(self._see_layer)
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._see_prediction)

    def _due(self, frequency: str) -> bool:
        return bool(self.param_groups[0]["steps"] % self.param_groups[0][frequency] == 0)

    def _begin(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._inputs, self._outputs = {}, {}
        self._looking = torch.is_grad_enabled() and self._due("factor_frequency")

    def _see_layer(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if not (self._looking and output.requires_grad):
            return  # includes a layer called outside the network's forward pass
        if layer in self._outputs:
            raise ValueError(f"{type(layer).__name__} is used twice in one forward pass, which K-FAC does not support")
        self._inputs[layer], self._outputs[layer] = inputs[0].detach(), output

    def _see_prediction(self, model: nn.Module, inputs: tuple[Any, ...], logits: Tensor | tuple[Tensor, ...]) -> None:
        """Draw labels from the prediction and backpropagate their log-likelihood to every layer's outputs."""
        self._looking = False
        if self._outputs:
            predictions = (logits,) if isinstance(logits, Tensor) else logits
            # Statistics have the precision of the weights, even under autocast.
            with STATISTICS, without_casts(predictions[0].device):
                self._follow(predictions)

    def _follow(self, predictions: Sequence[Tensor]) -> None:
        seen, self._outputs = self._outputs, {}
        losses = []
        count = predictions[0].shape[:-1].numel()
        exact = self.param_groups[0]["params"][0].dtype
        for logits in (found.flatten(0, -2).to(exact) for found in predictions):
            with torch.no_grad():
                chances = logits.softmax(1).nan_to_num(1.0).cpu()  # labels cannot be drawn from a diverged network
                labels = torch.multinomial(chances, 1, generator=self._generator).squeeze(1).to(logits.device)
            drawn = nn.functional.cross_entropy(logits, labels, reduction="sum")
            losses.append(drawn if len(logits) == count else drawn * (count / len(logits)) ** 0.5)
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        found = torch.autograd.grad(loss, list(seen.values()), retain_graph=True)
        self.signals = {
            layer: _signals(layer, self._inputs[layer], gradient, count)
            for layer, gradient in zip(seen, found, strict=True)
        }
        self._inputs.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the current gradients; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
        signals, self.signals = self.signals, {}
        moves: list[Move] = []
        for group, layer in zip(self.param_groups, [*self._layers, None], strict=False):
            if any(p.grad is None for p in group["params"]):
                continue
            if layer is None:
                moves += [Move(group, p, p.grad, p.grad) for p in group["params"]]
                continue
            state = self.state[group["params"][0]]
            if layer in signals:
                with STATISTICS:
                    _average(state, group, signals[layer])
            if "input_factor" not in state:  # no forward pass yet, as after loading an empty state
                moves += [Move(group, p, p.grad, p.grad) for p in group["params"]]
                continue
            if "input_inverse" not in state or self._due("inverse_frequency"):
                with ROOTS:
                    state["input_inverse"], state["output_inverse"] = damped_inverses(
                        state["input_factor"], state["output_factor"], group["damping"]
                    )
            directions = _preconditioned(group, state)
            moves += [Move(group, p, p.grad, v) for p, v in zip(group["params"], directions, strict=True)]
        scale = self._trusted(moves)
        for move in moves:
            group, p = move.group, move.parameter
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.mul_(group["momentum"]).add_(move.direction * scale)
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * buffer)
        for group in self.param_groups:
            group["steps"] += 1
        return loss

    def planned(self, rows: int) -> tuple[int, int]:
        """Return the sizes in bytes of the state and of a step's temporary tensors, computed from the layers' shapes.

        rows: number of rows in each layer's signals, i.e. examples times positions per example.
        """
        sides = []
        for layer in self._layers:
            weight, *bias = layer.parameters(recurse=False)
            sides.append((weight[0].numel() + len(bias), len(weight)))
        weights = sum(p.numel() for group in self.param_groups for p in group["params"])
        state = 4 * weights + sum(8 * (a * a + o * o) for a, o in sides)
        longest = max((side for pair in sides for side in pair), default=0)
        return state, 4 * rows * sum(map(sum, sides)) + 4 * 8 * longest**2

    def _trusted(self, moves: list[Move]) -> Tensor | float:
        """Return the factor ν by which all directions are scaled."""
        clip = self.param_groups[0]["kl_clip"]
        if clip is None or not moves:
            return 1.0
        change = torch.stack([(m.direction * m.gradient).sum() for m in moves]).sum()
        # lr² is not part of the product, which would overflow for an absurdly large lr. All groups have the same lr.
        scale: Tensor = (clip / change.clamp_min(torch.finfo(change.dtype).tiny)).sqrt() / self.param_groups[0]["lr"]
        return scale.clamp_max(1.0)


def damped_inverses(a: Tensor, g: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return (A + π √λ)⁻¹ and (G + √λ/π)⁻¹ for positive semi-definite A (a, a) and G (o, o).

    Only the lower triangles of A and G are read. The inverses are computed in float64. Non-finite factors give
    non-finite inverses.
    """
    tiny = torch.finfo(a.dtype).tiny
    pi = ((a.trace() / len(a)).clamp_min(tiny) / (g.trace() / len(g)).clamp_min(tiny)).sqrt().double()
    root = damping**0.5
    return _inverse(a, root * pi), _inverse(g, root / pi)


def _inverse(factor: Tensor, damping: Tensor) -> Tensor:
    lifted = factor.double() + damping * torch.eye(len(factor), dtype=torch.float64, device=factor.device)
    # `cholesky` would raise for a diverged trial, which is detected later by its weights.
    root, _ = torch.linalg.cholesky_ex(lifted)
    return torch.cholesky_inverse(root).to(factor.dtype)


def _average(state: dict[str, Any], group: dict[str, Any], signals: LayerSignals) -> None:
    """Update the running averages of a layer's factors; the first update sets them without averaging."""
    updates = group["steps"] // group["factor_frequency"] + 1
    kept = min(1 - 1 / updates, group["decay"]) if "input_factor" in state else 0.0
    for name, rows in (("input_factor", signals.inputs), ("output_factor", signals.gradients)):
        if name not in state:
            state[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
    signals.average_into(state["input_factor"], state["output_factor"], kept)


def _preconditioned(group: dict[str, Any], state: dict[str, Any]) -> list[Tensor]:
    """Return V for a layer's weight and, if there is one, for its bias."""
    weight, *bias = group["params"]
    gradient = torch.cat([weight.grad.flatten(1), *(p.grad.unsqueeze(1) for p in bias)], 1)
    found = state["output_inverse"] @ gradient @ state["input_inverse"]
    width = weight[0].numel()
    return [found[:, :width].view_as(weight), *(found[:, width] for _ in bias)]


def _supported(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _signals(layer: nn.Module, inputs: Tensor, gradient: Tensor, predictions: int) -> LayerSignals:
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        patches = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        rows = patches.transpose(1, 2).flatten(0, 1)  # (N, a, T) to (N T, a), in the order of the weight's axes
        gradients = gradient.flatten(2).transpose(1, 2).flatten(0, 1)
    else:
        rows, gradients = inputs.flatten(0, -2), gradient.flatten(0, -2)
    exact = next(layer.parameters()).dtype
    rows, gradients = rows.to(exact), gradients.to(exact)
    if layer.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    return LayerSignals(rows, gradients, predictions)
