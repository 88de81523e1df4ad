"""The optimizers of optbench itself. Imports no torch."""

from __future__ import annotations

from optbench.optimizers.presets import SHAMPOO_PRESETS
from optbench.optimizers.spec import Hyper, OptimizerSpec

OURS: tuple[OptimizerSpec, ...] = (
    OptimizerSpec(
        name="shampoo",
        target="optbench.optimizers.shampoo:Shampoo",
        lane="batched",
        summary="preconditions rows and columns of a weight matrix; presets gupta, adam-grafted; diagonal control",
        reference="Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018",
        state="2(m²+n²) per m×n matrix in float64 and float32",
        hyperparameters={
            "preset": Hyper("gupta", "choice", choices=tuple(SHAMPOO_PRESETS)),
            "lr": Hyper(None, above=True),
            "momentum": Hyper(None, high=1.0),
            "beta2": Hyper(None, high=1.0),
            "epsilon": Hyper(1e-6, high=1.0),
            "initial_epsilon": Hyper(None),
            "weight_decay": Hyper(0.0),
            "precondition_frequency": Hyper(10, "integer", low=1),
            "small_side": Hyper(128, "integer"),
            "max_side": Hyper(8192, "integer", low=1),
            "structure": Hyper("kronecker", "choice", choices=("kronecker", "diagonal-factor")),
            "momentum_form": Hyper(None, "choice", choices=("heavy-ball", "average")),
            "grafting": Hyper(None, "choice", choices=("none", "adam")),
            "graft_epsilon": Hyper(1e-8),
        },
        per_member=frozenset({"lr", "momentum", "beta2", "epsilon", "initial_epsilon", "weight_decay"}),
        presets=SHAMPOO_PRESETS,
    ),
)
