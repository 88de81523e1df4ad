"""Shampoo: a preconditioner for each side of a weight matrix.

Shapes: M members; m rows and n columns of a parameter viewed as a matrix. A parameter of an ordinary model is treated
as the case M = 1, through a view, so that there is only one code path.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from optbench.errors import unknown
from optbench.optimizers import factors
from optbench.optimizers.blocks import joined
from optbench.optimizers.closures import evaluated
from optbench.optimizers.ours import SHAMPOO_PRESETS
from optbench.optimizers.roots import norms, one_by_one, precondition
from optbench.optimizers.shampoo_roots import (
    SMALL_SIDE,
    Numbers,
    block_sides,
    is_due,
    parts_of,
    renewed_by_need,
    roots_of,
    sides_of,
)
from optbench.optimizers.shampoo_settings import AUTO, PerMember, check_group, numbers_of
from optbench.precision import widest

DECOMPOSITION = 7
"""Number of float64 matrices in memory during a decomposition: copies, eigenvectors and LAPACK's workspace."""


class Shampoo(Optimizer):
    r"""Shampoo, which preconditions the rows and columns of weight matrices (Gupta et al. 2018; Anil et al. 2020).

    For W (m × n) with gradient G at step t, and w = 1 if β₂ = 1, else 1 − β₂:

        L ← β₂ L + w G Gᵀ,   R ← β₂ R + w Gᵀ G,   both starting at ε₀ I
        M ← β₁ M + G   (heavy ball)   or   β₁ M + (1 − β₁) G, divided by 1 − β₁ᵗ   (average)
        U = L̂^(−1/4) M R̂^(−1/4),   with L̂ = L / (1 − β₂ᵗ) if β₂ < 1, else L; R̂ likewise
        U ← U ‖A‖ / ‖U‖   if grafted, where A is Adam's step and norms are over the complete parameter
        W ← (1 − η λ) W − η U

    - Parameters with one dimension use the full-matrix form L̂^(−1/2) M; a scalar counts as a vector with one element.
      Tensors with more than two dimensions are treated as matrices: a convolution (o, i, h, w) as (o, i·h·w).
    - Before a root is computed, eigenvalues are raised to at least ε times the largest. Factors are accumulated in
      float64, but float32 can be used to decompose them and, on a CPU, for their growth between two refreshes (see
      `root_precision`).
      Roots are stored in the parameter's dtype (at least float32). A direction without gradients has root 0 only if
      ε = 0 or if there were no gradients at all.
    - Roots of sides up to `small_side` are refreshed at every step. Roots of longer sides are refreshed every
      `precondition_frequency` = k steps: at the first step, and at steps k, 2k, ..., counted from 1. `begin_task()`
      restarts the clock: roots are then refreshed at the first step of the task, 1, 2, 4, 8, ... steps later until k,
      and every k steps after that.
    - `precondition_frequency="auto"` refreshes a root when its factor, rescaled by the root, has grown or decayed by
      a factor of more than 1 + `refresh_share` in some direction (see `factors.outgrown`). Roots are also refreshed at
      the first step of a task, and after at most 500 steps. As far as a power iteration can tell, no step is therefore
      more than about (1 + `refresh_share`)^(1/2) times too long, whatever the gradients. Sides up to 128, or up to
      the longest output of a layer, are checked at every step. A longer side n is checked every n / 128 steps, and
      0, 1, 2, 4, ... steps into a task. Members are refreshed independently of each other. With ε = 0, every check
      leads to a refresh. All this applies to CPUs. An accelerator would have to synchronise for these checks, so it
      uses a schedule with k = 50 instead.
    - On a fixed schedule, a stale root can overshoot. Consider a direction that was absent at the last refresh. Until
      the next refresh, its scale exceeds that of the strongest direction by a factor of up to ε^(−1/4) for each stale
      side of a matrix, and of up to ε^(−1/2) in a vector, whose only root has the exponent −1/2. Network inputs change
      little from step to step, unlike hidden layers. By default, therefore, only roots of matrix sides longer than
      every layer's output become stale. A warning is issued if `small_side` lets other roots become stale. Call
      `begin_task()` before the first step on new data.
    - A root that cannot be computed, because its factor is not finite or `eigh` does not converge, keeps its previous
      value (initially zero). These cases are counted (see `fallbacks`).
    - `root="newton"` computes roots by matrix products only (a coupled Newton iteration), which an accelerator does for
      all members at the same time without synchronisation. Small eigenvalues are then not raised. Instead, ε times the
      largest eigenvalue, which is known to within a few percent, is added to every eigenvalue (as in Anil et al.). The
      result is nearly that of `"eigh"`. The method is the same on every device.
    - `block_size=b` splits every matrix into blocks of at most b × b, starting at its first row and column, and every
      vector into blocks of at most b elements. Each block is preconditioned as a separate matrix (Anil et al. 2020).
      Memory and the cost of roots then grow with the number of weights, not with the square of a side. Sides longer
      than `max_side` are not split but keep only the diagonal: an embedding of 30,522 × 768 has 30,522 numbers for one
      side and factors with b² numbers for the other. Grafting uses norms over the complete parameter.
    - `structure="diagonal-factor"` keeps only the diagonals of L and R: a control with everything else unchanged.
    - With β₂ = 1 the grafted step is Adagrad's (A = M / (√Σg² + ε_A)), and with β₂ < 1 Adam's.

    Presets (any explicit argument overrides them):

    ================  ====  ======  =======  =====  =============  ========
    preset            lr    β₁      β₂       ε₀     momentum_form  grafting
    ================  ====  ======  =======  =====  =============  ========
    ``gupta``         0.1   0       1        1e-6   heavy-ball     none
    ``adam-grafted``  1e-3  0.9     0.999    0      average        adam
    ================  ====  ======  =======  =====  =============  ========

    Lock-step (`stacked=True`): every parameter has shape (M, \*shape), with one slice per member. Each argument marked
    (M,) can be a tensor of this shape, in float64 so that 0.999 is not rounded before 1 − β₂ is computed. On a CPU with
    one intra-op thread, a member's slice is bit-identical to that member trained alone. Every tensor in `state` has the
    leading axis M, so that members can be dropped by `index_select` on axis 0 of the parameters, their state and the
    (M,) settings.

    Args:
        params: parameters or parameter groups; real and floating.
        lr: η ≥ 0, (M,).
        preset: `"gupta"` or `"adam-grafted"`.
        momentum: β₁ in [0, 1), (M,).
        beta2: β₂ in [0, 1], (M,); 1: the factors are sums over all of training.
        epsilon: ε in [0, 1], (M,): eigenvalues are raised to at least this fraction of the largest.
        initial_epsilon: ε₀ ≥ 0, (M,): the factors start at this multiple of the identity; the ε of Gupta et al.,
            Algorithm 1.
        weight_decay: λ ≥ 0, (M,), decoupled.
        precondition_frequency: k ≥ 1, steps between two refreshes of a root, or `"auto"`.
        refresh_share: ≥ 0, for `"auto"`: the relative change of a factor that triggers a refresh; 1 for a doubling.
        small_side: the length up to which roots of sides are refreshed at every step. The default is 0 with `"auto"` on
            a CPU. Otherwise, it is 128 or, if longer, the longest layer output (the rows of a matrix, the length of a
            vector) that does not exceed `max_side`.
        max_side: the longest side with a full factor. Longer sides keep only the diagonal, because n² numbers would not
            fit into memory.
        block_size: ≥ 1, the maximum side of a block; None: parameters are not split.
        structure: `"kronecker"` or `"diagonal-factor"`.
        momentum_form: `"heavy-ball"` or `"average"`.
        grafting: `"none"` or `"adam"`.
        graft_epsilon: ε_A ≥ 0 of the grafted Adam step.
        root: `"eigh"` or `"newton"`, which needs ε > 0.
        root_precision: the precision of the decomposition or of Newton's products and, on a CPU, of a factor's growth
            between two refreshes. `"auto"` uses `"float32"` on a CPU for a side n with ε ≥ n 2⁻²³ and parameters in
            float32 (see `factors.single_fits`), and `"float64"` otherwise.
        stacked: whether parameters have a leading member axis.

    Raises:
        ValueError: an argument is out of range or has the wrong shape, or a parameter is not real and floating.

    Warns:
        UserWarning: with `small_side`, roots of a layer's output side or of a vector become stale between refreshes.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Shampoo(model.parameters(), lr=0.1)
        >>> loss = model(torch.ones(3, 4)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()

    References:
        Gupta, Koren & Singer 2018, Shampoo: Preconditioned Stochastic Tensor Optimization, arXiv:1802.09568.
        Anil et al. 2020, Scalable Second Order Optimization for Deep Learning, arXiv:2002.09018.
        Guo & Higham 2006, A Schur-Newton Method for the Matrix p-th Root and its Inverse.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: PerMember | None = None,
        *,
        preset: str = "gupta",
        momentum: PerMember | None = None,
        beta2: PerMember | None = None,
        epsilon: PerMember = 1e-6,
        initial_epsilon: PerMember | None = None,
        weight_decay: PerMember = 0.0,
        precondition_frequency: int | Literal["auto"] = "auto",
        refresh_share: float = 0.3,
        small_side: int | None = None,
        max_side: int = 8192,
        block_size: int | None = None,
        structure: Literal["kronecker", "diagonal-factor"] = "kronecker",
        momentum_form: Literal["heavy-ball", "average"] | None = None,
        grafting: Literal["none", "adam"] | None = None,
        graft_epsilon: float = 1e-8,
        root: Literal["eigh", "newton"] = "eigh",
        root_precision: Literal["auto", "float64", "float32"] = "auto",
        stacked: bool = False,
    ) -> None:
        if preset not in SHAMPOO_PRESETS:
            raise ValueError(unknown("preset", preset, SHAMPOO_PRESETS))
        explicit = {
            "lr": lr,
            "momentum": momentum,
            "beta2": beta2,
            "initial_epsilon": initial_epsilon,
            "momentum_form": momentum_form,
            "grafting": grafting,
        }
        # Everything is stored in the groups: an attribute would be lost when the optimizer is copied or pickled.
        defaults = dict(SHAMPOO_PRESETS[preset]) | {
            name: value for name, value in explicit.items() if value is not None
        }
        defaults |= {
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "refresh_share": refresh_share,
            "small_side": small_side,
            "max_side": max_side,
            "block_size": block_size,
            "structure": structure,
            "graft_epsilon": graft_epsilon,
            "root": root,
            "root_precision": root_precision,
            "stacked": stacked,
            "clock": 0,
            "task_begun": False,
        }
        super().__init__(params, defaults)
        self._warn_of_stale_sides()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as in `torch.optim.Optimizer`. Raises ValueError as the constructor does."""
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        self._set_refreshed_sides()

    def _set_refreshed_sides(self) -> None:
        """Store in every group the side lengths up to which roots are refreshed, or checked, at every step."""
        longest = self._longest_output()
        for group in self.param_groups:
            chosen, group["layer_side"] = group["small_side"], max(SMALL_SIDE, longest)
            group["refreshed_side"] = group["layer_side"] if chosen is None else chosen

    def _longest_output(self) -> int:
        """Return the length of the longest layer output that has a full factor; 0 if none has one."""
        outputs = [
            (block_sides(p, group)[0], group["max_side"]) for group in self.param_groups for p in group["params"]
        ]
        return max((size for size, most in outputs if size <= most), default=0)

    def _warn_of_stale_sides(self) -> None:
        longest = self._longest_output()
        for group in self.param_groups:
            every, refreshed = group["precondition_frequency"], group["refreshed_side"]
            sides = [block_sides(parameter, group) for parameter in group["params"]]
            stale = [(size, len(both)) for both in sides for size in both if refreshed < size <= longest]
            if every in (1, AUTO) or not stale:
                continue
            size = max(length for length, _ in stale)
            power = 1 / 2 if any(count == 1 for _, count in stale) else 1 / 4  # vectors have the worst bound
            smallest = float(numbers_of(group["epsilon"]).min())
            times = (
                f"up to {smallest**-power:.3g} times too long" if smallest > 0 else "too long by an unbounded factor"
            )
            warnings.warn(
                f"Shampoo: small_side={group['small_side']} leaves roots of layer sides of length {size} stale for "
                f"up to {every} steps, which makes steps {times}; small_side={longest} refreshes them at every step",
                UserWarning,
                stacklevel=3,
            )

    def begin_task(self) -> None:
        """Restart the refresh clock. Call this before the first step on new data."""
        for group in self.param_groups:
            group["clock"], group["task_begun"] = 0, True

    def fallbacks(self) -> Tensor:
        """Return the number of roots that could not be computed: (M,), int64, on the CPU.

        The number is summed over all sides and parameters. In each case, the previous root was kept.
        """
        counts = [state["fallbacks"].cpu() for state in self.state.values() if state]
        if counts:
            return torch.stack(counts).sum(0)
        group = self.param_groups[0]
        return torch.zeros(group["params"][0].shape[0] if group["stacked"] else 1, dtype=torch.int64)

    def planned(self, rows: int = 0) -> tuple[int, int]:
        """Return the sizes in bytes of the state on a CPU and of a step's temporary tensors, from parameter shapes.

        Parameters can be on the device `meta`. rows: as in `Kfac.planned`; ignored.
        """
        state = work = 0
        for group in self.param_groups:
            epsilon = numbers_of(group["epsilon"]).flatten().tolist()
            kept = bool(torch.as_tensor(group["momentum"]).any()) + (group["grafting"] == "adam")
            for p in group["params"]:
                members, item = p.shape[0] if group["stacked"] else 1, max(4, p.element_size())
                state += 16 * members + kept * p.numel() * item
                work = max(work, (6 * item + 8) * p.numel())
                for part in parts_of(p, group):
                    for n in (part.height, part.width)[: len(sides_of(p, group))]:
                        fits = {"auto": item == 4 and all(factors.single_fits(n, epsilon)), "float32": True}
                        single = fits.get(group["root_precision"], False)
                        diagonal = group["structure"] == "diagonal-factor" or n > group["max_side"]
                        by_need = renewed_by_need(n, group)
                        state += members * part.count * factors.planned(n, item, diagonal, single, by_need)
                        work = max(work, 0 if diagonal else DECOMPOSITION * 8 * n * n)
        return state, work

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; training then continues as it would have without interruption."""
        super().load_state_dict(state_dict)
        # The base class casts every state tensor to the parameter's dtype, including float64 factors and counts.
        identifiers = [identifier for group in state_dict["param_groups"] for identifier in group["params"]]
        parameters = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for identifier, (parameter, group) in zip(identifiers, parameters, strict=True):
            for name, value in state_dict["state"].get(identifier, {}).items():
                self.state[parameter][name] = value.detach().to(parameter.device, copy=True)
            if (state := self.state.get(parameter)) and not one_by_one(parameter):
                for part in parts_of(parameter, group):
                    own = part.opened(state)
                    for side in {"left", "right"} & own.keys():
                        factors.moved(own, side)
                    part.close(own, state)
        self._set_refreshed_sides()

    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient; return the loss of `closure`, or None without a closure.

        `closure` recomputes the loss and gradients before the update.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = evaluated(closure)
        self.work()
        self.advance()
        return loss

    @torch.no_grad()
    def work(self) -> None:
        """Take a step with the current gradients without advancing the clock. Raises RuntimeError as `step` does."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.numel() == 0:
                    continue
                if parameter.grad.is_sparse:
                    raise RuntimeError("Shampoo: expected dense gradients, got a sparse one")
                self._update(parameter, group)

    def upcoming(self) -> tuple[object, ...] | None:
        """Return the roots that the next step refreshes. Steps that refresh the same roots do the same work.

        The result is None for a first step, or if the device must be synchronised, either to check which roots are due
        or because `eigh` computes a root.
        """
        found: list[object] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.numel() == 0:
                    continue
                state = self.state[parameter]
                if not state:
                    return None
                ask = one_by_one(parameter)
                for part in parts_of(parameter, group):
                    own = part.opened(state)
                    sides = [side for side in ("left", "right") if side in own]
                    due = {side: is_due(own[side].shape[1], len(sides), group, ask) for side in sides}
                    if None in due.values():
                        return None
                    if group["root"] == "eigh" and any(own[side].ndim == 3 for side in sides if due[side]):
                        return None
                    found.append(frozenset(side for side in sides if due[side]))
        return tuple(found)

    def advance(self) -> None:
        """Advance the refresh clock by one step."""
        for group in self.param_groups:
            group["clock"] += 1

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        weights = parameter if group["stacked"] else parameter.unsqueeze(0)
        gradient = cast(Tensor, parameter.grad)
        g = _as_matrices(gradient if group["stacked"] else gradient.unsqueeze(0))
        g = g.to(torch.promote_types(g.dtype, torch.float32))

        def setting(name: str) -> Tensor:
            return torch.as_tensor(group[name], dtype=widest(g.device), device=g.device).expand(g.shape[0])

        def column(values: Tensor) -> Tensor:
            return values.to(g.dtype).view(-1, 1, 1)

        state = self.state[parameter]
        fresh = not state
        if fresh:
            _start(state, g, group)
        assert state["step"].shape == g.shape[:1], "members were dropped from the parameters but not from their state"
        state["step"] += 1

        beta2 = setting("beta2")
        new = torch.where(beta2 == 1, 1.0, 1 - beta2)
        correction = _bias_correction(beta2, state["step"])
        moment = g
        if _any(group["momentum"]):
            beta1 = setting("momentum")
            average = group["momentum_form"] == "average"
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(g)
            # Here and below: no fused multiply-add, whose rounding depends on an element's position in the stack.
            state["momentum"].mul_(column(beta1)).add_(g * column(1 - beta1) if average else g)
            moment = state["momentum"]
            if average:
                moment = moment / column(_bias_correction(beta1, state["step"]))

        # A parameter is a matrix with 2 sides (root 4) or a vector with 1 side (root 2).
        sides = ("left",) if weights.ndim <= 2 else ("left", "right")
        numbers = Numbers(setting("epsilon"), beta2, new, correction)
        found = {
            part: precondition(roots_of(part, sides, part.cut(g), numbers, state, group, fresh=fresh), part.cut(moment))
            for part in parts_of(parameter, group)
        }
        update = joined(found, g)

        if group["grafting"] == "adam":
            state["second_moment"].mul_(column(beta2)).add_((g * g).mul_(column(new)))
            adam = moment / ((state["second_moment"] / column(correction)).sqrt_().add_(group["graft_epsilon"]))
            length = norms(update)
            update.mul_(column(torch.where(length > 0, norms(adam) / length, 0.0)))

        lr = setting("lr")
        shrink = (1 - lr * setting("weight_decay")).to(g.dtype)
        weights.mul_(shrink.view(-1, *[1] * (weights.ndim - 1)))
        weights.sub_(update.mul_(column(lr)).reshape(weights.shape))


