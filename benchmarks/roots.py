"""Which way to Shampoo's inverse roots: how long each takes, and how far off it is, on factors from real training.

    python benchmarks/roots.py [--device cpu] [--members 1 10] [--rounds 5] [--sides 10 100 784]
    python benchmarks/roots.py --device cuda --members 1 10 30 100

Factors: Shampoo as in suites/continual.yaml (MLP 784-100-10, permuted MNIST, batch 256, factors summed) after 200
steps, one seed a member; for the warm start also those after 150. Fourth roots with ε = 1e-4. On a CPU one thread.

- `eigh float64`: what Shampoo does by default. `float32`: the decomposition in single precision.
- `newton float64`: `root: newton`, products alone. `float32`: the same in single precision.
- `qr float64`: one step of orthogonal iteration from the eigenvectors of 50 steps before (as SOAP refreshes its basis),
  the diagonal of QᵀAQ in the place of eigenvalues.

`time`: milliseconds a call for all members, median [min, max] over rounds in which the ways take turns. `error`: of the
preconditioned gradient of the layer whose factor it is, relative, against the exact root of the same definition (lifted
to, or raised by, ε λ_max), largest over members. `apart`: the same against the default.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON, ORDER = 1e-4, 4
EARLY, LATE = 150, 200
Way = Callable[[Tensor, Tensor], Tensor]
"""way(factors (M, n, n) float64, basis (M, n, n) of an earlier time) -> roots (M, n, n) float64"""


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
    """By side: factors after `EARLY` and after `LATE` steps, each (M, n, n), and gradients (M, n, k) after `LATE`."""
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
            loss.backward()  # type: ignore[no-untyped-call]  # of torch
            optimizer.step()
            if step + 1 == EARLY:
                early = {n: sides(optimizer, first, last)[n][0].clone() for n in found}
        for n, (factor, gradient) in sides(optimizer, first, last).items():
            found[n].append([early[n], factor, gradient])
    return {n: (stacked(rows, 0), stacked(rows, 1), stacked(rows, 2)) for n, rows in found.items()}


def sides(optimizer: torch.optim.Optimizer, first: Tensor, last: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """By side, a factor (n, n) and the gradient (n, k) that its root is applied to."""
    assert first.grad is not None
    assert last.grad is not None
    return {
        784: (optimizer.state[first]["right"][0], first.grad.mT.double()),
        100: (optimizer.state[first]["left"][0], first.grad.double()),
        10: (optimizer.state[last]["left"][0], last.grad.double()),
    }


def stacked(rows: list[list[Tensor]], place: int) -> Tensor:
    return torch.stack([row[place] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--sides", type=int, nargs="+", default=[10, 100, 784], choices=[10, 100, 784])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    name = "a CPU, one thread" if device.type == "cpu" else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; order {ORDER}, epsilon {EPSILON:g}\n")
    print(HEADING)
    # Training the same few seeds is enough: more members are copies of them.
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
    """One way on one stack of factors."""

    side: int
    members: int
    way: str
    milliseconds: list[float]
    """A value for each round."""
    error: float
    """Of the update, relative, against the exact root of the same definition; the largest over members."""
    apart: float
    """The same against the default."""


def measured(
    n: int, members: int, given: tuple[Tensor, ...], rounds: int, deadline: float = float("inf")
) -> Iterator[Measurement]:
    """Time all ways on one stack of factors, in turns; rounds end early at `deadline` (of `time.perf_counter`)."""
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
            if turn:  # the first is for what a library prepares
                taken[name].append(1000 * (time.perf_counter() - started))
    exact = {added: by_eigh(factors, torch.float64, added=added) @ gradients for added in (False, True)}
    for name, way in WAYS.items():
        update = way(factors, basis) @ gradients
        error, apart = (distance(update, exact[added]) for added in ("newton" in name, False))
        yield Measurement(n, members, name, taken[name], error, apart)


HEADING = f"{'side':>5}{'members':>9}  {'way':16}{'time, ms':>28}{'error':>11}{'apart':>11}"


def line(found: Measurement) -> str:
    """A row of the table."""
    low, middle, high = min(found.milliseconds), statistics.median(found.milliseconds), max(found.milliseconds)
    cell = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    return f"{found.side:5}{found.members:9}  {found.way:16}{cell:>28}{found.error:>11.1e}{found.apart:>11.1e}"


def distance(a: Tensor, b: Tensor) -> float:
    """The largest, over members, relative distance."""
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


if __name__ == "__main__":
    main()
