"""Users' optimizers and their side effects: each ends with the right row and does not affect others."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.errors import OptimizerError
from optbench.optimizers.load import check_arguments, load_factory
from optbench.optimizers.make import is_elementwise, maker, resolve_spec
from optbench.optimizers.registry import complete, find
from optbench.store import read_run
from optbench.store.tables import AccuracyRow
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.refusals import refusal

FILE = """
import torch
from torch.optim import SGD, Optimizer


class Plain(SGD):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)


class Rebinds(Optimizer):
    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


class Mutates(Plain):
    def step(self):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(-1e6)
                p.grad = None


class Closure(Plain):
    def step(self, closure):
        loss = closure()
        assert loss.ndim == 0 and not torch.is_inference(loss)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])
        return loss


class Averages(Plain):
    '''Measures at the average of its iterates, trains at the last one, as schedule-free methods do.'''

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        self.training = None
        self.taken = 0

    def _parameters(self):
        return [p for group in self.param_groups for p in group["params"]]

    def step(self):
        assert self.training, "steps are taken in training mode"
        super().step()
        self.taken += 1
        for p in self._parameters():
            mean = self.state[p].setdefault("mean", p.detach().clone())
            mean.lerp_(p.detach(), 1 / self.taken)

    def _swap(self):
        for p in self._parameters():
            if "mean" in self.state[p]:
                kept = p.detach().clone()
                p.data.copy_(self.state[p]["mean"])
                self.state[p]["mean"] = kept

    def train(self):
        if self.training is False:
            self._swap()
        self.training = True

    def eval(self):
        if self.training:
            self._swap()
        self.training = False


class Raises(Plain):
    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        self.taken = 0

    def step(self):
        self.taken += 1
        if self.taken == 7:
            raise ArithmeticError("enough of this")
        super().step()


class Nan(Raises):
    def step(self):
        self.taken += 1
        if self.taken == 7:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("nan"))
        else:
            SGD.step(self)


class Normalised(Plain):
    '''Not elementwise: the length of a step depends on all weights of a tensor.'''

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad / p.grad.norm(), alpha=-group["lr"])


class Draws(Plain):
    def __init__(self, params, generator, lr=0.05):
        super().__init__(params, lr=lr)
        self.generator = generator

    def step(self):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(torch.randn(p.shape, generator=self.generator), alpha=1e-3)


class Careless(Plain):
    '''Draws from whatever generator is there.'''

    def step(self):
        import numpy
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(torch.randn(p.shape) * float(numpy.random.random()), alpha=1e-3)


class Hooked(Plain):
    '''Has its gradients from hooks on the network, and checks them against those it is given.'''

    def __init__(self, model, lr=0.05):
        super().__init__(model.parameters(), lr=lr)
        self.model, self.passes, self.seen = model, 0, {}
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(self.forward)
        model.head.bias.register_post_accumulate_grad_hook(lambda p: self.seen.update(bias=p.grad.clone()))

    def forward(self, module, inputs, output):
        if torch.is_grad_enabled():
            self.passes += 1
            output.register_hook(lambda grad: self.seen.update({module: grad.T @ inputs[0]}))

    def step(self):
        assert self.passes == 2, "two layers, one pass a step, and none while it is measured"
        self.passes = 0
        for module in (self.model.layers[0], self.model.head):
            torch.testing.assert_close(self.seen[module], module.weight.grad)
        assert torch.equal(self.seen["bias"], self.model.head.bias.grad)
        super().step()


class Decays(Plain):
    '''Its rate falls to 0 at the last step, and it breaks where there are more.'''

    def __init__(self, params, total_steps, lr=0.05):
        super().__init__(params, lr=lr)
        self.total, self.taken = total_steps, 0

    def step(self):
        assert self.taken < self.total
        self.param_groups[0]["lr"] = 0.05 * (1 - self.taken / self.total)
        self.taken += 1
        super().step()


class Matrices(Plain):
    def step(self):
        assert all(p.ndim == 2 for group in self.param_groups for p in group["params"])
        super().step()


