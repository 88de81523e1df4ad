"""Optimizers without torch._dynamo, tested in a separate process because this one may have imported it."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys, torch
from optbench.engine.determinism import ask_for_determinism
from optbench.engine.uncompiled import DYNAMO, made_without_dynamo, spare_dynamo
from optbench.optimizers.shampoo import Shampoo

KINDS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, Shampoo]

def trained(kind):
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    optimizer = kind([weight], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return weight.tolist(), torch.is_grad_enabled()

ask_for_determinism()
before = dict(vars(torch.optim.Optimizer.add_param_group.__wrapped__))
with made_without_dynamo():
    torch.optim.Rprop([torch.zeros(1)])  # its steps are not spared from now on
restored = vars(torch.optim.Optimizer.add_param_group.__wrapped__) == before
spare_dynamo()
spared = [trained(kind) for kind in KINDS]
without = DYNAMO not in sys.modules
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
usual = [trained(kind) for kind in KINDS]
disabled = torch.optim.Optimizer.zero_grad.__wrapped__.__dynamo_disable.__module__
print(json.dumps([restored, without, DYNAMO in sys.modules, spared == usual, disabled]))
"""


def test_optimizers_step_identically_without_importing_dynamo() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True)
    assert json.loads(found.stdout) == [True, True, True, True, "torch._dynamo.eval_frame"]
