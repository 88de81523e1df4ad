"""A suite as text: the resolved YAML that repeats a run, and the hash that identifies what is trained and measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from optbench.suite.document import ExplicitNull
from optbench.suite.measured import with_readings
from optbench.suite.protocol import Protocol
from optbench.suite.scalars import add_refused_words, add_scalar_rules
from optbench.suite.schema import Suite

ADDED = ("score", "follow_earlier", "schedule", "clip_norm", "weight_averaging", "precision", "augment")
"""Protocol settings that earlier versions lack. Each is part of the hash only if it differs from its default."""


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes every text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    flat = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = None
    if any(char in "\x85\u2028\u2029\ufeff\r" for char in text):
        # YAML 1.1 treats these characters as line breaks, which only double quotes preserve.
        style = '"'
    elif "\n" in text and all(line == line.strip() for line in text.split("\n")) and text[0] != "\n":
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


# SafeDumper has the rules of YAML 1.1; those of 1.2 are added.
add_scalar_rules(_Dumper)
add_refused_words(_Dumper)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    ExplicitNull, lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "", style="'")
)


def dump_suite(suite: Suite) -> str:
    """Write the suite as YAML with every default; loading it gives an equal suite."""
    return dump(suite.model_dump(mode="python"), short=False)


def dump(value: Mapping[str, Any], *, short: bool = True) -> str:
    """Write plain values as YAML that has the same meaning in versions 1.1 and 1.2.

    short: whether to put each innermost mapping on one line.
    """
    inside = any(isinstance(item, dict | list) for item in value.values())
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None if short and inside else False,
        width=110,
    )


def suite_hash(suite: Suite) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the resolved suite.

    Two suites have the same hash if they train and measure the same things. Comments, the order of keys and explicit
    defaults do not affect the hash. Neither do keys that only describe results (description, claims, primary metrics,
    tuning, figures) or how settings are chosen (tune). Metrics measured for the readings of claims are hashed as if
    they were listed.
    """
    canonical = json.dumps(content(suite), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def suite_differences(a: Suite, b: Suite, *, apart_from: Collection[str] = ()) -> list[str]:
    """Return the differences between two suites that change the hash, e.g. `optimizers.sgd.lr (0.1, 0.3)`.

    apart_from: the optimizers whose settings, in the suite or in its experiments, are not compared.
    """
    sides = [content(suite, whole=True) for suite in (a, b)]
    for plain in sides:
        for part in (plain, *plain["experiments"].values()):
            for name in apart_from if part["optimizers"] is not None else ():
                part["optimizers"].pop(name, None)
    return list(differences(sides[0], sides[1]))


def content(suite: Suite, *, whole: bool = False) -> dict[str, Any]:
    """Return the parts of a suite that determine what is trained and measured, as plain values.

    whole: whether to include the settings in `ADDED` that have their defaults.
    """
    plain = with_readings(suite).model_dump(mode="json", exclude={"description", "claims", "tune"})
    for experiment in plain["experiments"].values():
        del experiment["primary"], experiment["tuning"], experiment["figures"]
        for added in ("pairs", "twins", "transfer"):
            if experiment[added] is None:
                del experiment[added]  # so that suites of versions without them keep their hash
        protocol = experiment["protocol"]
        for added in () if whole else ADDED:
            if protocol[added] == Protocol.model_fields[added].default:
                del protocol[added]  # for the same reason
        if experiment["tasks"].get("examples_per_task", 0) is None:
            del experiment["tasks"]["examples_per_task"]  # for the same reason
        for model in experiment["models"].values():
            if model.get("initialisation") == "uniform":
                del model["initialisation"]  # for the same reason
    return plain


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Yield the differences between two results of `content`, e.g. `optimizers.sgd.lr (0.1, 0.3)`."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            inner = f"{path}.{key}" if path else str(key)
            if key in a and key in b:
                yield from differences(a[key], b[key], inner)
            else:
                yield f"{inner} (only in the {'first' if key in a else 'second'})"
    elif a != b:
        yield f"{path} ({_short(a)}, {_short(b)})"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 72 else f"{text[:69]}..."
