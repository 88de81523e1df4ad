"""Optimizers of real packages, wrapped in a short function, take the same steps as in a plain loop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.data import Dataset
from optbench.optimizers.load import load_factory
from optbench.suite import dump_suite
from tests.conftest import small_suite, tables, train_suite
from tests.twin import train_twin

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_train_here")]

FILE = """
import torch

def lookahead(params, lr=0.05, k=5):
    from pytorch_optimizer import Lookahead
    return Lookahead(torch.optim.SGD(params, lr=lr), k=k)

def sam(params, lr=0.05, rho=0.05):
    from pytorch_optimizer import SAM
    return SAM(params, torch.optim.SGD, rho=rho, lr=lr, momentum=0.9)

def schedule_free(params, lr=0.05):
    from schedulefree import ScheduleFreeWrapper
    return ScheduleFreeWrapper(torch.optim.SGD(params, lr=lr), momentum=0.9)

def muon(model, lr=0.02, aux_lr=0.003):
    from muon import SingleDeviceMuonWithAuxAdam
    hidden = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    return SingleDeviceMuonWithAuxAdam([
        {"params": hidden, "use_muon": True, "lr": lr},
        {"params": rest, "use_muon": False, "lr": aux_lr},
    ])

def torch_muon(named_parameters, lr=0.02, aux_lr=0.003):
    named = list(named_parameters)
    return [
        torch.optim.Muon([p for _, p in named if p.ndim == 2], lr=lr),
        torch.optim.AdamW([p for _, p in named if p.ndim != 2], lr=aux_lr),
    ]

def badam(named_parameters, lr=0.003, every=3):
    from badam import BlockOptimizer
    named = list(named_parameters)
    base = torch.optim.AdamW([p for _, p in named], lr=lr)
    blocks = [[name] for name in dict.fromkeys(name.rpartition(".")[0] for name, _ in named)]
    return BlockOptimizer(base, named, block_prefix_list=blocks, switch_block_every=every, verbose=0)

def mechanic(params, lr=1.0):
    from mechanic_pytorch import mechanize
    return mechanize(torch.optim.SGD)(params, lr=lr)

def ivon(params, ess, lr=0.1):
    from ivon import IVON
    optimizer = IVON(params, lr=lr, ess=ess)
    optimizer.around_forward = lambda: optimizer.sampled_params(train=True)
    return optimizer

def minimize(params, max_iter=2):
    from torchmin import Minimizer
    return Minimizer(params, method="l-bfgs", max_iter=max_iter)
"""
SETTINGS: dict[str, dict[str, object]] = {
    "lookahead": {},
    "sam": {"needs": "closure"},
    "schedule_free": {},
    "muon": {},
    "torch_muon": {},
    "badam": {},
    "mechanic": {},
    "ivon": {"ess": {"given": "examples"}},
    "minimize": {"needs": "loss"},
}
INSTALLED = {"lookahead": "pytorch_optimizer", "sam": "pytorch_optimizer", "schedule_free": "schedulefree"}
FROM_REGISTRY = {
    "muon": ("muon-optimizer", "muon"),
    "badam": ("badam", "badam"),
    "mechanic": ("mechanic-pytorch", "mechanic_pytorch"),
    "ivon": ("ivon-opt", "ivon"),
    "minimize": ("pytorch-minimize", "torchmin"),
}
IN_A_LOOP = {
    "lookahead": lambda network, made: made(network.parameters()),
    "muon": lambda network, made: made(network),
    "badam": lambda network, made: made(network.named_parameters()),
    "mechanic": lambda network, made: made(network.parameters()),
}
"""Optimizers that can be trained in a loop of `zero_grad`, `backward` and `step`."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the packages of the registry, without their dependencies."""
    folder = tmp_path_factory.mktemp("packages")
    for name, _ in FROM_REGISTRY.values():
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), name]
        subprocess.run(words, check=False, capture_output=True, timeout=120)
    # BAdam uses it for names of normalisation layers and to detect DeepSpeed.
    stand_in = folder / "transformers"
    stand_in.mkdir()
    (stand_in / "__init__.py").write_text("")
    (stand_in / "trainer_callback.py").write_text("TrainerCallback = object\n")
    (stand_in / "pytorch_utils.py").write_text("ALL_LAYERNORM_LAYERS = []\n")
    (stand_in / "integrations.py").write_text("def is_deepspeed_zero3_enabled(): return False\n")
    return folder


@pytest.fixture(params=SETTINGS)
def name(request: pytest.FixtureRequest, packages: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an optimizer whose package is available."""
    found: str = request.param
    monkeypatch.syspath_prepend(str(packages))
    if found != "torch_muon":
        pytest.importorskip(INSTALLED.get(found) or FROM_REGISTRY[found][1], exc_type=ImportError)
    return found


@pytest.fixture
def target(name: str, tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    return f"{tmp_path / 'mine.py'}:{name}"


@pytest.mark.filterwarnings("ignore")  # warnings of the packages
def test_a_short_function_wraps_the_optimizer_of_a_package(
    name: str, target: str, tmp_path: Path, mnist: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = small_suite(
        {"it": {"target": target, **SETTINGS[name]}}, seeds=2, max_epochs=0.1, evaluate_every=0.1, early_stopping=None
    )
    (tmp_path / "suite.yaml").write_text(dump_suite(suite))
    where = ["--runs-dir", str(tmp_path / "runs"), "--name", "it", "--device", "cpu", "--jobs", "1", "--quiet"]
    assert main(["run", str(tmp_path / "suite.yaml"), *where]) == 0, capsys.readouterr().err
    trials = tables(tmp_path / "runs/it")["trials"]
    assert list(trials.status) == ["ok", "ok"], list(trials.error_message)
    assert json.loads(trials.hyperparameters[0]) == SETTINGS[name]
    results = train_suite(suite, mnist)
    if name in IN_A_LOOP:
        factory = load_factory(target)
        for result in results:
            start, weights, _ = train_twin(
                suite, mnist, result.trial.seed, lambda network: IN_A_LOOP[name](network, factory)
            )
            assert result.weights is not None
            for key, weight in weights.items():
                assert (result.weights[key] - weight).norm() <= 0.05 * (weight - start[key]).norm() + 1e-7, key
    alone = train_suite(suite, mnist, only=1)[0].weights
    assert alone is not None
    assert results[1].weights is not None
    assert all((alone[key] == weight).all() for key, weight in results[1].weights.items())
