"""The ends of a network of tokens: what optimizers that are for the matrices of hidden layers leave to Adam.

By convention (Jordan et al. 2024; Vyas et al. 2024) these are the embeddings and the layer that gives the logits: their
rows belong to tokens that rarely occur together, so they are no maps between representations.
"""

from __future__ import annotations

from torch import Tensor, nn

_MARK = "optbench_end"
"""Attribute of the parameters at the ends."""


def ends(model: nn.Module, output: str | None) -> frozenset[str]:
    """The names of the weights at the ends of a network; a network without embeddings has none.

    output: the name of the output layer's weight, None where there is none; another name of an embedding where it is
    tied to one.
    """
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    found = {name for name, parameter in model.named_parameters() if id(parameter) in tables}
    return frozenset(found | {output} if found and output else found)


def mark(model: nn.Module, names: frozenset[str]) -> None:
    """Mark these parameters, before an optimizer is made over them."""
    for name, parameter in model.named_parameters():
        if name in names:
            setattr(parameter, _MARK, True)


def is_end(parameter: Tensor) -> bool:
    """Whether a parameter is marked."""
    return hasattr(parameter, _MARK)
