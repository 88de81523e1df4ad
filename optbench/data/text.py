"""Construction of text datasets: sections for training and testing, and tokens (bytes or a byte-pair encoding)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from optbench.errors import DataError
from optbench.late import torch

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset

Encoding = Literal["bytes", "bpe"]
SHARE = 20
"""The last 1/20 of each text is for testing, the preceding 1/20 for validation, each rounded down to whole bytes."""
VOCABULARY = 512
"""Default vocabulary size for `tokens: bpe`."""
MOST = 2048
ASCII = 128
NO_LIMIT = "expected none for text, because the task sequence limits the training text (tokens_per_task)"


def stretches(content: bytes) -> tuple[bytes, bytes, bytes]:
    """Split a text into sections for training, validation and testing."""
    held_out = len(content) // SHARE
    end = len(content) - held_out
    return content[: end - held_out], content[end - held_out : end], content[end:]


def fault_of_text(content: bytes, context: int) -> str | None:
    """Return the reason why a text cannot be used with windows of `context` bytes; None if it can be used."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"expected UTF-8, got the byte 0x{content[error.start]:02x} at position {error.start}"
    if len(content) < (least := SHARE * (context + 1)):
        return (
            f"expected at least {least} bytes, so that the last {100 // SHARE}% contain a window of context {context}, "
            f"got {len(content)}"
        )
    return None


def text_dataset(
    name: str, contents: Mapping[str, bytes], tokens: Encoding, vocabulary: int | None, context: int
) -> Dataset:
    """Build a dataset from `contents`, which maps domain names to texts.

    If tokens are bytes, the vocabulary size is 128, or 256 if any text is not pure ASCII. A byte-pair encoding is
    trained on the training sections of all domains together. Each section is encoded separately.

    Raises:
        DataError: a text is not UTF-8 or is too short, or `vocabulary` is too small or too large for the texts.
    """
    from optbench.data.dataset import Dataset
    from optbench.data.windows import Text

    for domain, content in contents.items():
        if (fault := fault_of_text(content, context)) is not None:
            raise DataError(f"dataset {name}: {domain}: {fault}")
    alphabet = ASCII if all(content.isascii() for content in contents.values()) else 256
    if tokens == "bytes":
        encoded = [[_as_tokens(part) for part in stretches(content)] for content in contents.values()]
        token_bytes = torch.ones(alphabet, dtype=torch.int64)
    else:
        encoded, token_bytes = _encoded(name, contents, vocabulary or VOCABULARY, alphabet)
    texts = {domain: Text(*parts) for domain, parts in zip(contents, encoded, strict=True)}
    return Dataset.of_texts(name, texts, len(token_bytes), context, token_bytes)


def _as_tokens(part: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(part), dtype=torch.uint8)


_Encoded = tuple[list[list["torch.Tensor"]], "torch.Tensor"]
_KNOWN: dict[bytes, _Encoded] = {}
"""Encoded texts, cached because encoding takes one or two seconds."""


def _encoded(name: str, contents: Mapping[str, bytes], vocabulary: int, alphabet: int) -> _Encoded:
    from optbench.data.bpe import Bpe

    texts = [stretches(content) for content in contents.values()]
    sums = [hashlib.sha256(content).digest() for content in contents.values()]
    key = b"".join([vocabulary.to_bytes(8, "big"), *sums])
    if key not in _KNOWN:
        if vocabulary <= alphabet:
            raise DataError(
                f"dataset {name}: vocabulary: expected more than {alphabet}, the number of single-byte tokens, "
                f"got {vocabulary}"
            )
        bpe = Bpe.trained([train for train, _, _ in texts], vocabulary, alphabet)
        if (most := len(bpe.pieces)) < vocabulary:
            what = f"expected at most {most}, since the texts have no more pairs to merge, got {vocabulary}"
            raise DataError(f"dataset {name}: vocabulary: {what}")
        parts = [torch.from_numpy(found) for found in bpe.encode([part for text in texts for part in text])]
        _KNOWN[key] = [parts[i : i + 3] for i in range(0, len(parts), 3)], torch.from_numpy(bpe.token_bytes)
    return _KNOWN[key]