class Told(Plain):
    '''Rests in the second task; at a large rate it breaks when it hears of it.'''

    tasks = 0

    def begin_task(self):
        self.tasks += 1
        if self.tasks == 2 and self.param_groups[0]["lr"] > 0.04:
            raise ArithmeticError("no more of this")

    def step(self):
        if self.tasks == 1:
            super().step()


class NoOptimizer:
    pass


class Unannotated(SGD):
    def __init__(self, params, lr=0.05, betas=(0.9, 0.99), nesterov=False, mode="mean", rho=None, k: float | str = 1.0):
        super().__init__(params, lr=lr)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "./mine.py"


def run(mnist: Dataset, target: str, **settings: Any) -> list[TrialResult]:
    return train_suite(small_suite({"opt": {"target": target, **settings}}, seeds=2, max_epochs=1), mnist)


def test_harmless_habits_give_the_same_training_as_the_plain_optimizer(file: str, mnist: Dataset) -> None:
    plain = run(mnist, f"{file}:Plain")
    for name in ("Rebinds", "Mutates"):
        for result, expected in zip(run(mnist, f"{file}:{name}"), plain, strict=True):
            assert trial_row(result).status == "ok"
            assert result.weights is not None
            assert expected.weights is not None
            assert all(torch.allclose(result.weights[k], w, atol=1e-6) for k, w in expected.weights.items()), name


def test_a_closure_is_detected_and_computes_the_same_gradients(file: str, mnist: Dataset) -> None:
    assert resolve_spec(find(f"{file}:Closure"), {}).needs == {"closure", "random"}
    for result, expected in zip(run(mnist, f"{file}:Closure"), run(mnist, f"{file}:Plain"), strict=True):
        assert result.weights is not None
        assert expected.weights is not None
        # Gradients in a closure come from autograd; the lane uses a hand-written backward pass.
        assert all(torch.allclose(result.weights[k], w, atol=1e-4) for k, w in expected.weights.items())


def test_train_and_eval_modes_are_detected_and_measuring_does_not_change_training(file: str, mnist: Dataset) -> None:
    target = f"{file}:Averages"
    assert resolve_spec(find(target), {}).needs == {"modes", "random"}
    often, seldom = (
        train_suite(
            small_suite({"opt": {"target": target}}, seeds=1, early_stopping=None, evaluate_every=every), mnist
        )[0]
        for every in (0.1, 1.0)
    )
    assert trial_row(often).status == "ok"
    assert often.weights is not None
    assert seldom.weights is not None
    assert all(torch.equal(often.weights[k], w) for k, w in seldom.weights.items())
    plain = run(mnist, f"{file}:Plain")[0].weights
    assert plain is not None
    assert not all(torch.allclose(often.weights[k], w, atol=1e-4) for k, w in plain.items()), (
        "the averaged weights are measured"
    )


@pytest.mark.parametrize(("name", "status"), [("Raises", "failed"), ("Nan", "diverged")])
def test_an_optimizer_that_fails_at_step_7_is_reported_and_does_not_affect_others(
    file: str, mnist: Dataset, name: str, status: str
) -> None:
    for result in run(mnist, f"{file}:{name}"):
        row = trial_row(result)
        assert row.status == status
        assert row.last_step >= 7
        if status == "failed":
            assert (row.error_type, row.error_message, row.last_step) == ("ArithmeticError", "enough of this", 7)


def test_a_declaration_as_elementwise_is_verified(file: str, mnist: Dataset) -> None:
    assert is_elementwise(find(f"{file}:Plain"), {"lr": 0.1})
    assert not is_elementwise(find(f"{file}:Normalised"), {"lr": 0.1})
    stacked = run(mnist, f"{file}:Plain", elementwise=True)
    for result, expected in zip(stacked, run(mnist, f"{file}:Plain"), strict=True):
        assert result.weights is not None
        assert expected.weights is not None
        assert all(torch.equal(result.weights[k], w) for k, w in expected.weights.items())
    with pytest.raises(Exception, match="is declared elementwise, but fails the test"):
        run(mnist, f"{file}:Normalised", elementwise=True)


