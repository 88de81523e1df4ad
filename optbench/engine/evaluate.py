"""The loss, accuracy and features of networks, measured in eval mode.

Legend: P padded parameter count, Q padded size of the buffers in floats, n parameter count without padding, N examples,
T positions of a sequence, d features, C classes.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from optbench.attention import unfused
from optbench.engine.batches import Normaliser, places, sharing
from optbench.engine.blueprint import METHOD, Blueprint, own_features
from optbench.engine.faults import of_the_machine
from optbench.engine.randomness import seeded
from optbench.engine.taps import Tap, tapped, tapped_of_ours
from optbench.metrics.rank import Spectrum, pooled, spectrum
from optbench.models import cross_entropy, materialised
from optbench.precision import exact_device, widest
from optbench.tasks import Examples

CHUNK = 2500
"""Number of examples, or of sequence positions, per forward pass: large enough to be fast, but small enough for MNIST
inputs to take less than 10 MB as floats."""
MOST = 50
"""Maximum number of networks per forward pass. More than ten networks are evaluated on shorter chunks (a fifth of
`CHUNK` for 50 networks), so that activations take no more memory than for ten networks on full chunks."""
LN2 = math.log(2)


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one network on one set of examples."""

    loss: float
    """Mean cross-entropy; not finite for a diverged network."""
    correct: int
    examples: int
    """Number of targets; for sequences, one per position."""
    bits: float | None = dataclasses.field(default=None, kw_only=True)
    """For text, Σ -log2 p(target) over all targets, summed in float64."""
    bytes: int | None = dataclasses.field(default=None, kw_only=True)
    """For text, the number of bytes in the targets."""

    @property
    def accuracy(self) -> float:
        """The fraction of targets that are predicted correctly."""
        return self.correct / self.examples

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text; None for other data and for text without bytes."""
        return self.bits / self.bytes if self.bits is not None and self.bytes else None


@dataclasses.dataclass(frozen=True)
class ScoreWithFeatures(Score):
    """The score of one network on one set of examples, with its features and logits."""

    features: Tensor
    """The input of the last linear layer in float32: (N, d), or (N T, d) for a network with an output for each
    position; (K, d) if kept only for K targets."""
    targets: Tensor
    """The target for each row of `features`: (N,), (N T,) or (K,)."""
    logits: Tensor | None = None
    """The logits for each row of `features`: (N, C), (N T, C) or (K, C); None unless requested."""
    elsewhere: Mapping[Tap, Spectrum] = dataclasses.field(default_factory=dict)
    """The spectrum at each requested tap."""


class _FeatureReader(nn.Module):
    """A module that returns a network's features and logits, and the tensors at requested taps."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.network = copy.deepcopy(blueprint.network)
        self._ours, self._features = blueprint.ours, blueprint.features

    def forward(self, inputs: Tensor, taps: Sequence[Tap] = ()) -> tuple[Tensor, Tensor, dict[Tap, Tensor]]:
        if self._ours:
            hidden = list(self.network.hidden(inputs)) if taps else []  # type: ignore[operator]  # it is a `Network`
            features = hidden[-1][1] if taps else self.network.features(inputs)  # type: ignore[operator]
            return features, self.network.head(features), tapped_of_ours(hidden, taps)  # type: ignore[operator]
        # Inputs are copied, because a network may modify them in place. It may also draw random numbers in eval mode.
        with seeded(0, inputs.device):
            if self._features == METHOD:
                own = own_features(self.network)
                assert own is not None
                with tapped(self.network, [tap for tap in taps if tap.as_features]) as within:
                    features = own(inputs.clone())
                with tapped(self.network, [tap for tap in taps if not tap.as_features]) as found:
                    logits = self.network(inputs.clone())
                return features, logits, {**within, **found}
            caught: list[Tensor] = []
            layer = self.network.get_submodule(self._features)
            handle = layer.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
            try:
                with tapped(self.network, taps) as found:
                    logits = self.network(inputs.clone())
            finally:
                handle.remove()
            return caught[-1], logits, found


