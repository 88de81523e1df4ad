"""Specs of the optimizers in `torch.optim`. This module does not import torch."""

from __future__ import annotations

from functools import partial

from optbench.optimizers.spec import ADAM, LR, OFF, ON, WEIGHT_DECAY, Hyper, OptimizerSpec

ONE_PASS = {"fused": True}  # the same update rule, in one pass over the weights
COUNTS_ON_DEVICE = {"capturable": True}  # keeps the step count on the device, so that a step can be recorded
MOMENTS_ON = {"cpu": ONE_PASS, "cuda": ONE_PASS | COUNTS_ON_DEVICE}

_stacked = partial(
    OptimizerSpec, lane="elementwise", source="torch", recordable=True, arguments_on={"cuda": COUNTS_ON_DEVICE}
)
_each = partial(OptimizerSpec, lane="per-member", source="torch")

TORCH: tuple[OptimizerSpec, ...] = (
    _stacked(
        name="sgd",
        target="torch.optim:SGD",
        summary="stochastic gradient descent, with optional momentum",
        reference="Robbins & Monro 1951; Sutskever et al. 2013",
        state="0 (1 with momentum)",
        hyperparameters={
            "lr": LR,
            "momentum": Hyper(0.0, high=1.0),
            "dampening": Hyper(0.0, high=1.0),
            "weight_decay": WEIGHT_DECAY,
            "nesterov": OFF,
        },
        arguments_on={"cpu": ONE_PASS, "cuda": ONE_PASS},
    ),
    _stacked(
        name="adam",
        target="torch.optim:Adam",
        summary="first and second moments of every weight's gradient; L2 regularisation is added to the gradient",
        reference="Kingma & Ba 2015, arXiv:1412.6980",
        state="2",
        hyperparameters={**ADAM, "amsgrad": OFF},
        arguments_on=MOMENTS_ON,
    ),
    _stacked(
        name="adamw",
        target="torch.optim:AdamW",
        summary="Adam with decoupled weight decay",
        reference="Loshchilov & Hutter 2019, arXiv:1711.05101",
        state="2",
        hyperparameters={**ADAM, "weight_decay": Hyper(1e-2), "amsgrad": OFF},
        arguments_on=MOMENTS_ON,
    ),
    _stacked(
        name="adagrad",
        target="torch.optim:Adagrad",
        summary="divides gradients by the root of the sum of their squares: diagonal Shampoo with sums as statistics",
        reference="Duchi et al. 2011",
        state="1",
        hyperparameters={
            "lr": Hyper(1e-2, above=True),
            "lr_decay": Hyper(0.0),
            "weight_decay": WEIGHT_DECAY,
            "initial_accumulator_value": Hyper(0.0),
            "eps": Hyper(1e-10),
        },
        arguments_on={"cpu": ONE_PASS},  # only newer versions of torch support it on other devices
        recordable=False,
    ),
    _stacked(
        name="nadam",
        target="torch.optim:NAdam",
        summary="Adam with Nesterov's momentum",
        reference="Dozat 2016, ICLR workshop",
        state="2",
        hyperparameters={
            **ADAM,
            "lr": Hyper(2e-3, above=True),
            "momentum_decay": Hyper(4e-3),
            "decoupled_weight_decay": OFF,
        },
    ),
    _stacked(
        name="radam",
        target="torch.optim:RAdam",
        summary="Adam that rectifies its step while the second moment is estimated from few gradients",
        reference="Liu et al. 2020, arXiv:1908.03265",
        state="2",
        hyperparameters={**ADAM, "decoupled_weight_decay": OFF},
    ),
    _stacked(
        name="adamax",
        target="torch.optim:Adamax",
        summary="Adam with the second moment replaced by a decaying maximum of the gradient's magnitude",
        reference="Kingma & Ba 2015, section 7.1, arXiv:1412.6980",
        state="2",
        hyperparameters={**ADAM, "lr": Hyper(2e-3, above=True)},
    ),
    _stacked(
        name="adadelta",
        target="torch.optim:Adadelta",
        summary="divides gradients by their root mean square and multiplies them by the root mean square of past steps",
        reference="Zeiler 2012, arXiv:1212.5701",
        state="2",
        hyperparameters={
            "lr": Hyper(1.0, above=True),
            "rho": Hyper(0.9, high=1.0),
            "eps": Hyper(1e-6),
            "weight_decay": WEIGHT_DECAY,
        },
    ),
    _stacked(
        name="rmsprop",
        target="torch.optim:RMSprop",
        summary="divides gradients by their recent root mean square, with optional momentum and centring",
        reference="Tieleman & Hinton 2012, lecture 6.5; centred: Graves 2013, arXiv:1308.0850",
        state="1 (1 more with momentum, 1 more centred)",
        hyperparameters={
            "lr": Hyper(1e-2, above=True),
            "alpha": Hyper(0.99, high=1.0),
            "eps": Hyper(1e-8),
            "weight_decay": WEIGHT_DECAY,
            "momentum": Hyper(0.0, high=1.0),
            "centered": OFF,
        },
    ),
    _each(
        name="adafactor",
        target="torch.optim:Adafactor",
        # per member, because its row and column means and its step length depend on a complete tensor
        summary="second moments of a matrix as an outer product of row and column means; steps scale with the weights",
        reference="Shazeer & Stern 2018, arXiv:1804.04235",
        state="m+n per m×n matrix, n per vector",
        hyperparameters={
            "lr": Hyper(1e-2, above=True),
            "beta2_decay": Hyper(-0.8, low=-1.0, high=0.0),
            "d": Hyper(1.0, low=1.0),
            "weight_decay": WEIGHT_DECAY,
        },
        step_cost=2.0,
    ),
    _stacked(
        name="rprop",
        target="torch.optim:Rprop",
        summary="one step length per weight, increased while the gradient keeps its sign and reduced otherwise",
        reference="Riedmiller & Braun 1993",
        state="2",
        hyperparameters={"lr": Hyper(1e-2, above=True)},
        takes_schedule=False,  # lr only affects the very first step
    ),
    _each(
        name="muon",
        target="torch.optim:Muon",
        summary="orthogonalised momentum for weight matrices; AdamW (fallback_*) for embeddings, the output layer and "
        "all other parameters",
        reference="Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982",
        state="1 (2 by AdamW)",
        hyperparameters={
            "lr": LR,
            "weight_decay": Hyper(0.1),
            "momentum": Hyper(0.95, high=1.0),
            "nesterov": ON,
            "eps": Hyper(1e-7),
            "ns_steps": Hyper(5, "integer", low=1),
            "fallback_lr": LR,
            "fallback_weight_decay": Hyper(1e-2),
        },
        only_matrices=True,
        step_cost=8.0,
    ),
    _each(
        name="lbfgs",
        target="torch.optim:LBFGS",
        summary="limited-memory quasi-Newton method with a line search; evaluates each mini-batch several times",
        reference="Liu & Nocedal 1989",
        state="2 history_size + 4",
        hyperparameters={
            "lr": Hyper(1.0, above=True),
            "max_iter": Hyper(4, "integer", low=1),
            "tolerance_grad": Hyper(1e-7),
            "tolerance_change": Hyper(1e-9),
            "history_size": Hyper(10, "integer", low=1),
            "line_search_fn": Hyper("strong_wolfe", "choice", choices=("strong_wolfe",), optional=True),
        },
        needs=frozenset({"closure"}),
        step_cost=15.0,
    ),
)
