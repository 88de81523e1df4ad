"""The registry agrees with its classes on arguments, defaults, ranges and lanes; missing extras are reported."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.cli import main
from optbench.engine.lanes import LaneMember, build_lane
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.errors import OptimizerError
from optbench.models import Network
from optbench.optimizers.load import check_arguments, load_factory
from optbench.optimizers.registry import OPTIMIZERS, check_settings, complete, find
from optbench.optimizers.spec import FALLBACK, OptimizerSpec

SHAPES = {"weight": torch.Size([6, 4]), "bias": torch.Size([6])}

# Arguments taken through **kwargs, which the signature does not show
UNNAMED = {("lamb", "adam_debias")}

# Defaults that differ from the constructor's, with the reason
DIFFERENT = {
    ("kron", "max_size_triangular"): "a triangular factor of the 784 pixels takes two seconds a step on a CPU",
    ("lbfgs", "max_iter"): "twenty iterations on one mini-batch follow that batch away from all others",
    ("lbfgs", "line_search_fn"): "without a search its steps raise the loss of `optbench check`'s problem",
    ("lbfgs", "history_size"): "pairs from mini-batches long past describe another function",
    ("scalable-shampoo", "preconditioning_compute_steps"): "many a task here has fewer than the package's 1,000 steps",
    ("scalable-shampoo", "shape_interpretation"): "it merges the axes of small layers, which are then left to SGD",
    ("ademamix", "weight_decouple"): "Algorithm 1 of the paper decays the weights, not the gradient",
    ("lamb", "weight_decouple"): "Algorithm 2 of the paper scales the decay with the rest of the step",
    ("lamb", "adam_debias"): "no version of the paper divides the scaled step by 1 - β1^t",
}

FOREIGN = [name for name, spec in OPTIMIZERS.items() if spec.source != "optbench"]
ELEMENTWISE = [name for name, spec in OPTIMIZERS.items() if spec.lane == "elementwise"]


def constructor(name: str) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a registered class after `params`."""
    parameters = list(inspect.signature(load_factory(name)).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def gradients(steps: int, members: int = 1, seed: int = 0) -> Tensor:
    """Return gradients (steps, members, 30) of several magnitudes, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(steps, members, 30, generator=generator) * torch.logspace(-3, 1, 30)
    return torch.where(torch.rand(drawn.shape, generator=generator) < 0.1, 0.0, drawn)


def never(member: int, network: Network) -> Tensor:
    raise AssertionError("this optimizer needs gradients only")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_has_a_name_a_summary_and_a_reference(name: str) -> None:
    spec = OPTIMIZERS[name]
    assert spec.name == name
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name), "names need no quoting on a command line"
    assert spec.summary
    assert not spec.summary.endswith("."), "summaries are phrases without a full stop"
    assert re.search(r"\b(19|20)\d\d\b", spec.reference), "a reference has a year"
    assert spec.state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_hyperparameter_is_an_argument_of_the_constructor(name: str) -> None:
    spec = OPTIMIZERS[name]
    own = {key for key in spec.hyperparameters if not (spec.only_matrices and key.startswith(FALLBACK))}
    assert issubclass(load_factory(name), torch.optim.Optimizer)
    unnamed = {key for other, key in UNNAMED if other == name}
    assert (own | {argument for more in spec.arguments_on.values() for argument in more}) - constructor(
        name
    ).keys() == unnamed
    for key in spec.hyperparameters.keys() - own:
        assert key.removeprefix(FALLBACK) in find(spec.fallback).hyperparameters


@pytest.mark.parametrize("name", FOREIGN)
def test_defaults_equal_those_of_the_constructor(name: str) -> None:
    known = constructor(name)
    differ = {
        (name, key)
        for key, hyper in OPTIMIZERS[name].hyperparameters.items()
        if not (OPTIMIZERS[name].only_matrices and key.startswith(FALLBACK))
        if key not in known or hyper.default != known[key].default
    }
    assert differ == {exception for exception in DIFFERENT if exception[0] == name}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_defaults_are_valid_settings(name: str) -> None:
    check_settings(name, complete(name, {}))
    check_arguments(name, complete(name, {}))


# Ranges of a fallback optimizer are tested at its own entry.
@pytest.mark.parametrize("name", [name for name in FOREIGN if not OPTIMIZERS[name].only_matrices])
def test_no_range_is_wider_than_the_constructor_accepts(name: str) -> None:
    spec = OPTIMIZERS[name]
    cls: Any = load_factory(name)
    for key, hyper in spec.hyperparameters.items():
        if hyper.kind == "betas":
            ends: list[Any] = [[1e-6 if hyper.above else 0.0] * len(hyper.default)]
        elif hyper.kind in ("number", "integer"):
            lowest = hyper.low + 1e-6 if hyper.above else hyper.low
            lowest = int(lowest) if hyper.kind == "integer" else lowest
            ends = [lowest, *([hyper.high] if hyper.high < float("inf") else [])]
        elif hyper.kind == "boolean":
            # SGD refuses Nesterov momentum without momentum.
            ends = [False, *([True] if key != "nesterov" else [])]
        else:
            continue
        for end in ends:
            assert hyper.problem(end) is None, (key, end)
            settings = {**complete(name, {}), key: end}
            cls([torch.nn.Parameter(torch.ones(2, 2))], **settings, **spec.arguments_on.get("cpu", {}))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_optimizers_update_every_weight_independently(name: str) -> None:
    """Weights of one tensor are updated as if each had a separate optimizer."""
    cls: Any = load_factory(name)
    settings = {**complete(name, {}), **OPTIMIZERS[name].arguments_on.get("cpu", {})}
    start = torch.linspace(-1, 1, 30)
    whole = torch.nn.Parameter(start.clone())
    single = [torch.nn.Parameter(value.clone().reshape(1)) for value in start]
    together, apart = cls([whole], **settings), [cls([value], **settings) for value in single]
    for (grad,) in gradients(20):
        whole.grad = grad.clone()
        together.step()
        for value, optimizer, part in zip(single, apart, grad, strict=True):
            value.grad = part.clone().reshape(1)
            optimizer.step()
    assert (whole - start).abs().min() > 0
    # The last bit may differ, since vectorised loops and their remainders round differently.
    torch.testing.assert_close(whole.detach(), torch.cat([value.detach() for value in single]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_state_has_the_shape_of_the_weights_or_is_a_scalar(name: str) -> None:
    """The elementwise lane can split only such state by member."""
    cls: Any = load_factory(name)
    stack = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = cls([stack], **complete(name, {}), **OPTIMIZERS[name].arguments_on.get("cpu", {}))
    before = [set(group) for group in optimizer.param_groups]
    stack.grad = torch.ones_like(stack)
    optimizer.step()
    for value in optimizer.state[stack].values():
        assert value is None or (isinstance(value, Tensor) and value.shape in (stack.shape, torch.Size([])))
    assert [set(group) for group in optimizer.param_groups] == before, "a parameter group must not contain a step count"


def pieces(row: Tensor) -> dict[str, Tensor]:
    """Split 30 numbers into a weight and a bias."""
    return {"weight": row[:24].reshape(SHAPES["weight"]), "bias": row[24:]}


def per_member_lane_on(spec: OptimizerSpec, settings: list[dict[str, Any]], given: Tensor) -> Tensor:
    """Apply gradients (steps, members, 30) to weights of ones in the engine's lane; return weights (members, P)."""
    layout = Layout.of(SHAPES)
    weights = torch.stack([layout.pack({name: torch.ones(shape) for name, shape in SHAPES.items()})] * len(settings))
    grads = torch.zeros_like(weights)
    members = [LaneMember(setting, None, torch.Generator(), 0) for setting in settings]
    network: Any = torch.nn.Linear(4, 6, device="meta")
    lane = build_lane(spec, members, network, weights, grads, layout, Recordings(None), begin=True)
    for step in given:
        for row, part in zip(grads, step, strict=True):
            row.copy_(layout.pack(pieces(part)))
        assert lane.step(never, 0) == {}
    return weights


@pytest.mark.parametrize("target", ["pytorch_optimizer:SOAP", "lion"])
def test_the_per_member_lane_equals_the_plain_class(target: str) -> None:
    settings = [{**complete(target, {}), "lr": lr} for lr in (1e-2, 1e-3)]
    given = gradients(10, members=2)
    lane = per_member_lane_on(find(target), settings, given)
    cls: Any = load_factory(target)
    for i, setting in enumerate(settings):
        parameters = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
        optimizer = cls(list(parameters.values()), **setting)
        for step in given:
            for name, grad in pieces(step[i]).items():
                parameters[name].grad = grad.clone()
            optimizer.step()
        for name, weight in Layout.of(SHAPES).unpack(lane[i]).items():
            assert torch.equal(weight, parameters[name]), name
            assert not torch.equal(weight, torch.ones_like(weight)), name


NEEDED = "needs the extra 'optimizers': pip install 'optbench[optimizers]'"


def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "pytorch_optimizer"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)


