"""Measure what kind of solution an optimizer finds. The Python interface is introduced in docs/python.md.

Names are imported when they are first used, so that `import optbench` is fast and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset, InputSpec, Split
    from optbench.data.windows import Text
    from optbench.errors import OptbenchError
    from optbench.interface.fingerprint import Fingerprint, fingerprint
    from optbench.interface.results import Run, compare, read_run
    from optbench.interface.run import load_suite, run
    from optbench.metrics.own import metric
    from optbench.tasks.examples import Examples, Parts
    from optbench.tasks.kind import Outline

    __version__: str

_PUBLIC = {
    "Dataset": "optbench.data.dataset",
    "Examples": "optbench.tasks.examples",
    "Fingerprint": "optbench.interface.fingerprint",
    "InputSpec": "optbench.data.dataset",
    "OptbenchError": "optbench.errors",
    "Outline": "optbench.tasks.kind",
    "Parts": "optbench.tasks.examples",
    "Run": "optbench.interface.results",
    "Split": "optbench.data.dataset",
    "Text": "optbench.data.windows",
    "compare": "optbench.interface.results",
    "fingerprint": "optbench.interface.fingerprint",
    "load_suite": "optbench.interface.run",
    "metric": "optbench.metrics.own",
    "read_run": "optbench.interface.results",
    "run": "optbench.interface.run",
}
"""Module that defines each public name."""

# Spelt out because ruff and mypy cannot read a computed list; a test checks that this list agrees with `_PUBLIC`.
__all__ = [
    "Dataset",
    "Examples",
    "Fingerprint",
    "InputSpec",
    "OptbenchError",
    "Outline",
    "Parts",
    "Run",
    "Split",
    "Text",
    "__version__",
    "compare",
    "fingerprint",
    "load_suite",
    "metric",
    "read_run",
    "run",
]


if not TYPE_CHECKING:  # otherwise type checkers would accept any attribute of this module

    def __getattr__(name: str) -> Any:
        import importlib

        if name == "__version__":
            import importlib.metadata

            value: Any = importlib.metadata.version("optbench")
        elif name in _PUBLIC:
            value = getattr(importlib.import_module(_PUBLIC[name]), name)
        else:
            raise AttributeError(f"module 'optbench' has no attribute '{name}'")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
