"""The optimizers of `torch.optim`. Imports no torch."""

from __future__ import annotations

from optbench.optimizers.spec import Hyper, OptimizerSpec

LR = Hyper(1e-3, above=True)
WEIGHT_DECAY = Hyper(0.0)
FUSED = {"fused": True}  # one pass over memory; the same update rule

TORCH: tuple[OptimizerSpec, ...] = (
    OptimizerSpec(
        name="sgd",
        target="torch.optim:SGD",
        lane="elementwise",
        summary="stochastic gradient descent, with optional momentum",
        reference="Robbins & Monro 1951; Sutskever et al. 2013",
        state="0 (1 with momentum)",
        hyperparameters={
            "lr": LR,
            "momentum": Hyper(0.0, high=1.0),
            "dampening": Hyper(0.0, high=1.0),
            "weight_decay": WEIGHT_DECAY,
            "nesterov": Hyper(False, "boolean"),
        },
        extra_arguments=FUSED,
        source="torch",
    ),
    OptimizerSpec(
        name="adam",
        target="torch.optim:Adam",
        lane="elementwise",
        summary="first and second moments per weight, L2 regularisation in the gradient",
        reference="Kingma & Ba 2015, arXiv:1412.6980",
        state="2",
        hyperparameters={
            "lr": LR,
            "betas": Hyper((0.9, 0.999), "betas"),
            "eps": Hyper(1e-8),
            "weight_decay": WEIGHT_DECAY,
            "amsgrad": Hyper(False, "boolean"),
        },
        extra_arguments=FUSED,
        source="torch",
    ),
    OptimizerSpec(
        name="adamw",
        target="torch.optim:AdamW",
        lane="elementwise",
        summary="Adam with decoupled weight decay",
        reference="Loshchilov & Hutter 2019, arXiv:1711.05101",
        state="2",
        hyperparameters={
            "lr": LR,
            "betas": Hyper((0.9, 0.999), "betas"),
            "eps": Hyper(1e-8),
            "weight_decay": Hyper(1e-2),
            "amsgrad": Hyper(False, "boolean"),
        },
        extra_arguments=FUSED,
        source="torch",
    ),
    OptimizerSpec(
        name="adagrad",
        target="torch.optim:Adagrad",
        lane="elementwise",
        summary="divides by the root of the summed squared gradients: diagonal Shampoo with a sum",
        reference="Duchi et al. 2011",
        state="1",
        hyperparameters={
            "lr": Hyper(1e-2, above=True),
            "lr_decay": Hyper(0.0),
            "weight_decay": WEIGHT_DECAY,
            "initial_accumulator_value": Hyper(0.0),
            "eps": Hyper(1e-10),
        },
        extra_arguments=FUSED,
        source="torch",
    ),
)