@pytest.mark.parametrize("name", ["Draws", "Careless"])
def test_random_numbers_come_from_the_trials_own_generator(file: str, mnist: Dataset, name: str) -> None:
    suite = small_suite({"opt": {"target": f"{file}:{name}"}}, seeds=3, max_epochs=1)
    before = torch.random.get_rng_state()
    together = train_suite(suite, mnist)
    assert same_bits(train_suite(suite, mnist, only=1)[0], together[1])
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is unchanged"
    first, second = (result.weights for result in together[:2])
    assert first is not None
    assert second is not None
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_the_model_is_passed_with_its_hooks(file: str, mnist: Dataset) -> None:
    target = f"{file}:Hooked"
    assert resolve_spec(find(target), {}).needs == {"model", "random"}
    for plain, hooked in zip(run(mnist, f"{file}:Plain"), run(mnist, target), strict=True):
        assert trial_row(hooked).status == "ok", trial_row(hooked).error_message
        assert plain.weights is not None
        assert hooked.weights is not None
        for name, weight in plain.weights.items():
            torch.testing.assert_close(hooked.weights[name], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("state", "counts"), [("keep", 60), ("reset", 30)])
def test_the_total_number_of_steps_is_passed(file: str, mnist: Dataset, state: str, counts: int) -> None:
    # Two tasks of thirty steps; the learning rate is 0 after the announced number of steps.
    suite = small_suite(
        {"opt": {"target": f"{file}:Decays"}, "sooner": {"target": f"{file}:Decays", "total_steps": counts - 1}},
        seeds=1,
        max_epochs=5,
        max_steps=30,
        early_stopping=None,
        optimizer_state=state,
    )
    announced, sooner = train_suite(suite, mnist)
    assert trial_row(announced).status == "ok"
    assert trial_row(announced).steps == 60
    assert trial_row(sooner).status == "failed", "a value set in the suite is kept"
    assert trial_row(sooner).steps == counts


def test_an_optimizer_with_a_task_hook_is_notified_of_tasks(file: str, mnist: Dataset) -> None:
    results = run(mnist, f"{file}:Told", lr=[0.03, 0.05])
    calm, broken = ([r for r in results if r.trial.hyperparameters["lr"] == lr] for lr in (0.03, 0.05))
    for result in calm:
        after = [row.accuracy for row in result.rows if isinstance(row, AccuracyRow) and row.task == 1]
        assert after[0] != after[1] == after[2], "it learnt in the first task and then stopped"
    for result in broken:
        row = trial_row(result)
        assert (row.status, row.error_message) == ("failed", "no more of this")
    alone = run(mnist, f"{file}:Told", lr=[0.03])
    assert all(same_bits(a, b) for a, b in zip(alone, calm, strict=True))


def test_with_only_matrices_the_other_parameters_go_to_adamw(file: str, mnist: Dataset) -> None:
    declared = {"only_matrices": True, "fallback_lr": 0.01, "fallback_weight_decay": 0.0}
    (split, *_) = run(mnist, f"{file}:Matrices", **declared)
    assert trial_row(split).status == "ok", trial_row(split).error_message
    (whole, *_) = run(mnist, f"{file}:Matrices")
    assert trial_row(whole).status == "failed"


