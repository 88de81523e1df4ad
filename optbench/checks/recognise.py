"""Recognition of a target's kind."""

from __future__ import annotations

import inspect
from typing import Any

from optbench import targets
from optbench.errors import UsageError, nearest
from optbench.kinds import DATASETS, MODELS, TASKS
from optbench.metrics import METRICS
from optbench.metrics.own import MARK
from optbench.optimizers.needs import PARAMETERS, first_given
from optbench.optimizers.registry import OPTIMIZERS
from optbench.targets.source import check_names_attribute

NAMES = {
    "optimizer": OPTIMIZERS,
    "model": MODELS.names,
    "dataset": DATASETS.names,
    "tasks": TASKS.names,
    "metric": METRICS,
}


def recognise(target: str) -> str:
    """Return the kind of a target: `optimizer`, `model`, `dataset`, `tasks` or `metric`.

    Raises:
        UsageError: the target cannot be imported, or its kind cannot be determined.
    """
    if ":" not in target:
        for known, names in NAMES.items():
            if target in names:
                return known
        try:
            check_names_attribute(target)
        except targets.TargetError as error:
            raise UsageError(*error.args) from None
        guess = nearest(target, [name for names in NAMES.values() for name in names])
        hint = f"did you mean '{guess}'?" if guess else "see optbench list optimizers|datasets|tasks|models|metrics"
        raise UsageError(f"unknown name '{target}'; {hint} (or module:attribute, or ./file.py:attribute)")
    try:
        found = targets.load(target)
    except targets.TargetError as error:
        raise UsageError(*error.args) from error.__cause__
    kind = _kind_of(found)
    if kind is None:
        raise UsageError(f"{target}: cannot determine its kind; specify it with --as {'|'.join(NAMES)}")
    return kind


def _kind_of(found: Any) -> str | None:
    import torch  # late, because registered names do not need it

    if hasattr(found, MARK):
        return "metric"
    if inspect.isclass(found):
        for base, kind in ((torch.optim.Optimizer, "optimizer"), (torch.nn.Module, "model")):
            if issubclass(found, base):
                return kind
        for method, kind in (("examples", "tasks"), ("step", "optimizer")):
            if callable(getattr(found, method, None)):
                return kind
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):
        return None
    names = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_arguments = {MODELS.given: "model", TASKS.given: "tasks"}
    if (by_name := by_arguments.get(tuple(names[:2]))) is not None:
        return by_name
    if names[:1] and (names[0] in PARAMETERS or first_given(found) is not None):
        return "optimizer"
    returned = str(getattr(signature.return_annotation, "__name__", signature.return_annotation)).rpartition(".")[2]
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.name in names]
    return "dataset" if returned == "Dataset" or not needed else None
