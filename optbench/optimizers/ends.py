"""The ends of a token network, which optimizers for hidden-layer matrices leave to Adam.

By convention (Jordan et al. 2024; Vyas et al. 2024) these are the embeddings and the output layer: their rows belong to
tokens that rarely occur together, so they are not maps between representations.
"""

from __future__ import annotations

from torch import Tensor, nn

_MARK = "optbench_end"
"""The attribute that marks parameters at the ends."""


def ends(model: nn.Module, output: str | None) -> frozenset[str]:
    """Return the names of the weights at the ends of a network; empty if it has no embeddings.

    output: the name of the output layer's weight, None if there is none; an alias of an embedding if tied.
    """
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    found = {name for name, parameter in model.named_parameters() if id(parameter) in tables}
    return frozenset(found | {output} if found and output else found)


def mark(model: nn.Module, names: frozenset[str]) -> None:
    """Mark these parameters before an optimizer is constructed for them."""
    for name, parameter in model.named_parameters():
        if name in names:
            setattr(parameter, _MARK, True)


def is_end(parameter: Tensor) -> bool:
    """Return whether a parameter is marked."""
    return hasattr(parameter, _MARK)
