"""The ends of a token network: weights that optimizers for hidden-layer matrices leave to Adam.

By convention (Jordan et al. 2024; Vyas et al. 2024), the ends are the embeddings and the output layer. The rows of
these weights belong to tokens that rarely occur together, so the weights are not maps between representations.
"""

from __future__ import annotations

from torch import Tensor, nn

_MARK = "optbench_end"
"""The name of the attribute that marks a parameter as an end."""


def ends(model: nn.Module, output: str | None) -> frozenset[str]:
    """Return the names of a network's embedding weights and output weight; empty if the network has no embeddings.

    output: the name of the output layer's weight, which may be tied to an embedding; None if there is no output layer.
    """
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    found = {name for name, parameter in model.named_parameters() if id(parameter) in tables}
    return frozenset(found | {output} if found and output else found)


def mark(model: nn.Module, names: frozenset[str]) -> None:
    """Mark the parameters with these names as ends; call this before constructing an optimizer for them."""
    for name, parameter in model.named_parameters():
        if name in names:
            setattr(parameter, _MARK, True)


def is_end(parameter: Tensor) -> bool:
    """Return whether a parameter is marked as an end."""
    return hasattr(parameter, _MARK)
