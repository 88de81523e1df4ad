"""Process-wide settings that an optimizer changes do not affect trials next to it or after it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.data import Dataset
from optbench.engine import Workspace
from optbench.errors import OptimizerError
from optbench.execution.messages import Finished, Train
from optbench.execution.work import do
from optbench.isolation import ALL, NUMERIC, Snapshot, isolated
from optbench.optimizers.load import load_factory
from optbench.optimizers.make import resolve_spec
from optbench.optimizers.registry import find
from optbench.plan import cohorts, trials
from optbench.store.tables import TrialRow
from tests.conftest import small_suite, timeless

TOGGLED = "torch._C._set_{0}(not torch._C._get_{0}())"
CHANGES: dict[str, str] = {
    "inference_mode": "KEPT.append(torch.inference_mode()); KEPT[-1].__enter__()",
    "grad_mode": "torch.set_grad_enabled(False)",
    "fwd_grad_enabled": "torch._C._set_fwd_grad_enabled(False)",
    "multithreading_enabled": "torch.autograd.set_multithreading_enabled(False)",
    "default_device": "torch.set_default_device('meta')",
    "torch function modes": "torch.overrides.TorchFunctionMode().__enter__()",
    "torch dispatch modes": "import torch.utils._python_dispatch as d; d.TorchDispatchMode().__enter__()",
    "saved tensor hooks": "torch.autograd.graph.saved_tensors_hooks(lambda t: t * 0, lambda t: t).__enter__()",
    "default_dtype": "torch.set_default_dtype(torch.float64)",
    "num_threads": "torch.set_num_threads(2)",
    "flush_denormal": "torch.set_flush_denormal(True)",
    "deterministic_algorithms": "torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())",
    "deterministic_fill_uninitialized_memory": (
        "u = torch.utils.deterministic; u.fill_uninitialized_memory = not u.fill_uninitialized_memory"
    ),
    "autocast cpu": "torch.autocast('cpu', dtype=torch.bfloat16).__enter__()",
    "autocast cpu dtype": "torch.set_autocast_dtype('cpu', torch.float16)",
    "autocast cuda": "torch.set_autocast_enabled('cuda', True)",
    "autocast cuda dtype": "torch.set_autocast_dtype('cuda', torch.bfloat16)",
    "autocast_cache": "torch.set_autocast_cache_enabled(False)",
    "anomaly_mode": "torch.autograd.set_detect_anomaly(True, check_nan=False)",
    "float32_matmul_precision": "torch.set_float32_matmul_precision('medium')",
    "generic.all.fp32_precision": "torch.backends.fp32_precision = 'ieee'",
    "cuda.all.fp32_precision": "torch.backends.cudnn.fp32_precision = 'ieee'",
    "cuda.matmul.fp32_precision": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "cuda.conv.fp32_precision": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "cuda.rnn.fp32_precision": "torch.backends.cudnn.rnn.fp32_precision = 'ieee'",
    "mkldnn.all.fp32_precision": "torch.backends.mkldnn.fp32_precision = 'bf16'",
    "mkldnn.matmul.fp32_precision": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "mkldnn.conv.fp32_precision": "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "mkldnn.rnn.fp32_precision": "torch.backends.mkldnn.rnn.fp32_precision = 'bf16'",
    "linalg_preferred_backend": "torch._C._set_linalg_preferred_backend(torch._C._LinalgBackend.Cusolver)",
    "blas_preferred_backend": "torch._C._set_blas_preferred_backend(torch._C._BlasBackend.Cublaslt)",
    "cublas_allow_fp16_reduced_precision_reduction": (
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False"
    ),
    "cublas_allow_bf16_reduced_precision_reduction": (
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False"
    ),
    "flash_sdp_enabled": "torch.backends.cuda.enable_flash_sdp(False)",
    "mem_efficient_sdp_enabled": "torch.backends.cuda.enable_mem_efficient_sdp(False)",
    "math_sdp_enabled": "torch.backends.cuda.enable_math_sdp(False)",
    "cudnn_sdp_enabled": "torch.backends.cuda.enable_cudnn_sdp(False)",
    "overrideable_sdp_enabled": "torch._C._set_sdp_use_overrideable(False)",
    "_global_forward_hooks": "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 0)",
    "_global_forward_pre_hooks": "torch.nn.modules.module.register_module_forward_pre_hook(lambda m, i: (i[0] * 0,))",
    "_global_backward_hooks": "torch.nn.modules.module.register_module_full_backward_hook(lambda m, i, o: None)",
    "_global_backward_pre_hooks": "torch.nn.modules.module.register_module_full_backward_pre_hook(lambda m, o: None)",
    "_global_buffer_registration_hooks": (
        "torch.nn.modules.module.register_module_buffer_registration_hook(lambda m, n, b: None)"
    ),
    "_global_module_registration_hooks": (
        "torch.nn.modules.module.register_module_module_registration_hook(lambda m, n, s: None)"
    ),
    "_global_parameter_registration_hooks": (
        "torch.nn.modules.module.register_module_parameter_registration_hook(lambda m, n, p: None)"
    ),
    "_global_forward_hooks_always_called": (
        "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: o, always_call=True)"
    ),
    "_global_forward_hooks_with_kwargs": (
        "torch.nn.modules.module.register_module_forward_hook(lambda m, i, k, o: o, with_kwargs=True)"
    ),
    "_global_optimizer_pre_hooks": (
        "from torch.optim.optimizer import register_optimizer_step_pre_hook as hook; "
        "hook(lambda o, a, k: o.zero_grad())"
    ),
    "_global_optimizer_post_hooks": (
        "from torch.optim.optimizer import register_optimizer_step_post_hook as hook; hook("
        "lambda o, a, k: [p.data.zero_() for g in o.param_groups for p in g['params']])"
    ),
    "numpy errors": "numpy.seterr(all='raise')",
    "warning filters": "warnings.simplefilter('error'); warnings.filterwarnings('ignore', message='x')",
    "torch generators": "torch.manual_seed(1)",
    "numpy generator": "numpy.random.seed(1)",
    "random generator": "random.seed(1)",
    "working directory": "os.chdir('/')",
    "environment": "os.environ.update(OPTBENCH_TEST='1', HOME='/nowhere'); os.environ.pop('PATH', None)",
    "recursion limit": "sys.setrecursionlimit(sys.getrecursionlimit() + 1)",
    "garbage collection": "gc.disable(); gc.set_threshold(3)",
    "signal handlers": "signal.signal(signal.SIGTERM, lambda *_: None)",
    "standard streams": "sys.stdout = io.StringIO()",
    "locale": "locale.setlocale(locale.LC_ALL, 'C.UTF-8' if locale.setlocale(locale.LC_ALL) == 'C' else 'C')",
    "torch print options": "torch.set_printoptions(precision=1)",
    "numpy print options": "numpy.set_printoptions(precision=1)",
    "warn_always": "torch.set_warn_always(not torch.is_warn_always_enabled())",
    **{
        name: TOGGLED.format(name)
        for name in (
            "cudnn_enabled",
            "cudnn_benchmark",
            "cudnn_deterministic",
            "cudnn_allow_tf32",
            "mkldnn_enabled",
            "mkldnn_deterministic",
            "nnpack_enabled",
            "cublas_allow_fp16_accumulation",
            "cpu_allow_fp16_reduced_precision_reduction",
        )
    },
}
SOME_HARDWARE = (
    "linalg_preferred_backend",
    "blas_preferred_backend",
    "cpu_allow_fp16_reduced_precision_reduction",
)
"""Settings that cannot be changed on every machine."""
PLACES = ("import", "constructor", "begin_task", "train", "closure", "step")

FILE = """
import gc, io, locale, os, random, signal, sys, warnings
import numpy, torch
from optbench.isolation import ALL, Snapshot

