"""Optimizers of matrices and embeddings: Muon leaves embeddings and heads to AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optbench.optimizers.ends import ends, mark
from optbench.optimizers.make import maker
from optbench.optimizers.registry import complete, find

VOCABULARY, WIDTH = 11, 6


class Tokens(nn.Module):
    """A network with an embedding, a square layer, a head over the vocabulary and a head over two classes."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.classes = nn.Linear(WIDTH, 2)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.hidden(self.table(tokens)).tanh()
        return torch.cat([self.head(hidden), self.classes(hidden)], -1)


def steps_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the distance that one step of Muon moves each parameter."""
    torch.manual_seed(0)
    inputs = torch.randint(VOCABULARY, (32,)) if isinstance(model, Tokens) else torch.randn(32, WIDTH)
    spec = find("muon")
    settings = {
        **complete("muon", {}),
        "lr": 1.0,
        "weight_decay": 0.0,
        "fallback_lr": 0.25,
        "fallback_weight_decay": 0.0,
    }
    mark(model, ends(model, "head.weight"))
    optimizer = maker(spec, settings)(list(model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(inputs).square().mean().backward()
    optimizer.step()
    return {name: (p.detach() - before[name]).abs() for name, p in model.named_parameters()}


def by_adamw(moved: Tensor) -> bool:
    """Return True if all weights with a gradient moved equally far, as in the first step of AdamW but not of Muon."""
    lengths = moved[moved > 0]
    return bool(torch.allclose(lengths, torch.full_like(lengths, 0.25), rtol=1e-2))


def test_muon_updates_only_hidden_matrices() -> None:
    for tied in (False, True):
        model = Tokens(tied=tied)
        found = {name: by_adamw(moved) for name, moved in steps_of(model).items()}
        assert found.pop("head.weight", True), tied
        assert found == {
            "table.weight": True,
            "hidden.weight": False,
            "hidden.bias": True,
            "classes.weight": False,
            "classes.bias": True,
        }


def test_layers_as_wide_as_a_vocabulary_are_not_ends() -> None:
    model = nn.Sequential(nn.Embedding(WIDTH, WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, 3))
    assert ends(model, "4.weight") == {"0.weight", "4.weight"}
    assert ends(model, None) == {"0.weight"}


def test_without_embeddings_muon_updates_all_matrices() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, VOCABULARY), nn.Tanh(), nn.Linear(VOCABULARY, VOCABULARY))
    assert ends(model, "2.weight") == frozenset()
    found = steps_of(model)
    assert not any(by_adamw(moved) for name, moved in found.items() if name.endswith("weight"))


def test_kfac_draws_labels_for_every_output_and_has_no_factor_for_the_vocabulary() -> None:
    class Two(Tokens):
        def forward(self, tokens: Tensor) -> Any:
            hidden = self.hidden(self.table(tokens)).tanh()
            return nn.functional.linear(hidden, self.table.weight), self.classes(hidden)

    torch.manual_seed(0)
    model = Two()
    del model.head
    optimizer: Any = maker(find("kfac"), complete("kfac", {}), {"model": model, "generator": torch.Generator()})([])
    tokens = torch.randint(VOCABULARY, (32,))
    losses = []
    for _ in range(20):
        words, classes = model(tokens)
        assert set(optimizer.signals) == {model.hidden, model.classes}
        loss = nn.functional.cross_entropy(words, tokens) + nn.functional.cross_entropy(classes, tokens % 2)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2
    held = optimizer.state[model.hidden.weight]
    assert held["input_factor"].shape == (WIDTH + 1, WIDTH + 1)
    assert held["output_factor"].shape == (WIDTH, WIDTH)
    assert set(optimizer.state[model.table.weight]) == {"momentum"}