def test_a_file_is_executed_once_per_version(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    file = tmp_path / "mine.py"
    code = f"""import pathlib, torch
log = pathlib.Path({str(tmp_path / "log")!r})
log.write_text(log.read_text() + "x")
class Mine(torch.optim.SGD): pass
"""
    file.write_text(code)
    first = load_factory(f"{file}:Mine")
    assert load_factory(f"{file}:Mine") is first
    file.write_text(code + "\n# changed\n")
    assert load_factory(f"{file}:Mine") is not first
    assert (tmp_path / "log").read_text() == "xx"


SUITE = """
name: guests
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.05}
experiments:
  permuted:
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [10]}}
    protocol: {max_steps: 20, train_examples: 1000, validation_examples: 200, test_examples: 200, batch_size: 32}
"""


def test_users_optimizers_of_every_kind_run_from_the_command_line(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    names = ["Rebinds", "Closure", "Mutates", "Averages", "Raises", "Nan"]
    guests = [word for name in names for word in ("--optimizer", f"{name.lower()}={file}:{name}")]
    assert main(["run", "suite.yaml", "--name", "guests", "--device", "cpu", *guests]) == 3, "some trials failed"
    assert "2 trials failed" in capsys.readouterr().err
    rows = read_run(tmp_path / "runs/guests").table("trials").to_pylist()
    statuses = {row["optimizer"]: row["status"] for row in rows}
    assert statuses == {
        "sgd": "ok",
        "rebinds": "ok",
        "closure": "ok",
        "mutates": "ok",
        "averages": "ok",
        "raises": "failed",
        "nan": "diverged",
    }
    failed = next(row for row in rows if row["optimizer"] == "raises")
    assert (failed["error_type"], failed["error_message"]) == ("ArithmeticError", "enough of this")
    assert main(["run", "suite.yaml", "--name", "alone", "--device", "cpu"]) == 0
    alone, among = (read_run(tmp_path / "runs" / name).table("accuracy").to_pylist() for name in ("alone", "guests"))
    assert [row for row in among if row["optimizer"] == "sgd"] == alone


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer", "x=./mine.py:NoOptimizer"], "expected a torch.optim.Optimizer, or a class or function"),
        (["--optimizer", "x=./mine.py:Plian"], "did you mean 'Plain'?"),
        (["--optimizer", "x=./mien.py:Plain"], "there is no file mien.py"),
        (["--optimizer", "x=./broken.py:Plain"], "cannot import broken.py"),
        (["--optimizer", "x=./mine.py:Plain", "--set", "optimizers.x.lrr=1"], "did you mean 'lr'?"),
        (["--optimizer", "x=./mine.py:Plain", "--set", "optimizers.x.needs=clozure"], "did you mean 'closure'?"),
        (["--optimizer", "x=./mine.py:Plain", "--set", "optimizers.x.elementwise=1"], "expected true or false"),
        (
            ["--optimizer", "x=./mine.py:Normalised", "--set", "optimizers.x.elementwise=true"],
            "elementwise, but fails the test",
        ),
        (
            ["--optimizer", "x=./mine.py:Matrices", "--set", "optimizers.x.only_matrices=1"],
            "expected true or false",
        ),
        (
            ["--set", "optimizers.sgd={target: ./mine.py:Matrices, only_matrices: true, fallback_lrr: 1}"],
            "did you mean 'lr'?",
        ),
        (["--set", "optimizers.sgd={target: sam, base: {target: sgdd}}"], "did you mean 'sgd'?"),
        (["--set", "optimizers.sgd={target: sam, base: {target: sgd, lrr: 1}}"], "did you mean 'lr'?"),
        (["--set", "optimizers.sgd={target: sam, base: sgd}"], "expected an optimizer, as in"),
        (["--set", "optimizers.sgd={target: sam, base: {target: sam}}"], "sam cannot wrap sam"),
    ],
)
def test_invalid_optimizers_are_refused_in_one_line_before_training(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import nothing_like_this\n", encoding="utf-8")
    assert main(["run", "suite.yaml", "--device", "cpu", *words]) == 2
    shown, error = capsys.readouterr()
    assert shown == ""
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


TEXTS = {
    "lr: 1e-3x": "'lr' of ./mine.py:Unannotated: expected a number, got '1e-3x'",
    'lr: "0.1"': "'lr' of ./mine.py:Unannotated: expected a number, got '0.1'",
    "nesterov: maybe": "'nesterov' of ./mine.py:Unannotated: expected true or false, got 'maybe'",
    'betas: "(0.9, 0.99)"': "'betas' of ./mine.py:Unannotated: expected numbers, got '(0.9, 0.99)'",
}


@pytest.mark.parametrize("setting", TEXTS)
def test_text_is_refused_where_the_default_is_a_number_or_boolean(
    setting: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value = setting.split(": ", 1)
    target = f"{file}:Unannotated"
    (tmp_path / "suite.yaml").write_text(
        SUITE.replace("sgd: {target: sgd, lr: 0.05}", f"mine:\n    target: {target}\n    {setting}"), encoding="utf-8"
    )
    for words in ([], ["--dry-run"]):
        said = refusal(capsys, tmp_path, "run", "suite.yaml", "--device", "cpu", *words)
        assert re.match(r"suite\.yaml:\d+:\d+: optimizers\.mine: hyper-parameter ", said)
        assert TEXTS[setting] in said
    assert TEXTS[setting] in refusal(capsys, tmp_path, "check", target, "--set", f"{name}={value}")


@pytest.mark.parametrize(
    "settings", [{"lr": 1}, {"nesterov": 1}, {"betas": [0, 0.9]}, {"mode": "sum"}, {"rho": "auto"}, {"k": "auto"}]
)
def test_values_that_an_argument_may_accept_are_not_refused(file: str, settings: dict[str, Any]) -> None:
    """Text is accepted if the default is text or None, or if an annotation allows it."""
    check_arguments(f"{file}:Unannotated", settings)


# --- wrappers, hand-computed


def parameter(values: list[float], grad: list[float] | None = None) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))
    made.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)
    return made


