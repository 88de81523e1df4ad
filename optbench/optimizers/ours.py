"""Specs of the optimizers implemented in optbench. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from optbench.optimizers.spec import OFF, Hyper, OptimizerSpec

_each = partial(OptimizerSpec, lane="per-member")
_wrapper = partial(_each, needs=frozenset({"random"}))  # for a base that may draw random numbers
_control = partial(OptimizerSpec, lane="its base's")

LEAST_FOR_NEWTON = 1e-15
"""The smallest usable epsilon with `root: newton`; smaller values vanish when added to eigenvalues in float64."""

SHAMPOO_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Gupta, Koren & Singer 2018, Algorithm 1.
    "gupta": {
        "lr": 1e-1,
        "momentum": 0.0,
        "beta2": 1.0,
        "initial_epsilon": 1e-6,
        "momentum_form": "heavy-ball",
        "grafting": "none",
    },
    # Anil et al. 2020, with Adam's step lengths: only the direction differs from Adam.
    "adam-grafted": {
        "lr": 1e-3,
        "momentum": 0.9,
        "beta2": 0.999,
        "initial_epsilon": 0.0,
        "momentum_form": "average",
        "grafting": "adam",
    },
}
"""The hyper-parameter values of each preset, which together select a form of Shampoo."""


def _shampoo_conflict(settings: Mapping[str, Any]) -> str | None:
    epsilon = settings.get("epsilon", 1.0)
    if settings.get("root") != "newton" or epsilon >= LEAST_FOR_NEWTON:
        return None
    return f"expected an epsilon of at least {LEAST_FOR_NEWTON:g} with root: newton, got {epsilon!r}"


OURS: tuple[OptimizerSpec, ...] = (
    OptimizerSpec(
        name="shampoo",
        target="optbench.optimizers.shampoo:Shampoo",
        lane="batched",
        summary="preconditions the rows and columns of weight matrices; presets gupta and adam-grafted; diagonal "
        "control; sides longer than max_side keep only the diagonal, others can be split into blocks of block_size",
        reference="Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018",
        state="3(m²+n²) per m×n matrix or block, a third of them in float64",
        hyperparameters={
            "preset": Hyper("gupta", "choice", choices=tuple(SHAMPOO_PRESETS)),
            "lr": Hyper(None, above=True),
            "momentum": Hyper(None, high=1.0),
            "beta2": Hyper(None, high=1.0),
            "epsilon": Hyper(1e-6, high=1.0),
            "initial_epsilon": Hyper(None),
            "weight_decay": Hyper(0.0),
            "precondition_frequency": Hyper("auto", "integer", low=1, choices=("auto",)),
            "refresh_share": Hyper(0.3),
            "small_side": Hyper(None, "integer", optional=True),
            "max_side": Hyper(8192, "integer", low=1),
            "block_size": Hyper(None, "integer", low=1, optional=True, added=True),
            "structure": Hyper("kronecker", "choice", choices=("kronecker", "diagonal-factor")),
            "momentum_form": Hyper(None, "choice", choices=("heavy-ball", "average")),
            "grafting": Hyper(None, "choice", choices=("none", "adam")),
            "graft_epsilon": Hyper(1e-8),
            "root": Hyper("eigh", "choice", choices=("eigh", "newton")),
            "root_precision": Hyper("auto", "choice", choices=("auto", "float64", "float32")),
        },
        recordable=True,
        conflict=_shampoo_conflict,
        per_member=frozenset({"lr", "momentum", "beta2", "epsilon", "initial_epsilon", "weight_decay"}),
        apart=frozenset({"momentum"}),
        presets=SHAMPOO_PRESETS,
        interval="precondition_frequency",
        step_cost=12.0,
    ),
    OptimizerSpec(
        name="power-sgd",
        target="optbench.optimizers.power_sgd:PowerSgd",
        lane="batched",
        summary="SGD preconditioned by |θ|^β, which induces sparsity; the counterpart of Powerpropagation",
        reference="Pascanu et al. 2025, arXiv:2507.12224, section 3.2; Schwarz et al. 2021, arXiv:2110.00296",
        state="0",
        hyperparameters={
            "lr": Hyper(1e-1, above=True),
            "beta": Hyper(1.0),
            "bias_scale": Hyper(1.0),
            "weight_decay": Hyper(0.0),
        },
        per_member=frozenset({"lr", "beta", "bias_scale", "weight_decay"}),
        recordable=True,
        step_cost=2.5,
    ),
    OptimizerSpec(
        name="sgdw",
        target="optbench.optimizers.sgdw:Sgdw",
        lane="elementwise",
        summary="SGD with decoupled weight decay, which differs from the weight decay of sgd if momentum is used",
        reference="Loshchilov & Hutter 2019, arXiv:1711.05101",
        state="0 (1 with momentum)",
        hyperparameters={
            "lr": Hyper(1e-3, above=True),
            "momentum": Hyper(0.0, high=1.0),
            "dampening": Hyper(0.0, high=1.0),
            "weight_decay": Hyper(0.0),
            "nesterov": OFF,
        },
        arguments_on={"cpu": {"fused": True}, "cuda": {"fused": True}},
        recordable=True,
    ),
    _wrapper(
        name="powerpropagation",
        target="optbench.optimizers.powerpropagation:Powerpropagation",
        summary="trains φ with a base optimizer; the weights are φ|φ|^(α-1), a parameterisation that induces sparsity",
        reference="Schwarz et al. 2021, arXiv:2110.00296",
        state="3, plus those of its base",
        hyperparameters={
            "base": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer"),
            "alpha": Hyper(2.0, low=1.0),
        },
        step_cost=2.0,
    ),
    _wrapper(
        name="l1",
        target="optbench.optimizers.l1:L1",
        summary="an L1 penalty, applied by soft-thresholding the weights after each step of a base optimizer",
        reference="Daubechies et al. 2004, arXiv:math/0307152",
        state="those of its base",
        hyperparameters={"base": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer"), "strength": Hyper(1e-5)},
    ),
    _control(
        name="rank-penalty",
        target="optbench.optimizers.rank_penalty:RankPenalty",
        summary="adds to the loss λ times the entropy of the features' spectrum, which controls their effective rank",
        reference="effective rank: Roy & Vetterli 2007 (EUSIPCO)",
        state="those of its base",
        hyperparameters={
            "base": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer"),
            "strength": Hyper(0.03, low=-math.inf),
            "rotated": OFF,
        },
        needs=frozenset({"model", "generator", "random"}),
    ),
    _control(
        name="l2-init",
        target="optbench.optimizers.l2_init:L2Init",
        summary="adds to the loss λ times the squared distance from the initial weights, for any base optimizer",
        reference="Kumar et al. 2023, arXiv:2308.11958",
        state="those of its base, plus the initial weights",
        hyperparameters={"base": Hyper({"target": "adam", "lr": 1e-3}, "optimizer"), "strength": Hyper(1e-3)},
        needs=frozenset({"random"}),
        step_cost=0.2,
    ),
    _control(
        name="shrink-and-perturb",
        target="optbench.optimizers.renewal:ShrinkAndPerturb",
        summary="shrinks the weights at each task's start and adds a fraction of new initial weights",
        reference="Ash & Adams 2020, arXiv:1910.08475",
        state="those of its base",
        hyperparameters={
            "base": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer"),
            "shrink": Hyper(0.4, high=1.0),
            "perturb": Hyper(0.1),
        },
        needs=frozenset({"model", "generator", "random"}),
        step_cost=0.0,
    ),
    _control(
        name="fresh-network",
        target="optbench.optimizers.renewal:FreshNetwork",
        summary="a new network and optimizer state for each task: the control for learning without earlier tasks",
        reference="random initialisation in Ash & Adams 2020, arXiv:1910.08475",
        state="those of its base",
        hyperparameters={"base": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer")},
        needs=frozenset({"model", "generator", "random"}),
        step_cost=0.0,
    ),
    _wrapper(
        name="switch",
        target="optbench.optimizers.switch:Switch",
        summary="one optimizer for the first steps and another for the rest, to find out which determines the basin",
        reference="Pascanu et al. 2025, arXiv:2507.12224, section 1",
        state="those of the active optimizer",
        hyperparameters={
            "first": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer"),
            "then": Hyper({"target": "adam", "lr": 1e-3}, "optimizer"),
            "at": Hyper(100, "integer"),
            "state": Hyper("reset", "choice", choices=("reset", "keep")),
        },
    ),
    _wrapper(
        name="sam",
        target="optbench.optimizers.sam:Sam",
        summary="sharpness-aware minimisation around a base optimizer, with two gradients per step",
        reference="Foret et al. 2021, arXiv:2010.01412; adaptive: Kwon et al. 2021, arXiv:2102.11600",
        state="those of its base",
        hyperparameters={
            "base": Hyper({"target": "sgd", "lr": 1e-1}, "optimizer"),
            "rho": Hyper(0.05),
            "adaptive": OFF,
            "steps": Hyper(None, "integer", low=1, optional=True, added=True),
        },
        needs=frozenset({"closure", "random"}),
        step_cost=2.0,
    ),
    _each(
        name="kfac",
        target="optbench.optimizers.kfac:Kfac",
        summary="natural gradient with one Kronecker product per layer, estimated from activations and sampled labels",
        reference="Martens & Grosse 2015, arXiv:1503.05671; convolutions: Grosse & Martens 2016, arXiv:1602.01407",
        state="1, and 2(m²+n²) per m×n matrix",
        hyperparameters={
            "lr": Hyper(0.1, above=True),
            "momentum": Hyper(0.9, high=1.0),
            "damping": Hyper(1e-2, above=True),
            "decay": Hyper(0.95, high=1.0),
            "factor_frequency": Hyper(1, "integer", low=1),
            "inverse_frequency": Hyper(20, "integer", low=1),
            "kl_clip": Hyper(1e-3, above=True, optional=True),
            "weight_decay": Hyper(0.0),
        },
        needs=frozenset({"model", "generator"}),
        interval="inverse_frequency",
        step_cost=10.0,
    ),
    _each(
        name="hessian-free",
        target="optbench.optimizers.hessian_free:HessianFree",
        summary="damped natural gradient, approximated by a few conjugate-gradient steps on every mini-batch",
        reference="Martens 2010; on mini-batches: Kiros 2013, arXiv:1301.3641",
        state="1",
        hyperparameters={
            "lr": Hyper(1.0, above=True),
            "damping": Hyper(1.0, above=True),
            "adapt_damping": OFF,
            "iterations": Hyper(5, "integer", low=1),
            "tolerance": Hyper(1e-3),
            "carry": Hyper(0.9, high=1.0),
        },
        needs=frozenset({"closure", "model"}),
        step_cost=15.0,
    ),
    _wrapper(
        name="gradient-noise",
        target="optbench.optimizers.gradient_noise:GradientNoise",
        summary="adds annealed Gaussian noise to the gradients of a base optimizer",
        reference="Neelakantan et al. 2015, arXiv:1511.06807",
        state="those of its base",
        hyperparameters={
            "base": Hyper({"target": "adam", "lr": 1e-3}, "optimizer"),
            "eta": Hyper(0.01),
            "gamma": Hyper(0.55),
            "steps": Hyper(None, "integer", low=1, optional=True),
        },
        needs=frozenset({"generator", "random"}),
        step_cost=2.0,
    ),
)
