"""Commands that train nothing start fast, because they import neither torch nor the drawing libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "{'torch', 'torchvision', 'matplotlib', 'scipy', 'pandas'}"


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "report",
        "stats.comparison",
        "store",
        "suite",
        "plan",
        "execution.session",
        "metrics",
        "data",
        "optimizers.registry",
        "costing.document",
        "costing.session",
        "cli.costing",
        "cli.exporting",
    ],
)
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, optbench.{module}; found = {HEAVY} & sys.modules.keys(); sys.exit(', '.join(found) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_imports_only_what_it_needs() -> None:
    code = """
import sys, torch
from optbench.data import load
from optbench.execution.worker import prepare
from optbench.models import build, materialised
from optbench.suite.schema import ModelSettings

prepare()
mnist = load("mnist")
network = materialised(build(ModelSettings(kind="mlp", hidden=[8]), mnist.inputs, mnist.classes), torch.device("cpu"))
torch.optim.SGD(network.parameters(), lr=0.1).step()
found = {"pandas", "pyarrow.dataset", "sympy", "torch._dynamo", "matplotlib"} & sys.modules.keys()
sys.exit(", ".join(sorted(found)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
