"""The optimizers to measure: the default ones, or those named on the command line. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optbench.errors import UsageError, unknown
from optbench.optimizers.registry import OPTIMIZERS, check_settings, is_plugin
from optbench.suite.fields import is_name
from optbench.suite.overrides import parse_override
from optbench.suite.variants import with_values


@dataclass(frozen=True)
class Contender:
    """A named optimizer with its settings.

    twin: name of the optimizer to compare with this one at the same exponent (see `sparse`); None if there is none.
    """

    name: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    twin: str | None = None


def sparse(alpha: float, lr: float = 0.1) -> tuple[Contender, Contender]:
    """Return Powerpropagation with exponent `alpha` and its twin.

    The twin is SGD preconditioned by diag(|θ|^β), where β = 2 - 2/`alpha`. Both have the same gradient flow;
    `PowerSgd` documents how their settings correspond.
    """
    twin = {"lr": alpha**2 * lr, "beta": 2 - 2 / alpha, "bias_scale": alpha**-2}
    names = f"powerpropagation-{alpha:g}", f"power-sgd-{alpha:g}"
    base = {"target": "sgd", "lr": lr}
    return (
        Contender(names[0], "powerpropagation", {"base": base, "alpha": alpha}, names[1]),
        Contender(names[1], "power-sgd", twin),
    )


CONTENDERS: Mapping[str, Contender] = {
    one.name: one
    for one in (
        Contender("sgd", "sgd"),
        Contender("sgd-momentum", "sgd", {"momentum": 0.9}),
        Contender("adamw", "adamw"),
        Contender("muon", "muon"),
        Contender("soap", "soap"),
        Contender("shampoo", "shampoo"),
        Contender("shampoo-1024", "shampoo", {"block_size": 1024}),
        Contender("shampoo-512", "shampoo", {"block_size": 512}),
        # as used at scale, with Adam's step lengths, which tolerate stale roots
        Contender(
            "shampoo-512-every-20",
            "shampoo",
            {"preset": "adam-grafted", "block_size": 512, "precondition_frequency": 20, "small_side": 0},
        ),
        Contender("kfac", "kfac"),
        Contender("scalable-shampoo", "scalable-shampoo"),
        Contender("pytorch-optimizer-shampoo", "pytorch_optimizer:Shampoo"),
        *sparse(2.0),
        *sparse(3.0),
    )
}


def chosen(words: Sequence[str], settings: Sequence[str] = ()) -> list[Contender]:
    """Return the optimizers named on the command line; if none is named, return all default optimizers.

    words: the optimizers, each of the form `adamw`, `./mine.py:Mine` or `NAME=TARGET`.
    settings: hyper-parameters, each of the form `NAME.key=value`, where NAME is the name of one of the optimizers, or
        `key=value` if there is only one optimizer.

    Raises:
        UsageError: an optimizer is unknown, named twice or has an invalid name, or a setting is malformed or does not
            name one of the optimizers.
        OptimizerError: an optimizer rejects its settings.
    """
    found = [_named(word) for word in words] if words else list(CONTENDERS.values())
    names = [one.name for one in found]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UsageError(f"cost: '{twice[0]}' is named twice; use NAME=TARGET to give it another name")
    for text in settings:
        found = _set(found, text)
    for one in found:
        check_settings(one.target, one.settings)
    return found


def _named(word: str) -> Contender:
    name, equals, target = word.partition("=")
    if not equals:
        target = word
        name = target.rpartition(":")[2] if is_plugin(target) else target
    if not is_name(name):
        raise UsageError(
            f"cost: '{name}' in {word}: expected a name of letters, digits and ._+-; use NAME=TARGET to choose a name"
        )
    if target in CONTENDERS:
        return replace(CONTENDERS[target], name=name, twin=CONTENDERS[target].twin if name == target else None)
    if not is_plugin(target) and target not in OPTIMIZERS:
        known = {*CONTENDERS, *OPTIMIZERS}
        raise UsageError(f"cost: {unknown('optimizer', target, known)} (or module:Class, or ./file.py:Class)")
    return Contender(name, target)


def _set(found: list[Contender], text: str) -> list[Contender]:
    override = parse_override(text)
    names = [one.name for one in found]
    # names may contain dots
    name = max((n for n in names if override.text.startswith(f"{n}.")), key=len, default=None)
    if name is None and len(found) > 1:
        key = override.segments[0]
        raise UsageError(f"--set {text}: {unknown('optimizer', key, names)}; expected NAME.key=value")
    path = override.segments if name is None else override.segments[len(name.split(".")) :]
    if not path:
        raise UsageError(f"--set {text}: expected NAME.key=value")
    given = {tuple(path): override.value}
    chosen = name or names[0]
    return [replace(one, settings=with_values(one.settings, given)) if one.name == chosen else one for one in found]