KEPT, SEEN = [], []

def change():
    before = Snapshot([workspace for workspace in ALL if workspace.name == "{name}"])
    {change}
    SEEN.extend(before.changed())

if "{place}" == "import":
    change()

class Pest(torch.optim.SGD):
    '''Changes the workspace where it is told to, at a rate of .05; at any other it is plain SGD.'''

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        self.at("constructor")

    def at(self, place):
        if place == "{place}" and self.param_groups[0]["lr"] == 0.05:
            change()

    def begin_task(self):
        self.at("begin_task")

    def train(self):
        self.at("train")

    def eval(self):
        pass

    def step(self, closure):
        self.at("closure")
        closure()
        super().step()
        self.at("step")
"""


def outcome(folder: Path, mnist: Dataset, *rates: float) -> dict[str, tuple[Any, ...]]:
    """Train the variants of `mine.py` in one unit of a worker; return rows and weights by variant."""
    optimizers = {"opt": {"target": f"{folder / 'mine.py'}:Pest", "lr": list(rates)}}
    suite = small_suite(
        optimizers,
        seeds=1,
        max_steps=3,
        train_examples=128,
        validation_examples=32,
        test_examples=32,
        model={"kind": "mlp", "hidden": [8], "activation": "gelu"},  # gradients by autograd
    )
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))
    (cohort,) = cohorts(trials(suite))
    found = do(Train(cohort, {}), workspace, lambda progress: None, folder)
    assert isinstance(found, Finished), found
    weights = {trial.variant: {name: w.tobytes() for name, w in w.items()} for trial, w in found.weights}
    rows: dict[str, list[str]] = {}
    for trial, row in found.rows:
        # A pest records its changes in its module, which the notes of the cohort mention.
        quiet = dataclasses.replace(row, note=None) if isinstance(row, TrialRow) else row
        rows.setdefault(trial.variant, []).append(timeless(quiet))
    return {variant: (rows[variant], weights.get(variant)) for variant in rows}


@pytest.fixture(scope="module")
def calm(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """Return the results of a pest's companion when trained without the pest."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "mine.py").write_text(FILE.format(name="", change="pass", place="nowhere"))
    return outcome(folder, mnist, 0.03, 0.04)


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    with isolated():  # so that a failing test does not affect the others
        yield