def _any(value: PerMember) -> bool:
    """Return whether a setting is non-zero for any member; always True on accelerators, to avoid synchronisation."""
    if isinstance(value, Tensor) and not one_by_one(value):
        return True
    return bool(torch.as_tensor(value).any())


def _as_matrices(x: Tensor) -> Tensor:
    """Reshape (M, *shape) to (M, m, n): scalars and vectors become one column; further dimensions are merged into n."""
    if x.ndim <= 2:
        return x.reshape(x.shape[0], -1, 1)
    return x.reshape(x.shape[0], x.shape[1], -1)


def _start(state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> None:
    for name in ("step", "fallbacks"):
        state[name] = torch.zeros(len(g), dtype=torch.int64, device=g.device)
    if group["grafting"] == "adam":
        state["second_moment"] = torch.zeros_like(g)


def _bias_correction(beta: Tensor, step: Tensor) -> Tensor:
    """Return 1 − βᵗ for each member, and 1 if β = 1; shape (M,)."""
    if one_by_one(beta):
        # Python's power, because a vectorised one may round the last members of a stack differently.
        pairs: Iterable[tuple[float, int]] = zip(beta.tolist(), step.tolist(), strict=True)
        return torch.tensor([1 - b**t if b < 1 else 1.0 for b, t in pairs], dtype=beta.dtype)
    return torch.where(beta == 1, 1.0, 1 - beta**step)