class Evaluator:
    """Evaluates networks of one architecture, given as rows of a stack."""

    def __init__(
        self,
        blueprint: Blueprint,
        normalise: Normaliser,
        *,
        batched: bool | None = None,
        token_bytes: Tensor | None = None,
    ) -> None:
        """batched: True to score networks together in batched forward passes, which is efficient on a GPU; False to
        score them one by one, so that their results do not depend on each other. The default is False on a CPU and
        True elsewhere.

        token_bytes: for text, the number of bytes of each token (see `Dataset`); scores then include bits per byte.
        """
        self.blueprint = blueprint
        self.normalise = normalise
        self._reader = _FeatureReader(blueprint).eval()
        self.network = self._reader.network
        self._layout = blueprint.layout
        self._inputs: Tensor | None = None
        self._batched = normalise.scale.device.type != "cpu" if batched is None else batched
        self._bytes = None if token_bytes is None else token_bytes.to(normalise.scale.device)

    @property
    def text(self) -> bool:
        """True if targets are tokens of a text instead of classes."""
        return self._bytes is not None

    @torch.no_grad()
    def read(
        self,
        row: Tensor,
        examples: Examples,
        *,
        with_logits: bool = False,
        taps: Sequence[Tap] = (),
        at: Tensor | None = None,
    ) -> ScoreWithFeatures:
        """Evaluate the network with weights and buffers `row` (P + Q,) in one pass over `examples`.

        with_logits: True to return the logits.
        taps: places at which to compute spectra.
        at: (K,) ascending indices into the flattened targets. Features, logits and tapped tensors are kept only at
            these targets, or at all targets if None. The score always covers all targets.
        """
        weights = self._weights(row)
        count = examples.targets.numel() if at is None else len(at)
        totals, seen = self._zeros(1, row.device), 0
        kept: Tensor | None = None
        outputs, done = [], 0
        spectra: dict[Tap, list[Spectrum]] = {tap: [] for tap in taps}
        to = exact_device(row.device)
        for inputs, targets in self._chunks(examples):
            features, logits, at_taps = functional_call(self._reader, weights, (inputs, taps))
            _count(totals[:, 0], logits, targets)
            part = features.flatten(0, targets.ndim - 1).flatten(1)
            here = slice(None) if at is None else at[(at >= seen) & (at < seen + targets.numel())] - seen
            seen += targets.numel()
            part = part[here]
            if kept is None:
                kept = part.new_empty(count, part.shape[1])
            kept[done : done + len(part)] = part  # copied: without hidden layers, `part` is in reused memory
            done += len(part)
            if with_logits:
                outputs.append(logits.flatten(0, -2)[here])
            # Hidden layers may be large, so only one chunk of their outputs is held at a time.
            for tap, found in at_taps.items():
                rows = tap.rows(found, targets.ndim)
                spectra[tap].append(spectrum((rows if at is None else rows[here]).to(to)))
        assert kept is not None
        score = self._scores(totals, [examples])[0]
        targets = examples.targets.flatten()
        return ScoreWithFeatures(
            score.loss,
            score.correct,
            score.examples,
            kept.to(to),
            (targets if at is None else targets[at]).to(to),
            torch.cat(outputs).to(to) if outputs else None,
            {tap: pooled(found) for tap, found in spectra.items()},
            bits=score.bits,
            bytes=score.bytes,
        )

    def differentiate(self, row: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return the features of `examples`, (N, d) or (N T, d), and the gradient (n,) of the mean cross-entropy.

        row: (P + Q,), the network's weights and buffers.

        The gradient is concatenated over parameters, and is zero for parameters that the network does not use. This
        takes one forward and one backward pass in eval mode.
        """
        fixed = self._weights(row)
        names = [f"network.{slot.name}" for slot in self._layout.slots]
        leaves = {name: fixed[name].detach().requires_grad_() for name in names}
        sums = [torch.zeros_like(leaf) for leaf in leaves.values()]
        parts = []
        for inputs, targets in self._chunks(examples):
            with torch.enable_grad():
                features, logits, _ = functional_call(self._reader, {**fixed, **leaves}, (inputs, ()))
                loss = cross_entropy(logits, targets, "sum")
            for total, found in zip(
                sums, torch.autograd.grad(loss, [*leaves.values()], allow_unused=True), strict=True
            ):
                if found is not None:
                    total.add_(found)
            parts.append(features.detach().flatten(0, targets.ndim - 1).flatten(1).clone())
        gradient = torch.cat([total.flatten() for total in sums]) / examples.targets.numel()
        return torch.cat(parts).to(exact_device(row.device)), gradient

    def with_weights(self, row: Tensor) -> nn.Module:
        """Return a copy of the network with weights and buffers `row` (P + Q,), in eval mode."""
        network = materialised(self.network, row.device).eval()
        self._layout.copy_to(network, row)
        return network

    @torch.no_grad()
    def score(self, rows: Sequence[Tensor], examples: Sequence[Examples]) -> list[Score]:
        """Score each network, with weights and buffers `rows[i]` (P + Q,), on `examples[i]`.

        All results are transferred from the device together.
        """
        if not rows:
            return []
        totals = self._zeros(len(rows), rows[0].device)
        with unfused() if self._batched else nullcontext():
            (self._score_together if self._batched else self._score_each)(rows, examples, totals)
        return self._scores(totals, examples)

    def _zeros(self, count: int, device: torch.device) -> Tensor:
        """Return zero totals for `_count`: losses, hits and, for text, bits of each network."""
        return torch.zeros(2 if self._bytes is None else 3, count, dtype=widest(device), device=device)

    def _scores(self, totals: Tensor, examples: Sequence[Examples]) -> list[Score]:
        """Return each network's score, given its column of `totals`, the sums over all of its examples."""
        losses, correct, *bits = totals.tolist()
        counts = [own.targets.numel() for own in examples]
        found = [Score(loss / n, int(right), n) for loss, right, n in zip(losses, correct, counts, strict=True)]
        if self._bytes is None:
            return found
        sizes = {id(own): int(self._bytes[own.targets].sum()) for own in examples}
        return [
            dataclasses.replace(score, bits=own_bits, bytes=sizes[id(own)])
            for score, own_bits, own in zip(found, bits[0], examples, strict=True)
        ]

    def try_score(self, rows: Sequence[Tensor], examples: Sequence[Examples]) -> list[Score | Exception]:
        """Score networks like `score`; where a user's model raises an exception, return the exception instead."""
        try:
            return list(self.score(rows, examples))
        except Exception as error:
            if self.blueprint.ours or of_the_machine(error):
                raise
            if len(rows) == 1:
                return [error]
        return [found for row, own in zip(rows, examples, strict=True) for found in self.try_score([row], [own])]

    def _score_each(self, rows: Sequence[Tensor], examples: Sequence[Examples], totals: Tensor) -> None:
        """Score networks one by one on each chunk of examples; networks with the same examples share the chunks."""
        for members in sharing(examples):
            singles = {i: self._weights(rows[i]) for i in members}
            for inputs, targets in self._chunks(examples[members[0]]):
                for i, single in singles.items():
                    _, logits, _ = functional_call(self._reader, single, (inputs,))
                    _count(totals[:, i], logits, targets)

    def _score_together(self, rows: Sequence[Tensor], examples: Sequence[Examples], totals: Tensor) -> None:
        """Score networks with equal numbers of examples together, in batched forward passes."""
        forward = partial(functional_call, self._reader)
        each, shared = vmap(forward), vmap(forward, in_dims=(0, None))
        for whole in places(map(len, examples)):
            for members in (whole[i : i + MOST] for i in range(0, len(whole), MOST)):
                weights = self._weights(torch.stack([rows[i] for i in members]))
                found = self._zeros(len(members), totals.device)
                alike = sharing([examples[i] for i in members])
                distinct = [examples[members[same[0]]] for same in alike]
                of = {place: s for s, same in enumerate(alike) for place in same}
                index = torch.tensor([of[place] for place in range(len(members))], device=totals.device)
                size = max(1, min(CHUNK, MOST * CHUNK // 5 // len(members)) // distinct[0].positions)
                for start in range(0, len(distinct[0]), size):
                    part = slice(start, start + size)
                    inputs = self.normalise(torch.stack([own.inputs[part] for own in distinct]))
                    targets = torch.stack([own.targets[part] for own in distinct]).index_select(0, index)
                    if len(distinct) == 1:
                        _, logits, _ = shared(weights, (inputs[0],))
                    else:
                        _, logits, _ = each(weights, (inputs.index_select(0, index),))
                    _count(found, logits, targets)
                totals.index_copy_(1, torch.tensor(members, device=totals.device), found)

    def _weights(self, row: Tensor) -> dict[str, Tensor]:
        # Buffers are copied: a network may change them even in eval mode, and measuring must not change the member.
        buffers = {name: view.clone() for name, view in self._layout.buffer_views(row).items()}
        return {f"network.{name}": view for name, view in {**self._layout.views(row), **buffers}.items()}

    def _chunks(self, examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield network inputs and targets in chunks.

        All inputs are written to one buffer, because allocating a new one would take as long as filling it.
        """
        size = max(1, CHUNK // examples.positions)
        for start in range(0, len(examples), size):
            raw = examples.inputs[start : start + size]
            if self._inputs is None or len(self._inputs) < len(raw) or self._inputs.shape[1:] != raw.shape[1:]:
                self._inputs = torch.empty(raw.shape, dtype=self.normalise.dtype, device=raw.device)
            yield self.normalise(raw, out=self._inputs[: len(raw)]), examples.targets[start : start + size]


def finite(value: float | None) -> float | None:
    """Return `value` as stored in tables: None if it is unknown or not finite."""
    return value if value is not None and math.isfinite(value) else None


def _count(totals: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Add cross-entropies and hits (correct predictions) to `totals` (2, ...), in its dtype.

    logits: (..., B, C) or (..., B, T, C).

    For text, `totals` (3, ...) has bits as the third row, and each target's cross-entropy is also computed in the dtype
    of `totals`, rather than only added in this dtype.
    """
    logits, targets = logits.flatten(0, -2), targets.expand(logits.shape[:-1]).flatten()
    exact = logits.to(totals.dtype) if len(totals) > 2 else logits
    losses = nn.functional.cross_entropy(exact, targets, reduction="none").view(*totals.shape[1:], -1)
    totals[0] += losses.to(totals.dtype).sum(-1)
    if len(totals) > 2:
        totals[2] += (losses / LN2).sum(-1)
    totals[1] += (logits.argmax(-1) == targets).view(*totals.shape[1:], -1).sum(-1)