def test_every_setting_has_a_change_in_the_table() -> None:
    assert {workspace.name for workspace in ALL} - {"cuda device"} == set(CHANGES)


BREAKING = ("inference_mode", "default_device", "default_dtype", "torch function modes", "numpy errors", "environment")


@pytest.mark.parametrize(
    ("name", "place"),
    [*((name, "step") for name in CHANGES), *((name, place) for name in BREAKING for place in PLACES[:-1])],
)
def test_a_setting_is_restored_wherever_an_optimizer_changes_it(
    name: str, place: str, tmp_path: Path, mnist: Dataset, calm: dict[str, tuple[Any, ...]]
) -> None:
    (tmp_path / "mine.py").write_text(FILE.format(name=name, change=CHANGES[name], place=place))
    before = Snapshot(ALL)
    together = outcome(tmp_path, mnist, 0.05, 0.03)
    assert before.changed() == []
    pests = sys.modules[load_factory(f"{tmp_path / 'mine.py'}:Pest").__module__]
    if name in SOME_HARDWARE and name not in pests.SEEN:
        pytest.skip("PyTorch does not let it be changed on this machine")
    assert name in pests.SEEN, "the setting was not changed, so the test shows nothing"
    assert together["lr=0.03"] == calm["lr=0.03"], "results of a companion"
    (tmp_path / "mine.py").write_text(FILE.format(name="", change="pass", place="nowhere"))
    if place == "step":
        assert outcome(tmp_path, mnist, 0.03)["lr=0.03"] == calm["lr=0.03"], "results of a following trial"


@pytest.mark.parametrize("name", BREAKING)
@pytest.mark.parametrize("place", ["constructor", "step"])
def test_the_elementwise_check_restores_settings(name: str, place: str, tmp_path: Path) -> None:
    """The check runs in the process that plans the run, and in a worker before the network is built."""
    file = tmp_path / "mine.py"
    file.write_text(
        FILE.format(name=name, change=CHANGES[name], place=place)
        .replace("step(self, closure)", "step(self)")
        .replace('self.at("closure")', "")
        .replace("closure()", "")
        .replace("def train", "def not_train")
    )
    target = f"{file}:Pest"
    before = Snapshot(ALL)
    with contextlib.suppress(OptimizerError):  # the result of the check does not matter here
        resolve_spec(find(target), {"lr": 0.05, "elementwise": True})
    assert before.changed() == []
    assert name in sys.modules[load_factory(target).__module__].SEEN


def test_comparing_settings_after_each_step_takes_microseconds() -> None:
    snapshot = Snapshot(NUMERIC)
    seconds = min(timeit.repeat(snapshot.put_back, number=100, repeat=20)) / 100
    assert seconds < 100e-6, "about 7e-6 on an idle machine"
