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
    OptimizerSpec(
        name="power-sgd",
        target="optbench.optimizers.power_sgd:PowerSgd",
        lane="batched",
        summary="SGD preconditioned by |θ|^β, weights only: induces sparsity; the twin of Powerpropagation",
        reference="Pascanu et al. 2025, arXiv:2507.12224, section 3.2; Schwarz et al. 2021, arXiv:2110.00296",
        state="0",
        hyperparameters={"lr": Hyper(1e-1, above=True), "beta": Hyper(1.0), "weight_decay": Hyper(0.0)},
        per_member=frozenset({"lr", "beta", "weight_decay"}),
    ),
    OptimizerSpec(
        name="sam",
        target="optbench.optimizers.sam:Sam",
        lane="per-member",
        summary="sharpness-aware minimisation over a base optimizer: two gradients a step",
        reference="Foret et al. 2021, arXiv:2010.01412; adaptive: Kwon et al. 2021, arXiv:2102.11600",
        state="its base's",
        hyperparameters={
            "base": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer"),
            "rho": Hyper(0.05),
            "adaptive": Hyper(False, "boolean"),
        },
        needs=frozenset({"closure", "random"}),
    ),
    OptimizerSpec(
        name="gradient-noise",
        target="optbench.optimizers.gradient_noise:GradientNoise",
        lane="per-member",
        summary="annealed Gaussian noise on the gradients of a base optimizer",
        reference="Neelakantan et al. 2015, arXiv:1511.06807",
        state="its base's",
        hyperparameters={
            "base": Hyper({"target": "adam", "lr": 1e-3}, "optimizer"),
            "eta": Hyper(0.01),
            "gamma": Hyper(0.55),
            "steps": Hyper(None, "integer", low=1, optional=True),
        },
        needs=frozenset({"generator", "random"}),
    ),
)
