"""A penalty on the effective rank of the features, added to the loss of any optimizer.

Legend: N examples in a batch; d features; r = min(N, d). Leading axes are networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optbench.errors import OptimizerError
from optbench.optimizers.wrapper import Wrapper
from optbench.precision import widest


class RankPenalty(Wrapper):
    """Wrapper that trains with `base` on cross-entropy + λ H, where exp H is the effective rank of a batch's features.

        C = (h - h̄)ᵀ(h - h̄) / N,    p = eigenvalues of C / tr C,    H = -Σ p ln p
        ∂H/∂h = (2/N) (h - h̄) A,    A = ∂H/∂C = -V diag(ln p + H) Vᵀ / tr C

    h (N, d) are the inputs of the last linear layer, and V are the eigenvectors of C. λ ∂H/∂h is added to the gradient
    with respect to h and backpropagated to all earlier weights; the gradient of the last layer itself does not change.
    Positive λ lowers the rank. H does not depend on the scale of the features or on the divisor of C.

    With `rotated` (the control), A is replaced by Q (A - tr A / d) Qᵀ, where Q is drawn uniformly from the orthogonal
    matrices at every step. The eigenvalues of this matrix are those of A minus their mean, but its directions carry no
    information. The mean is removed because small eigenvalues of C make it large. ∂H/∂h does not change the scale of
    the features, because tr AC = 0. Q A Qᵀ without this correction, however, would shrink or grow the features until
    their rank changed more than under ∂H/∂h itself.

    In optbench's engine, the penalty is part of the gradients (`engine.penalties`), and the base steps in its own lane,
    whatever its needs. This class does the same in a plain training loop, with one exception: if a forward pass calls
    the last layer several times, the class penalises the features of every call, whereas the engine penalises only
    those of the last call.

    Args:
        model: the network. The features are the inputs of its last `nn.Linear` in module order; a hook on this layer
            reads them.
        base: the optimizer that takes the steps, e.g. `{"target": "sgd", "lr": 0.1}`.
        strength: λ, of either sign; 0 leaves the base unchanged.
        rotated: whether to rotate A.
        generator: the CPU generator that draws Q; None: the global generator.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = RankPenalty(model, base={"target": "sgd", "lr": 0.1}, strength=0.03)
        >>> nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 3).backward()
        >>> optimizer.step()

    Reference: the effective rank of Roy & Vetterli 2007 (EUSIPCO), applied to the features' covariance.

    Raises:
        OptimizerError: as in `Wrapper`, or the model has no linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Mapping[str, Any],
        strength: float = 0.03,
        rotated: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            "rank-penalty outside of a run", model.parameters(), base, {"strength": strength, "rotated": rotated}
        )
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise OptimizerError(
                "rank-penalty: expected a model with an nn.Linear, whose input is used as features, got one without"
            )
        self.generator = generator
        linear[-1].register_forward_pre_hook(self._see)

    def _see(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features, group = inputs[0], self.param_groups[0]
        if group["strength"] == 0 or not features.requires_grad or not torch.is_grad_enabled():
            return
        rows = features.detach().flatten(0, -2)
        draws = self.generator or torch.default_generator
        _, gradient = entropy(rows, random_frame(rows, draws) if group["rotated"] else None)
        push = gradient.view_as(features) * group["strength"]
        features.register_hook(lambda found: found + push)  # type: ignore[no-untyped-call]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the base and the generator."""
        draws = self.generator.get_state() if self.generator is not None else None
        return {"base": super().state_dict(), "generator": draws}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["base"])
        if self.generator is not None:
            self.generator.set_state(state_dict["generator"])


@torch.no_grad()
def entropy(features: Tensor, frame: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return H (...) of features (..., N, d), in nats, and ∂H/∂h (..., N, d) in the dtype of the features.

    frame: (..., d, r), orthonormal columns that replace the eigenvectors of A. The mean eigenvalue of A is then
    removed, and the control's gradient is returned instead of ∂H/∂h.

    The computation is in float64 if the device supports it. It uses the smaller of (h - h̄)ᵀ(h - h̄) and
    (h - h̄)(h - h̄)ᵀ, which have the same non-zero eigenvalues. An eigenvalue of at most r ε times their sum, where ε
    is the machine precision, counts as zero: its p ln p is 0, and its gradient vanishes. Dead units have zero
    eigenvalues, as do all but N - 1 directions in a batch with N ≤ d. Features that are constant or not finite have
    H = 0 and a zero gradient.
    """
    exact = features.to(widest(features.device))
    centred = exact - exact.mean(-2, keepdim=True)
    few = centred.shape[-2] < centred.shape[-1]
    gram = centred @ centred.mT if few else centred.mT @ centred
    total = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]
    varies = total.isfinite() & (total > 0)  # the diagonal bounds the rest
    total = torch.where(varies, total, 1.0)
    shares, vectors = torch.linalg.eigh(torch.where(varies[..., None], gram / total[..., None], 0.0))
    there = shares > shares.shape[-1] * torch.finfo(shares.dtype).eps
    logs = torch.where(there, shares, 1.0).log()
    value = -(shares * logs).sum(-1, keepdim=True)
    slopes = torch.where(there, (logs + value) * (-2.0 / total), 0.0).unsqueeze(-2)
    if frame is not None:
        mean = slopes.sum(-1, keepdim=True) / centred.shape[-1]
        found = ((centred @ frame) * slopes) @ frame.mT - mean * centred
    else:
        matrix = (vectors * slopes) @ vectors.mT
        found = matrix @ centred if few else centred @ matrix
    # not multiplied by zero, which would turn an infinite feature into NaN
    return value.squeeze(-1), torch.where(varies[..., None], found, 0.0).to(features.dtype)


def random_frame(features: Tensor, generator: torch.Generator) -> Tensor:
    """Return orthonormal columns (d, r) in uniformly random directions, on the device of the features (N, d).

    The relevant columns of Q V have this distribution, because Q is uniformly distributed. The signs of the columns do
    not matter, because they cancel in Q A Qᵀ.
    """
    rows, width = features.shape
    dtype = widest(features.device)
    drawn = torch.randn(width, min(rows, width), generator=generator, dtype=dtype).to(features.device)
    frame: Tensor = torch.linalg.qr(drawn)[0]
    return frame
