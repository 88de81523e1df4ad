"""Generate the suite-file reference: keys, from the pydantic models that validate them, and registered kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from docs.site.described import code, descriptions, paragraphs, table
from docs.site.types import default, in_words
from optbench.kinds import DATASETS, MODELS, TASKS, Kind, Registry
from optbench.metrics.own import MetricSettings
from optbench.suite.schema import OptimizerSettings, Suite

KINDS: dict[type[BaseModel], tuple[str, str]] = {
    MetricSettings: ("a metric", "metrics.md"),
    OptimizerSettings: ("an optimizer", "optimizers.md"),
}
HEAD = """# Suite files

This page lists every key of a suite, with its type, default and meaning. Any other key is an error, and the message
gives its line and the nearest valid key. To write a suite, extend one or change settings on the command line, see
[Suites](../suites.md).
"""


def page() -> str:
    return "\n".join([HEAD, *(_section(path, model) for model, path in _paths().items()), _kinds()])


def _paths() -> dict[type[BaseModel], str]:
    """Return the models of all mappings in a suite file, each with the first path at which it occurs, in file order."""
    found: dict[type[BaseModel], str] = {}
    _add(Suite, "", found)
    return found


def _add(model: type[BaseModel], path: str, found: dict[type[BaseModel], str]) -> None:
    found[model] = path
    for name, field in model.model_fields.items():
        for inner, steps in _inside(field.annotation, name):
            if inner not in found and not issubclass(inner, Kind) and inner not in KINDS:
                _add(inner, f"{path}.{steps}".lstrip("."), found)


def _inside(hint: Any, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint, path
    below = {dict: f"{path}.NAME", list: f"{path}[]"}.get(get_origin(hint), path)
    for inner in get_args(hint):
        yield from _inside(inner, below)


def _section(path: str, model: type[BaseModel]) -> str:
    said = descriptions(model)
    rows = [
        (code(name), in_words(field, _link), default(field), said.get(name, ""))
        for name, field in model.model_fields.items()
    ]
    steps = path.split(".")
    label = path if len(steps) < 3 else "…" + ".".join(["", *steps[2:]])
    title = f"## {code(path) or 'The file'} {{#{model.__name__.lower()} data-toc-label='{label or 'The file'}'}}"
    return f"{title}\n\n{paragraphs(model.__doc__)}\n\n" + table(("key", "type", "default", "meaning"), rows)


def _link(model: type[BaseModel]) -> str:
    if model in KINDS:
        name, place = KINDS[model]
        return f"[{name}]({place})"
    if issubclass(model, Kind):
        return f"[a {model.registry.what}](#{_anchor(model.registry)})"
    return f"[a mapping](#{model.__name__.lower()})"


def _anchor(registry: Registry) -> str:
    return {id(DATASETS): "datasets", id(TASKS): "task-sequences", id(MODELS): "models"}[id(registry)]


def _kinds() -> str:
    parts = []
    for title, registry in (("Datasets", DATASETS), ("Task sequences", TASKS), ("Models", MODELS)):
        parts.append(f"## {title}\n\n`kind` is one of these names, or a target [of your own](../your-own.md).\n")
        for kind in registry.names:
            parts.append(f"### {kind}\n\n{_text(registry, kind)}\n")
            fields = registry.settings(kind).model_fields
            rows = [(code(name), in_words(field, _link), default(field)) for name, field in fields.items()]
            if rows:
                parts.append(table(("setting", "type", "default"), rows))
    return "\n".join(parts)


def _text(registry: Registry, kind: str) -> str:
    """Return the description of a kind: its docstring and, for a class, the settings described by its constructor."""
    found = registry.load(kind)
    own = paragraphs(found.__doc__)
    made = paragraphs(vars(found)["__init__"].__doc__).partition("\n\n")[2] if isinstance(found, type) else ""
    return f"{own}\n\n{made}" if made else own.removesuffix(".") + "."