def made(name: str, parameters: list[torch.nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    given = {"generator": torch.Generator().manual_seed(0)}
    return maker(find(name), complete(name, settings), given)(parameters)


def quadratic(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    """Return the closure of L = 1.5 w1² + .5 w2²."""

    def closure() -> torch.Tensor:
        loss = 1.5 * p[0] ** 2 + 0.5 * p[1] ** 2
        (p.grad,) = torch.autograd.grad(loss, [p])
        return loss

    return closure


def test_sam_agrees_with_a_hand_computed_step() -> None:
    w = parameter([1.0, 4.0])
    closure = quadratic(w)
    closure()  # g = (3, 4), |g| = 5, e = .1 (3, 4)/5 = (.06, .08)
    made("sam", [w], base={"target": "sgd", "lr": 0.1}, rho=0.1).step(closure)
    # g' = (3 * 1.06, 4.08): w - .1 g'
    assert torch.allclose(w, torch.tensor([1 - 0.318, 4 - 0.408], dtype=torch.float64), atol=1e-7)


def test_adaptive_sam_agrees_with_a_hand_computed_step() -> None:
    w = parameter([1.0, 4.0])
    closure = quadratic(w)
    closure()  # |w| g = (3, 16), its norm sqrt(265); e = .1 (1 * 3, 16 * 4)/sqrt(265)
    made("sam", [w], base={"target": "sgd", "lr": 0.1}, rho=0.1, adaptive=True).step(closure)
    e = torch.tensor([0.3, 6.4], dtype=torch.float64) / 265**0.5
    expected = torch.tensor([1.0, 4.0], dtype=torch.float64) * (1 - 0.1 * torch.tensor([3.0, 1.0])) - 0.1 * e * (
        torch.tensor([3.0, 1.0])
    )
    assert torch.allclose(w, expected.double(), atol=1e-6)


def test_sam_with_radius_0_is_its_base_and_does_not_move_at_zero_gradient() -> None:
    for base in ({"target": "sgd", "lr": 0.1}, {"target": "adamw", "lr": 0.01}):
        one, other = parameter([1.0, 4.0]), parameter([1.0, 4.0])
        sam = made("sam", [one], base=base, rho=0.0)
        alone = maker(find(base["target"]), complete(base["target"], {"lr": base["lr"]}))([other])  # type: ignore[arg-type]
        for _ in range(5):
            quadratic(one)()
            sam.step(quadratic(one))  # type: ignore[arg-type]
            quadratic(other)()
            alone.step()
        assert torch.equal(one, other)
    flat = parameter([0.0, 0.0], [0.0, 0.0])
    made("sam", [flat], base={"target": "sgd", "lr": 0.1}).step(quadratic(flat))  # type: ignore[arg-type]
    assert torch.equal(flat, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TypeError, match="expected a closure"):
        made("sam", [flat], base={"target": "sgd", "lr": 0.1}).step()


def test_gradient_noise_has_the_annealed_variance_and_restores_the_gradients() -> None:
    w = parameter([0.0] * 40_000, [0.0] * 40_000)
    noisy = made("gradient-noise", [w], base={"target": "sgd", "lr": 1.0}, eta=0.3, gamma=0.55, steps=3)
    before = w.detach().clone()
    for t in range(5):
        grad = w.grad
        noisy.step()
        assert w.grad is grad
        assert grad is not None
        assert grad.abs().sum() == 0
        variance = (w.detach() - before).var().item()
        assert variance == pytest.approx(0.3 / (1 + t) ** 0.55 if t < 3 else 0.0, rel=0.03)
        before = w.detach().clone()


def test_power_sgd_scales_steps_of_weights_but_not_of_biases() -> None:
    weights = parameter([[2.0, -0.5], [0.0, 1.0]], [[1.0, 1.0], [1.0, -2.0]])  # type: ignore[list-item]
    bias = parameter([2.0, 0.0], [1.0, 1.0])
    made("power-sgd", [weights, bias], lr=0.1, beta=1.5).step()
    expected = torch.tensor([[2 - 0.1 * 2**1.5, -0.5 - 0.1 * 0.5**1.5], [0.0, 1.2]], dtype=torch.float64)
    assert torch.allclose(weights, expected)
    assert torch.allclose(bias, torch.tensor([1.9, -0.1], dtype=torch.float64))


def test_power_sgd_at_beta_0_is_sgd_and_stacked_members_equal_single_ones() -> None:
    random = torch.Generator().manual_seed(1)
    start, grad = torch.randn(3, 4, 5, generator=random), torch.randn(3, 4, 5, generator=random)
    stack = torch.nn.Parameter(start.clone())
    stack.grad = grad.clone()
    from optbench.optimizers.power_sgd import PowerSgd

    rates, betas = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 1.0, 1.5])
    PowerSgd([stack], lr=rates, beta=betas, stacked=True).step()
    for i in range(3):
        alone = torch.nn.Parameter(start[i].clone())
        alone.grad = grad[i].clone()
        PowerSgd([alone], lr=float(rates[i]), beta=float(betas[i])).step()
        assert torch.allclose(stack[i], alone, atol=1e-7)
    assert torch.allclose(stack[0], start[0] - 0.1 * grad[0], atol=1e-7)


@pytest.mark.parametrize("name", ["sam", "gradient-noise"])
def test_a_wrapped_trial_alone_equals_the_trial_in_a_cohort(name: str, mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": name, "base": {"target": "adamw", "lr": 2e-3}}}, seeds=3, max_epochs=1)
    together = train_suite(suite, mnist)
    assert all(trial_row(result).status == "ok" for result in together)
    assert same_bits(train_suite(suite, mnist, only=1)[0], together[1])


def test_muon_trains_the_matrices_and_adamw_the_rest() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (6,), (2, 3, 3, 3))
    start = [torch.randn(shape, generator=random) for shape in shapes]
    grads = [[torch.randn(shape, generator=random) for shape in shapes] for _ in range(5)]

    def trained(make: Callable[[list[torch.nn.Parameter]], list[torch.optim.Optimizer]]) -> list[torch.nn.Parameter]:
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        optimizers = make(parameters)
        for along in grads:
            for p, grad in zip(parameters, along, strict=True):
                p.grad = grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        return parameters

    settings = {"lr": 0.02, "fallback_lr": 0.003, "fallback_weight_decay": 0.1}
    together = trained(lambda ps: [made("muon", ps, **settings)])
    by_hand = trained(
        lambda ps: [torch.optim.Muon([ps[0]], lr=0.02), torch.optim.AdamW(ps[1:], lr=0.003, weight_decay=0.1)]
    )
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(together, by_hand, strict=True))
    assert torch.equal(together[0], by_hand[0])


def test_classes_that_a_module_imports_lazily_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that import their parts lazily define a module `__getattr__` (PEP 562)."""
    (tmp_path / "lately.py").write_text(
        "import torch\ndef __getattr__(name):\n    if name == 'Late':\n        return torch.optim.SGD\n"
        "    raise AttributeError(name)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_factory("lately:Late") is torch.optim.SGD
    with pytest.raises(OptimizerError, match="lately has no 'Early'"):
        load_factory("lately:Early")
