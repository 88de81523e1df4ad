"""Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909), over bytes as in GPT-2.

Text is first split into words, runs of digits, runs of other characters and runs of white space; no token crosses
these boundaries. A word, or a run of digits or other characters, includes the space before it, if there is one. Every
byte has a token, so that decoding restores any text exactly.

Legend: L tokens in the concatenation of all distinct words, V tokens in the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Ints: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Tokens: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int16]]
Flags: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_WORDS = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^\sA-Za-z0-9\x80-\xff]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Bpe:
    """A trained encoding.

    Attributes:
        pieces: (V,) the bytes of each token, single-byte tokens first.
        merges: (V − A,) the pair of tokens that each further token joins, in merge order; A is the number of
            single-byte tokens.
    """

    pieces: tuple[bytes, ...]
    merges: tuple[tuple[int, int], ...]

    @staticmethod
    def trained(texts: Sequence[bytes], vocabulary: int, alphabet: int) -> Bpe:
        """Train by repeatedly merging the most frequent pair of tokens, until there are `vocabulary` tokens.

        Ties go to the pair with the lowest token numbers. Training stops early if no pair occurs twice. Training takes
        less than a second for 4 MB of text and a vocabulary of 512.

        alphabet: the number of single-byte tokens, 128 or 256.
        """
        words, indices = _words(texts)
        row = _Row.of(
            words, sum((np.bincount(index, minlength=len(words)) for index in indices), np.zeros(1, np.int64))
        )
        pieces = [bytes([byte]) for byte in range(alphabet)]
        merges: list[tuple[int, int]] = []
        counts = np.zeros(vocabulary * vocabulary, np.int64)  # the count of the pair (a, b) is at index a · V + b
        np.add.at(counts, *row.pairs(row.inside, vocabulary))
        while len(pieces) < vocabulary:
            best = int(counts.argmax())
            if counts[best] < 2:
                break
            left, right = divmod(best, vocabulary)
            at = row.places(left, right)
            np.subtract.at(counts, *row.pairs(row.touching(at, 2), vocabulary))
            at = row.join(at, len(pieces))
            np.add.at(counts, *row.pairs(row.touching(at, 1), vocabulary))
            merges.append((left, right))
            pieces.append(pieces[left] + pieces[right])
        return Bpe(tuple(pieces), tuple(merges))

    @property
    def token_bytes(self) -> Ints:
        """The number of bytes in each token, (V,)."""
        return np.array([len(piece) for piece in self.pieces], np.int64)

    def encode(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Return the tokens (n,) of each text, merging pairs in the same order as in training."""
        words, indices = _words(texts)
        row = _Row.of(words, np.ones(len(words), np.int64))
        for token, (left, right) in enumerate(self.merges, len(self.pieces) - len(self.merges)):
            if len(at := row.places(left, right)):
                row.join(at, token)
        ends = np.flatnonzero(~row.inside) + 1  # the index after the last token of each word
        lengths = np.diff(ends, prepend=0)
        found = []
        for index in indices:
            own = lengths[index]
            first = np.repeat((ends - lengths)[index] - np.cumsum(own) + own, own)
            found.append(row.tokens[first + np.arange(int(own.sum()))])
        return found

    def decode(self, tokens: Tokens) -> bytes:
        """Return the text represented by tokens (n,), as bytes."""
        return b"".join(self.pieces[token] for token in tokens.tolist())


@dataclass
class _Row:
    """Concatenated words: tokens, whether the next token is in the same word, and the word's frequency, each (L,)."""

    tokens: Tokens
    inside: Flags
    weights: Ints

    @staticmethod
    def of(words: Sequence[bytes], counts: Ints) -> _Row:
        lengths = np.array([len(word) for word in words], np.int64)
        inside = np.ones(int(lengths.sum()), np.bool_)
        inside[np.cumsum(lengths) - 1] = False
        return _Row(np.frombuffer(b"".join(words), np.uint8).astype(np.int16), inside, np.repeat(counts, lengths))

    def places(self, left: int, right: int) -> Ints:
        """Return the positions of a pair from left to right, without overlaps: `aaa` contains the pair `aa` once."""
        at = np.flatnonzero((self.tokens[:-1] == left) & (self.tokens[1:] == right) & self.inside[:-1])
        if left == right and len(at) > 1:
            order = np.arange(len(at))
            begins = np.diff(at, prepend=-2) != 1
            at = at[(order - np.maximum.accumulate(np.where(begins, order, 0))) % 2 == 0]
        return at

    def touching(self, at: Ints, width: int) -> Flags:
        """Return a mask (L,) of the pairs within words that overlap any span of `width` tokens starting at `at`."""
        found = np.zeros(len(self.tokens), np.bool_)
        for offset in range(-1, width):
            found[(at + offset)[at + offset >= 0]] = True
        return found & self.inside

    def pairs(self, which: Flags, vocabulary: int) -> tuple[Ints, Ints]:
        """Return the key, `left * vocabulary + right`, and the word's frequency for each pair that `which` selects."""
        at = np.flatnonzero(which)
        return self.tokens[at].astype(np.int64) * vocabulary + self.tokens[at + 1], self.weights[at]

    def join(self, at: Ints, token: int) -> Ints:
        """Replace the pairs at positions `at` with `token`; return the positions of the new tokens."""
        self.tokens[at] = token
        self.inside[at] = self.inside[at + 1]
        kept = np.ones(len(self.tokens), np.bool_)
        kept[at + 1] = False
        self.tokens, self.inside, self.weights = self.tokens[kept], self.inside[kept], self.weights[kept]
        return at - np.arange(len(at))


def _words(texts: Sequence[bytes]) -> tuple[list[bytes], list[Ints]]:
    """Return the distinct words of all texts, and each text as indices into these words."""
    known: dict[bytes, int] = {}
    indices = []
    for text in texts:
        found = _WORDS.findall(text)
        indices.append(np.fromiter((known.setdefault(word, len(known)) for word in found), np.int64, len(found)))
    return list(known), indices
