"""Generate the Python reference: each name that `optbench` exports, documented by mkdocstrings."""

from __future__ import annotations

import optbench

GROUPS = {
    "Running and reading": ("run", "load_suite", "read_run", "compare", "Run"),
    "Fingerprints": ("fingerprint", "Fingerprint"),
    "Bringing your own": ("metric", "Dataset", "Split", "InputSpec", "Parts", "Examples", "Outline", "Text"),
    "Errors": ("OptbenchError",),
}
HEAD = """# Python

`import optbench` does not import torch; the names below import torch when they are first used. For a tour with
examples, see [From Python](../python.md).
"""


def page() -> str:
    listed = {name for names in GROUPS.values() for name in names}
    if left := sorted(set(optbench.__all__) - listed - {"__version__"}):
        raise ValueError(f"docs/site/python.py: expected every public name in a group, got none for {', '.join(left)}")
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            place = optbench._PUBLIC[name].replace(":", ".") + "." + name
            parts.append(f"::: {place}\n    options: {{heading: optbench.{name}, toc_label: {name}}}\n")
    return "\n".join(parts)
