"""The networks on which optimizers are measured: the shipped `gpt`, and a BERT with the original parameter names.

Gradients are computed on real text.

Shapes: B sequences of T tokens, D width, V vocabulary, R predicted tokens.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optbench.costing.sizes import Size
from optbench.data import InputSpec
from optbench.data.text_domains import embedded_texts
from optbench.models.gpt import STD, Gpt
from optbench.models.network import cross_entropy
from optbench.optimizers.ends import ends, is_end, mark

MASK, UNUSED = 103, 1000
"""The id of [MASK] in BERT's vocabulary, and the number of ids at the start of the vocabulary that no word uses."""
BERT_POSITIONS, BERT_SEGMENTS, NEXT_OR_NOT = 512, 2, 2
OUTPUT = {"gpt": "head.weight", "bert": "cls.seq_relationship.weight"}
"""Name of each network's output weight. BERT's other output layer uses the token embedding as its weight."""


@dataclass(frozen=True)
class Batch:
    """The inputs of a network, and targets for each of its outputs."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    @property
    def predicted(self) -> int:
        """Number of predicted tokens, R."""
        return len(self.targets[0])


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute unmasked multi-head attention for queries, keys and values of shape (B, T, D)."""
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Bert(nn.Module):
    """BERT with its pre-training heads: logits for masked tokens, (R, V), and for next-sentence prediction, (B, 2).

    It has post-norm blocks with GELU, learnt positions, two segments and a pooler. The decoder is tied to the token
    embedding. There is no dropout, because dropout does not affect an optimizer's cost.
    """

    bert: Any
    cls: Any

    def __init__(self, size: Size) -> None:
        super().__init__()
        d = size.width
        self.heads = size.heads

        def output(inputs: int) -> nn.ModuleDict:
            return nn.ModuleDict({"dense": nn.Linear(inputs, d), "LayerNorm": nn.LayerNorm(d, eps=1e-12)})

        def layer() -> nn.ModuleDict:
            own = nn.ModuleDict({name: nn.Linear(d, d) for name in ("query", "key", "value")})
            return nn.ModuleDict(
                {
                    "attention": nn.ModuleDict({"self": own, "output": output(d)}),
                    "intermediate": nn.ModuleDict({"dense": nn.Linear(d, 4 * d)}),
                    "output": output(4 * d),
                }
            )

        embeddings = {
            "word_embeddings": nn.Embedding(size.vocabulary, d),
            "position_embeddings": nn.Embedding(BERT_POSITIONS, d),
            "token_type_embeddings": nn.Embedding(BERT_SEGMENTS, d),
            "LayerNorm": nn.LayerNorm(d, eps=1e-12),
        }
        self.bert = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(embeddings),
                "encoder": nn.ModuleDict({"layer": nn.ModuleList(layer() for _ in range(size.layers))}),
                "pooler": nn.ModuleDict({"dense": nn.Linear(d, d)}),
            }
        )
        predictions = nn.ModuleDict({"transform": output(d)})
        predictions.register_parameter("bias", nn.Parameter(torch.zeros(size.vocabulary)))
        self.cls = nn.ModuleDict({"predictions": predictions, "seq_relationship": nn.Linear(d, NEXT_OR_NOT)})

    def forward(self, tokens: Tensor, segments: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Return the logits for masked tokens, (R, V), and for next-sentence prediction, (B, 2).

        places: indices of the masked tokens among all B · T tokens, (R,).
        """
        table = self.bert["embeddings"]
        x = table["word_embeddings"](tokens) + table["token_type_embeddings"](segments)
        x = table["LayerNorm"](x + table["position_embeddings"].weight[: tokens.shape[1]])
        for layer in self.bert["encoder"]["layer"]:
            own, after = layer["attention"]["self"], layer["attention"]["output"]
            seen = attended(own["query"](x), own["key"](x), own["value"](x), self.heads)
            x = after["LayerNorm"](after["dense"](seen) + x)
            wide = nn.functional.gelu(layer["intermediate"]["dense"](x))
            x = layer["output"]["LayerNorm"](layer["output"]["dense"](wide) + x)
        head = self.cls["predictions"]
        transform = head["transform"]
        hidden = transform["LayerNorm"](nn.functional.gelu(transform["dense"](x.flatten(0, 1)[places])))
        logits = nn.functional.linear(hidden, table["word_embeddings"].weight, head.bias)
        return logits, self.cls["seq_relationship"](self.bert["pooler"]["dense"](x[:, 0]).tanh())


def network(size: Size, device: torch.device | str = "cpu") -> nn.Module:
    """Build the network of the given size, with initial weights from N(0, .02²), as in GPT-2 and BERT.

    The embeddings and output layers are marked as ends (see `optbench.optimizers.ends`). On the `meta` device, weights
    have no values.
    """
    with torch.device(device):
        if size.family == "gpt":
            inputs = InputSpec((size.context,), torch.int64, size.vocabulary)
            built: Any = Gpt(inputs, size.vocabulary, layers=size.layers, width=size.width, heads=size.heads)
        else:
            built = Bert(size)
        for module in built.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    found: nn.Module = built
    mark(found, ends(found, OUTPUT[size.family]))
    return found


def loss(outputs: Tensor | tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Return the mean cross-entropy of each output, summed over outputs."""
    each = (outputs,) if isinstance(outputs, Tensor) else outputs
    return torch.stack([cross_entropy(logits, wanted) for logits, wanted in zip(each, targets, strict=True)]).sum()


def kinds(model: nn.Module) -> dict[str, str]:
    """Return the kind of each parameter (`embeddings, heads`, `matrices` or `vectors`), by the parameter's name."""
    return {
        name: "embeddings, heads" if is_end(p) else "matrices" if p.ndim > 1 else "vectors"
        for name, p in model.named_parameters()
    }


def batch(size: Size, step: int, device: torch.device | str = "cpu") -> Batch:
    """Return the batch for a step, which depends only on the size and the step; on `meta`, tensors have no values."""
    draw = torch.Generator().manual_seed(step)
    text = tokens(size.vocabulary)
    b, t = size.batch, size.context
    starts = torch.randint(len(text) - t, (b, 1), generator=draw)
    windows = text[starts + torch.arange(t + 1)]
    if size.family == "gpt":
        return Batch((windows[:, :-1].to(device),), (windows[:, 1:].flatten().to(device),))
    windows = windows[:, :-1]
    half = t // 2
    follows = torch.arange(b) % 2  # the second segment of every other sequence is from another position
    windows[follows == 0, half:] = windows[follows == 0, half:].roll(1, 0)
    places = torch.randperm(b * t, generator=draw)[: round(size.masked * b * t)].sort().values
    wanted = windows.flatten()[places]
    shown = windows.flatten().clone()
    shown[places] = MASK
    segments = (torch.arange(t) >= half).long().expand(b, t)
    inputs = (shown.view(b, t), segments, places)
    return Batch(tuple(x.to(device) for x in inputs), (wanted.to(device), follows.to(device)))


@functools.cache
def tokens(vocabulary: int) -> Tensor:
    """Return the text domain `glosses` (word definitions) as int64 token ids.

    With a vocabulary of up to 256, tokens are bytes. With a larger vocabulary, tokens are words and punctuation marks,
    and the more frequent a token, the lower its id.
    """
    text = embedded_texts()["glosses"]
    if vocabulary <= 256:
        return torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp_(max=vocabulary - 1)
    words = re.findall(rb"\w+|[^\w\s]", text)
    first = min(UNUSED, vocabulary // 2)
    ids = {word: min(first + i, vocabulary - 1) for i, (word, _) in enumerate(Counter(words).most_common())}
    return torch.tensor([ids[word] for word in words])
