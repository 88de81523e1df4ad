"""Compare ways to compute Shampoo's inverse roots: their time and error on factors from real training.

    python benchmarks/roots.py [--device cpu] [--members 1 10] [--rounds 5] [--sides 10 100 784]
    python benchmarks/roots.py --device cuda --members 1 10 30 100
    python benchmarks/roots.py --refresh [--seeds 3]

The factors are those of Shampoo as in suites/continual.yaml (MLP 784-100-10, permuted MNIST, batch 256, factors summed)
after 200 steps and, for the warm start, also after 150 steps, with one seed per member. The roots are fourth roots with
ε = 1e-4. On a CPU, one thread is used.

- `eigh float64`: the reference. `float32`: the decomposition in single precision, which `root_precision: auto` uses on
  a CPU if ε is at least n 2⁻²³.
- `newton float64`: `root: newton`, with matrix products only. `float32`: the same in single precision.
- `qr float64`: one step of orthogonal iteration from the eigenvectors of 50 steps earlier (as SOAP refreshes its
  basis), with the diagonal of QᵀAQ instead of eigenvalues.

`time` is in milliseconds per call for all members, median [min, max] over rounds that run the ways in turn. `error` is
the relative error of the preconditioned gradient of the factor's layer, compared with the exact root under the same
definition (eigenvalues raised to at least ε λ_max, or increased by ε λ_max); the largest over members. `apart` is the
same error compared with the reference.

`--refresh` compares policies for refreshing the roots instead. The same network is trained on three permuted tasks for
two epochs each. Roots are refreshed either at fixed intervals for the 784-pixel side (and at every step for all other
sides), or when needed (`precondition_frequency: auto`), with several shares. `ms` is the processor time of a complete
step. `refreshes` is the number of decompositions of each side in 100 steps (100: the hidden layer's output, its bias
and the head's input). `too long` is the length of a step with the current roots divided by that with fresh roots,
measured every 25 steps: median and maximum. Accuracy and forgetting are measured on 5,000 validation images, which are
not used for training, and given as mean and standard deviation over seeds. `difference` is the difference in accuracy
from `every 1` with the same seed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EPSILON, ORDER = 1e-4, 4
EARLY, LATE = 151, 201
"""Numbers of training steps; the last step of each refreshes the roots, so that the factors are complete."""
Way = Callable[[Tensor, Tensor], Tensor]
"""way(factors (M, n, n) float64, basis (M, n, n) of an earlier step) -> roots (M, n, n) float64"""


def by_eigh(factors: Tensor, dtype: torch.dtype, *, added: bool = False) -> Tensor:
    from optbench.optimizers.roots import inverse_root_of_spectrum

    spectrum, basis = torch.linalg.eigh(factors.to(dtype))
    return assembled(basis, inverse_root_of_spectrum(spectrum, ORDER, EPSILON, 1.0, added=added))


def by_newton(factors: Tensor, dtype: torch.dtype) -> Tensor:
    from optbench.optimizers.newton_root import iterations_for, newton_inverse_root

    epsilon = torch.full(factors.shape[:1], EPSILON, dtype=torch.float64, device=factors.device)
    return newton_inverse_root(factors.to(dtype), ORDER, epsilon, iterations_for(ORDER, EPSILON))[0].double()


def by_qr(factors: Tensor, basis: Tensor) -> Tensor:
    from optbench.optimizers.roots import inverse_root_of_spectrum

    basis, _ = torch.linalg.qr(factors @ basis)
    spectrum = (basis.mT @ factors @ basis).diagonal(dim1=1, dim2=2)
    return assembled(basis, inverse_root_of_spectrum(spectrum, ORDER, EPSILON, 1.0))


def assembled(basis: Tensor, spectrum: Tensor) -> Tensor:
    return ((basis * spectrum.unsqueeze(-2)) @ basis.mT).double()


WAYS: dict[str, Way] = {
    "eigh float64": lambda factors, basis: by_eigh(factors, torch.float64),
    "eigh float32": lambda factors, basis: by_eigh(factors, torch.float32),
    "newton float64": lambda factors, basis: by_newton(factors, torch.float64),
    "newton float32": lambda factors, basis: by_newton(factors, torch.float32),
    "qr float64": by_qr,
}


def factors_in_training(members: int) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Return, by side, factors after `EARLY` and `LATE` steps, each (M, n, n), and gradients (M, n, k) after `LATE`."""
    from torch import nn

    from optbench.data import load
    from optbench.optimizers.shampoo import Shampoo

    dataset = load("mnist")
    images = (dataset.train.inputs.flatten(1) / 255 - 0.1307) / 0.3081
    found: dict[int, list[list[Tensor]]] = {784: [], 100: [], 10: []}
    for seed in range(members):
        torch.manual_seed(seed)
        inputs, order = images[:, torch.randperm(784)], torch.randperm(len(images))
        network = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
        optimizer = Shampoo(network.parameters(), lr=0.3, epsilon=EPSILON, precondition_frequency=50)
        optimizer.begin_task()
        first, _, last, _ = network.parameters()
        early: dict[int, Tensor] = {}
        for step in range(LATE):
            batch = order[step * 256 : (step + 1) * 256]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[batch]), dataset.train.targets[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            if step + 1 == EARLY:
                early = {n: sides(optimizer, first, last)[n][0].clone() for n in found}
        for n, (factor, gradient) in sides(optimizer, first, last).items():
            found[n].append([early[n], factor, gradient])
    return {n: (stacked(rows, 0), stacked(rows, 1), stacked(rows, 2)) for n, rows in found.items()}


def sides(optimizer: torch.optim.Optimizer, first: Tensor, last: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return, by side, a factor (n, n) and the gradient (n, k) to which its root is applied."""
    assert first.grad is not None
    assert last.grad is not None
    return {
        784: (optimizer.state[first]["right"][0], first.grad.mT.double()),
        100: (optimizer.state[first]["left"][0], first.grad.double()),
        10: (optimizer.state[last]["left"][0], last.grad.double()),
    }


def stacked(rows: list[list[Tensor]], place: int) -> Tensor:
    return torch.stack([row[place] for row in rows])


def positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def usable(text: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r}")
    return device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=usable, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--members", type=positive, nargs="+", default=[1, 10])
    parser.add_argument("--sides", type=int, nargs="+", default=[10, 100, 784], choices=[10, 100, 784])
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--refresh", action="store_true", help="compare policies for when to refresh the roots")
    parser.add_argument("--seeds", type=positive, default=3, help="number of seeds for --refresh")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.refresh:
        compare_refreshes(arguments.seeds)
        return
    device = arguments.device
    name = "a CPU, one thread" if device.type == "cpu" else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; order {ORDER}, epsilon {EPSILON:g}\n")
    print(HEADING)
    # Training a few seeds is enough; further members are copies of them.
    trained = factors_in_training(min(10, max(arguments.members)))
    for n in arguments.sides:
        for members in arguments.members:
            given = tuple(spread(x, members).to(device) for x in trained[n])
            for found in measured(n, members, given, arguments.rounds):
                print(line(found), flush=True)


def spread(x: Tensor, members: int) -> Tensor:
    return x[torch.arange(members) % len(x)].contiguous()


@dataclass(frozen=True)
class Measurement:
    """The measurement of one way on one stack of factors."""

    side: int
    members: int
    way: str
    milliseconds: list[float]
    """One value per round."""
    error: float
    """Largest relative error of the update over members, compared with the exact root under the same definition."""
    apart: float
    """The same error compared with the reference, `eigh float64`."""


def measured(
    n: int, members: int, given: tuple[Tensor, ...], rounds: int, deadline: float = float("inf")
) -> Iterator[Measurement]:
    """Time all ways in turn on one stack of factors; no further round starts after `deadline` (`time.perf_counter`)."""
    early, factors, gradients = given
    _, basis = torch.linalg.eigh(early)
    wait: Callable[[], object] = torch.cuda.synchronize if factors.is_cuda else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() > deadline:
            break
        for name, way in WAYS.items():
            wait()
            started = time.perf_counter()
            way(factors, basis)
            wait()
            if turn:  # the first round is a warm-up, in which libraries initialise
                taken[name].append(1000 * (time.perf_counter() - started))
    exact = {added: by_eigh(factors, torch.float64, added=added) @ gradients for added in (False, True)}
    for name, way in WAYS.items():
        update = way(factors, basis) @ gradients
        error, apart = (distance(update, exact[added]) for added in ("newton" in name, False))
        yield Measurement(n, members, name, taken[name], error, apart)


HEADING = f"{'side':>5}{'members':>9}  {'way':16}{'time, ms':>28}{'error':>11}{'apart':>11}"


def line(found: Measurement) -> str:
    """Return a row of the table."""
    low, middle, high = min(found.milliseconds), statistics.median(found.milliseconds), max(found.milliseconds)
    cell = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    return f"{found.side:5}{found.members:9}  {found.way:16}{cell:>28}{found.error:>11.1e}{found.apart:>11.1e}"


POLICIES: dict[str, dict[str, Any]] = {
    **{f"every {k}": {"precondition_frequency": k} for k in (1, 10, 50)},
    **{
        f"auto {share:g}": {"precondition_frequency": "auto", "refresh_share": share} for share in (0.3, 1.0, 3.0, 10.0)
    },
}
TASKS, EPOCHS, BATCH, HELD_OUT = 3, 2, 256, 5_000


@dataclass
class Training:
    """The result of one seed with one policy."""

    accuracy: float
    forgetting: float
    milliseconds: float
    refreshes: dict[int, float]
    too_long: list[float]


def compare_refreshes(seeds: int) -> None:
    """Train with every policy, in turn for each seed, and print progress and then the table."""
    found: dict[str, list[Training]] = {name: [] for name in POLICIES}
    for seed in range(seeds):
        for name, policy in POLICIES.items():
            found[name].append(train(seed, policy))
            print(f"seed {seed}, {name}: {found[name][-1].accuracy:.4f}", file=sys.stderr, flush=True)
    head = f"{'policy':10}{'ms':>20}{'refreshes 784':>15}{'100':>7}{'10':>7}{'too long':>15}"
    print(f"{head}{'accuracy':>16}{'forgetting':>16}{'difference':>20}")
    for name, runs in found.items():
        times = [run.milliseconds for run in runs]
        often = "".join(
            f"{statistics.mean(run.refreshes[n] for run in runs):{width}.1f}"
            for n, width in ((784, 15), (100, 7), (10, 7))
        )
        long = [value for run in runs for value in run.too_long]
        gaps = [run.accuracy - other.accuracy for run, other in zip(runs, found["every 1"], strict=True)]
        cells = [
            f"{statistics.median(times):.2f} [{min(times):.2f}, {max(times):.2f}]",
            f"{statistics.median(long):.2f}, {max(long):.2f}",
            spread_of([run.accuracy for run in runs]),
            spread_of([run.forgetting for run in runs]),
            f"{statistics.mean(gaps):+.4f} [{min(gaps):+.4f}, {max(gaps):+.4f}]",
        ]
        print(f"{name:10}{cells[0]:>20}{often}{cells[1]:>15}{cells[2]:>16}{cells[3]:>16}{cells[4]:>26}")


def spread_of(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f}±{statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def train(seed: int, policy: dict[str, Any]) -> Training:
    """Train one network on `TASKS` permutations."""
    from torch import nn

    from optbench.data import load
    from optbench.optimizers.shampoo import Shampoo

    dataset = load("mnist")
    images = (dataset.train.inputs.flatten(1) / 255 - 0.1307) / 0.3081
    labels = dataset.train.targets
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    seen, held_out = order[HELD_OUT:], order[:HELD_OUT]
    permutations = [torch.randperm(784) for _ in range(TASKS)]
    network = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = Shampoo(network.parameters(), lr=0.3, epsilon=EPSILON, **policy)
    refreshes, too_long, steps, spent = Counter[int](), list[float](), 0, 0.0
    decompose = torch.linalg.eigh

    def counted(matrix: Tensor) -> Any:
        refreshes[len(matrix)] += 1
        return decompose(matrix)

    def accuracy(task: int) -> float:
        with torch.no_grad():
            logits = network(images[held_out][:, permutations[task]])
        return float((logits.argmax(1) == labels[held_out]).double().mean())

    learnt = []
    for task in range(TASKS):
        inputs = images[:, permutations[task]]
        optimizer.begin_task()
        for _ in range(EPOCHS):
            for batch in torch.split(seen[torch.randperm(len(seen))], BATCH):
                started = time.process_time()
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
                loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
                before = [p.detach().clone() for p in network.parameters()] if steps % 25 == 24 else None
                torch.linalg.eigh = counted
                optimizer.step()
                torch.linalg.eigh = decompose
                spent += time.process_time() - started
                steps += 1
                if before is not None:
                    too_long += overshoots(optimizer, before)
        learnt.append(accuracy(task))
    last = [accuracy(task) for task in range(TASKS)]
    forgetting = statistics.mean(a - b for a, b in zip(learnt[:-1], last[:-1], strict=True))
    often = {n: 100 * refreshes[n] / steps for n in (784, 100, 10)}
    return Training(statistics.mean(last), forgetting, 1000 * spent / steps, often, too_long)


def overshoots(optimizer: torch.optim.Optimizer, before: list[Tensor]) -> list[float]:
    """Return, for each parameter, the length of the step taken divided by that of the step with fresh roots."""
    from optbench.optimizers.factors import factor_of
    from optbench.optimizers.roots import precondition, update_inverse_roots

    (group,) = optimizer.param_groups
    ratios = []
    for parameter, old in zip(group["params"], before, strict=True):
        state, gradient = optimizer.state[parameter], parameter.grad.reshape(1, len(parameter), -1)
        names = [side for side in ("left", "right") if side in state]
        roots = []
        for side in names:
            factor = factor_of(state, side, 2 * len(names))
            assert factor.kept is not None
            assert factor.growth is not None
            assert factor.unit is not None
            unit = float(factor.unit[0]) or 1.0
            now = factor.kept[0] * factor.total[0] + factor.growth[0].double() / unit**2
            roots.append(torch.zeros_like(factor.root))
            update_inverse_roots(roots[-1], now[None], factor.order, EPSILON)
        fresh = group["lr"] * precondition(roots, gradient).norm()
        ratios.append(float((parameter.detach() - old).norm() / fresh) if fresh > 0 else 1.0)
    return ratios


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest relative distance over members."""
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


if __name__ == "__main__":
    main()
