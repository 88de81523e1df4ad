"""Generate the optimizer reference from the registry."""

from __future__ import annotations

import math

from docs.site.described import code, table
from docs.site.types import yaml_of
from optbench.optimizers.registry import OPTIMIZERS
from optbench.optimizers.spec import Hyper, OptimizerSpec

SOURCES = {
    "torch": ("PyTorch", "Classes of `torch.optim`, unmodified."),
    "pytorch-optimizer": (
        "pytorch-optimizer",
        "Classes of the package pytorch-optimizer, unmodified. To install it: `pip install 'optbench[optimizers]'`.",
    ),
    "optbench": ("optbench", "Optimizers implemented in optbench, and wrappers around any other optimizer (`base`)."),
}
TYPES = {
    "boolean": "true or false",
    "betas": "list of numbers in [0, 1)",
    "optimizer": "an optimizer: `target` and its settings",
}
HEAD = """# Optimizers

This page lists the optimizers that a suite can name as `target`, with their hyper-parameters and defaults. Any other
optimizer, including your own, is named by `module:attribute` or `./file.py:attribute`: see
[Your optimizer](../optimizers.md). The lane determines how trials are trained together: see
[Lock-step training](../lock-step.md).
"""


def page() -> str:
    parts = [HEAD]
    for source, (title, text) in SOURCES.items():
        parts.append(f"## {title}\n\n{text}\n")
        parts += [_section(spec) for spec in OPTIMIZERS.values() if spec.source == source]
    return "\n".join(parts)


def _section(spec: OptimizerSpec) -> str:
    facts = [f"lane: {spec.lane}", f"state values per weight: {spec.state}"]
    if shown := sorted(spec.needs - {"random"}):
        facts.append("needs " + ", ".join(map(code, shown)))
    if not spec.takes_schedule:
        facts.append("no support for schedules")
    if spec.only_matrices:
        facts.append(f"updates matrices; `{spec.fallback}` updates all other parameters")
    rows = [(code(name), _type(hyper), _default(spec, name, hyper)) for name, hyper in spec.hyperparameters.items()]
    lines = [f"### {spec.name}", f"{_sentence(spec.summary)} {_sentence(spec.reference)}", f"*{'; '.join(facts)}.*"]
    return "\n\n".join([*lines, table(("hyper-parameter", "type", "default"), rows) if rows else ""])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") or not text else ".")


def _type(hyper: Hyper) -> str:
    if hyper.kind == "choice":
        said = " or ".join(map(code, hyper.choices))
    elif hyper.kind in TYPES:
        said = TYPES[hyper.kind]
    else:
        said = "whole number" if hyper.kind == "integer" else "number"
        said += f" {'above' if hyper.above else 'of at least'} {hyper.low:g}" if math.isfinite(hyper.low) else ""
        said += f" and at most {hyper.high:g}" if math.isfinite(hyper.high) else ""
        said += "".join(f", or {code(choice)}" for choice in hyper.choices)
    return said + (", or null" if hyper.optional else "")


def _default(spec: OptimizerSpec, name: str, hyper: Hyper) -> str:
    by_preset = {preset: values[name] for preset, values in spec.presets.items() if name in values}
    if by_preset:
        return ", ".join(f"{code(yaml_of(value))} ({preset})" for preset, value in by_preset.items())
    return code(yaml_of(hyper.default))
