"""Specs of the optimizers in the package pytorch-optimizer, which the extra `optimizers` installs.

This module imports neither that package nor torch.

All of these optimizers run in the per-member lane, even the elementwise ones. They count steps in the parameter group,
which cannot hold a separate count for each member of a stack.
"""

from __future__ import annotations

from functools import partial

from optbench.optimizers.spec import ADAM, BETAS, LR, OFF, ON, WEIGHT_DECAY, Hyper, OptimizerSpec

_spec = partial(OptimizerSpec, lane="per-member", source="pytorch-optimizer")

PYTORCH_OPTIMIZER: tuple[OptimizerSpec, ...] = (
    _spec(
        name="soap",
        target="pytorch_optimizer:SOAP",
        summary="Adam in the eigenbasis of Shampoo's preconditioner; plain Adam for vectors, sides longer than "
        "max_precondition_dim, embeddings and the output layer; the first step only initialises the preconditioner",
        reference="Vyas et al. 2024, arXiv:2409.11321",
        state="2, and 2(m²+n²) per m×n matrix",
        hyperparameters={
            **ADAM,
            "lr": Hyper(3e-3, above=True),
            "betas": Hyper((0.95, 0.95), "betas"),
            "weight_decay": Hyper(1e-2),
            "precondition_frequency": Hyper(10, "integer", low=1),
            "shampoo_beta": Hyper(None, high=1.0, optional=True),
            "max_precondition_dim": Hyper(10000, "integer", low=1),
            "merge_dims": OFF,
            "precondition_1d": OFF,
            "correct_bias": ON,
            "normalize_gradient": OFF,
        },
        interval="precondition_frequency",
        at_the_ends={"max_precondition_dim": 0},
        step_cost=12.0,
    ),
    _spec(
        name="scalable-shampoo",
        target="pytorch_optimizer:ScalableShampoo",
        summary="Shampoo as used at scale: moving averages, blocks, momentum, and SGD's step length in each layer",
        reference="Anil et al. 2020, arXiv:2002.09018",
        state="2, and 2(m²+n²) per m×n matrix, in blocks",
        hyperparameters={
            "lr": LR,
            "betas": BETAS,
            "moving_average_for_momentum": OFF,
            "weight_decay": WEIGHT_DECAY,
            "decoupled_weight_decay": OFF,
            "start_preconditioning_step": Hyper(25, "integer", low=1),
            # The package's default of 1,000 exceeds the number of steps in many tasks here.
            "preconditioning_compute_steps": Hyper(50, "integer", low=1),
            "statistics_compute_steps": Hyper(1, "integer", low=1),
            "block_size": Hyper(512, "integer", low=1),
            # The package's default merges the axes of small layers into one, which is then not preconditioned.
            "shape_interpretation": OFF,
            "nesterov": ON,
            "matrix_eps": Hyper(1e-6),
            "use_svd": OFF,
        },
        needs=frozenset({"random"}),  # its Newton iteration starts with a power iteration from a random vector
        interval="preconditioning_compute_steps",
        step_cost=20.0,
    ),
    _spec(
        name="kron",
        target="pytorch_optimizer:Kron",
        summary="PSGD: SGD whitened by Kronecker factors fitted to momenta and random probes; diagonal on long sides",
        reference="Li 2018, arXiv:1512.04202; Pooladzandi & Li 2024, arXiv:2402.04553",
        state="1, and m²+n² per m×n matrix",
        hyperparameters={
            "lr": LR,
            "momentum": Hyper(0.9, high=0.9999),
            "weight_decay": WEIGHT_DECAY,
            "weight_decouple": ON,
            "max_size_triangular": Hyper(512, "integer", low=1),
            "min_ndim_triangular": Hyper(2, "integer", low=1),
            "momentum_into_precondition_update": ON,
            "balance_prob": Hyper(0.01, high=1.0),
        },
        needs=frozenset({"random"}),
        step_cost=25.0,
    ),
    _spec(
        name="lion",
        target="pytorch_optimizer:Lion",
        summary="steps along the sign of a momentum, with the same size for every weight",
        reference="Chen et al. 2023, arXiv:2302.06675",
        state="1",
        hyperparameters={
            "lr": Hyper(1e-4, above=True),
            "betas": Hyper((0.9, 0.99), "betas"),
            "weight_decay": WEIGHT_DECAY,
            "weight_decouple": ON,
        },
    ),
    _spec(
        name="prodigy",
        target="pytorch_optimizer:Prodigy",
        summary="Adam that estimates its step length from the distance travelled; lr is a factor on the estimate",
        reference="Mishchenko & Defazio 2024, arXiv:2306.06101",
        state="4",
        hyperparameters={
            "lr": Hyper(1.0, above=True),
            "betas": BETAS,
            "beta3": Hyper(None, high=1.0, optional=True),
            "eps": Hyper(1e-8),
            "weight_decay": WEIGHT_DECAY,
            "weight_decouple": ON,
            "d0": Hyper(1e-6, above=True),
            "d_coef": Hyper(1.0, above=True),
            "bias_correction": OFF,
            "safeguard_warmup": OFF,
        },
        takes_schedule=False,
        step_cost=2.0,
    ),
    _spec(
        name="adabelief",
        target="pytorch_optimizer:AdaBelief",
        summary="Adam with the second moment replaced by the variance of the gradient about its mean",
        reference="Zhuang et al. 2020, arXiv:2010.07468",
        state="2 (3 with ams_bound)",
        hyperparameters={
            **ADAM,
            "eps": Hyper(1e-16),
            "weight_decouple": ON,
            "rectify": OFF,
            "ams_bound": OFF,
        },
        step_cost=1.5,
    ),
    _spec(
        name="ademamix",
        target="pytorch_optimizer:AdEMAMix",
        summary="Adam with a second, much slower momentum",
        reference="Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137",
        state="3",
        hyperparameters={
            "lr": LR,
            "betas": Hyper((0.9, 0.999, 0.9999), "betas"),
            "alpha": Hyper(5.0),
            "t_alpha_beta3": Hyper(None, above=True, optional=True),
            "eps": Hyper(1e-8),
            "weight_decay": WEIGHT_DECAY,
            # As in the paper's Algorithm 1; by default, the package adds the decay to the gradient.
            "weight_decouple": ON,
        },
        step_cost=1.5,
    ),
    _spec(
        name="lamb",
        target="pytorch_optimizer:Lamb",
        summary="Adam with steps proportional to the norm of each weight tensor, without bias correction",
        reference="You et al. 2020, arXiv:1904.00962",
        state="2",
        hyperparameters={
            **ADAM,
            "eps": Hyper(1e-6),
            # As in the paper's Algorithm 2, where the decay is part of the step that is scaled.
            "weight_decouple": OFF,
            "grad_averaging": ON,
            # Otherwise the package divides the scaled step by 1 - β1^t, which makes the first steps ten times too long
            # and appears in no version of the paper.
            "adam_debias": ON,
        },
    ),
    _spec(
        name="adan",
        target="pytorch_optimizer:Adan",
        summary="Adam with Nesterov's momentum, computed from differences between successive gradients",
        reference="Xie et al. 2022, arXiv:2208.06677",
        state="4",
        hyperparameters={
            **ADAM,
            "betas": Hyper((0.98, 0.92, 0.99), "betas"),
            "weight_decouple": OFF,
            "max_grad_norm": Hyper(0.0),
        },
    ),
    _spec(
        name="schedule-free",
        target="pytorch_optimizer:ScheduleFreeAdamW",
        summary="AdamW without a schedule: computes gradients at interpolated weights and evaluates averaged weights",
        reference="Defazio et al. 2024, arXiv:2405.15682",
        state="2",
        hyperparameters={
            "lr": Hyper(2.5e-3, above=True),
            "betas": Hyper((0.9, 0.999), "betas", above=True),
            "weight_decay": WEIGHT_DECAY,
            "r": Hyper(0.0),
            "weight_lr_power": Hyper(2.0),
            "warmup_steps": Hyper(0, "integer"),
            "eps": Hyper(1e-8),
        },
        needs=frozenset({"modes"}),
        takes_schedule=False,
    ),
    _spec(
        name="adahessian",
        target="pytorch_optimizer:AdaHessian",
        summary="Adam whose second moment is that of the Hessian's diagonal, estimated with random probes",
        reference="Yao et al. 2021, arXiv:2006.00719",
        state="3",
        hyperparameters={
            "lr": Hyper(1e-1, above=True),
            "betas": BETAS,
            "weight_decay": WEIGHT_DECAY,
            "hessian_power": Hyper(1.0, high=1.0, above=True),
            "update_period": Hyper(1, "integer", low=1),
            "num_samples": Hyper(1, "integer", low=1),
            "eps": Hyper(1e-16),
        },
        needs=frozenset({"create_graph", "random"}),
        step_cost=5.0,
    ),
)