@pytest.mark.parametrize(
    "name", [*(n for n, spec in OPTIMIZERS.items() if spec.source == "pytorch-optimizer"), "pytorch_optimizer:SOAP"]
)
def test_a_missing_extra_is_reported_with_the_install_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_extra(monkeypatch)
    with pytest.raises(OptimizerError) as caught:
        load_factory(name)
    assert str(caught.value) == f"optimizer '{name}' {NEEDED}"


def test_a_missing_extra_ends_a_run_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_the_extra(monkeypatch)
    runs = tmp_path / "runs"
    assert main(["run", "smoke", "--optimizer", "mine=lion", "--runs-dir", str(runs), "--jobs", "1"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"optbench: optimizers.mine: optimizer 'lion' {NEEDED}\n"
    assert not runs.exists()


def test_another_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wants_more.py").write_text("import a_module_that_is_not_there\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptimizerError, match=r"cannot import wants_more: .*'a_module_that_is_not_there'"):
        load_factory("wants_more:Mine")


def test_the_list_shows_every_entry_in_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "optimizers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    below = next(i for i, line in enumerate(lines) if line.startswith("─")) + 1
    rows = {line.split()[0]: line for line in lines[below:] if not line.startswith(" ")}
    assert list(rows) == list(OPTIMIZERS)
    for name, spec in OPTIMIZERS.items():
        assert spec.lane in rows[name]
        assert spec.source.partition("-")[0] in rows[name]
    # A name longer than its column is wrapped.
    start = rows["sgd"].index("stochastic")
    words = "".join(line[start:].strip() for line in lines)
    for spec in OPTIMIZERS.values():
        assert all(name in words for name in spec.hyperparameters), spec.name


@pytest.mark.parametrize("epsilon", [0.0, 1e-80])
def test_incompatible_values_are_refused_before_training(epsilon: float) -> None:
    good = {"root": "newton", "epsilon": 1e-4}
    check_settings("shampoo", good)
    check_settings("shampoo", {"epsilon": epsilon})
    with pytest.raises(OptimizerError, match=r"shampoo: expected an epsilon of at least 1e-15 with root: newton, got "):
        check_settings("shampoo", good | {"epsilon": epsilon})


def test_hyperparameters_added_later_are_in_a_suite_only_if_given() -> None:
    """A run of an earlier version therefore keeps its suite and can be resumed."""
    added = {(name, key) for name, spec in OPTIMIZERS.items() for key, h in spec.hyperparameters.items() if h.added}
    assert added == {("shampoo", "block_size"), ("sam", "steps")}
    assert "block_size" not in complete("shampoo", {})
    assert complete("shampoo", {"block_size": 512})["block_size"] == 512
    wrapped = complete("l2-init", {"base": {"target": "shampoo", "lr": 0.3}})["base"]
    assert wrapped["max_side"] == 8192
    assert "block_size" not in wrapped
