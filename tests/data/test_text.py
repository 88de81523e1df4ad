"""Text: checksums of the embedded domains, stretches, byte tokens and byte-pair encoding."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.data import Dataset, Split, load
from optbench.data.bpe import Bpe
from optbench.data.catalog import TEXT_DOMAINS
from optbench.data.settings import DatasetSettings
from optbench.data.text import stretches
from optbench.data.text_domains import SHA256, embedded_texts
from optbench.data.windows import Text, consecutive_windows, drawn_windows, unigram_entropy
from optbench.errors import DataError
from optbench.targets import TargetError

CONTENT = b"the cat sat on the mat; the cat ate the rat, and the rat sat on the cat. " * 60


@pytest.fixture(scope="module")
def texts() -> dict[str, bytes]:
    return embedded_texts()


@pytest.fixture(scope="module")
def as_bytes() -> Dataset:
    return load("text-domains")


@pytest.fixture(scope="module")
def as_bpe() -> Dataset:
    return load(DatasetSettings.of("text-domains", tokens="bpe", vocabulary=160, context=64))


def parts(text: Text) -> list[torch.Tensor]:
    return [text.train, text.validation, text.test]


# --- the embedded domains ---


def test_the_embedded_texts_equal_the_originals_byte_for_byte(texts: dict[str, bytes]) -> None:
    assert {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()} == SHA256
    assert tuple(texts) == TEXT_DOMAINS.domains
    assert all(text.isascii() and len(text) == TEXT_DOMAINS.size for text in texts.values())


def test_the_licence_terms_are_shipped_with_the_data() -> None:
    terms = (Path(__file__).parents[2] / "optbench/data/TEXT-LICENSE.md").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in terms
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in terms
    assert all(digest in terms for digest in SHA256.values())


def test_a_damaged_embedded_file_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_bytes(b"PAR1 but not really")
    monkeypatch.setattr("optbench.data.text_domains.files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"^the embedded text cannot be read; reinstall optbench"):
        load("text-domains")


# --- stretches and windows ---


def test_the_last_twentieths_are_held_out_and_stretches_do_not_overlap(
    as_bytes: Dataset, texts: dict[str, bytes]
) -> None:
    assert as_bytes.texts is not None
    for name, text in as_bytes.texts.items():
        assert [len(part) for part in parts(text)] == [1_080_000, 60_000, 60_000]
        assert b"".join(part.numpy().tobytes() for part in parts(text)) == texts[name]
        assert {part.dtype for part in parts(text)} == {torch.uint8}  # tokens are stored compactly


@given(st.integers(0, 200))
def test_stretches_cover_a_text_of_any_length(length: int) -> None:
    content = bytes(range(length))
    train, validation, test = stretches(content)
    assert train + validation + test == content
    assert len(validation) == len(test) == length // 20


@given(st.integers(10, 60), st.integers(1, 9))
def test_in_consecutive_windows_every_token_is_a_target_once(length: int, context: int) -> None:
    tokens = torch.arange(length, dtype=torch.uint8)
    windows = consecutive_windows(tokens, context)
    count = (length - 1) // context
    expected = [list(range(i * context, i * context + context + 1)) for i in range(count)]
    assert windows.dtype == torch.int64
    assert windows.tolist() == expected
    assert windows[:, 1:].flatten().tolist() == list(range(1, count * context + 1))


def test_drawn_windows_cover_every_position_and_stay_inside() -> None:
    found = drawn_windows(torch.arange(10, dtype=torch.int16), 3, 5000, torch.Generator().manual_seed(0))
    first, times = found[:, 0].unique(return_counts=True)
    assert first.tolist() == list(range(7))  # the last window ends with the last token
    assert times.min() > 600
    assert torch.equal(found, found[:, :1] + torch.arange(4))


def test_a_dataset_of_text_has_windows_and_next_tokens(as_bytes: Dataset, texts: dict[str, bytes]) -> None:
    assert (as_bytes.inputs.shape, as_bytes.inputs.vocabulary, as_bytes.classes) == ((128,), 128, 128)
    assert torch.equal(as_bytes.train.inputs[:, 1:], as_bytes.train.targets[:, :-1])
    assert bytes(as_bytes.test.inputs[0].tolist()) == texts["scripture"][-60_000:][:128]
    assert len(as_bytes.test) == 4 * (59_999 // 128)


# --- tokens ---


def test_the_bytes_of_tokens_sum_to_the_length_of_the_text(as_bytes: Dataset, as_bpe: Dataset) -> None:
    for dataset in (as_bytes, as_bpe):
        assert dataset.texts is not None
        assert dataset.token_bytes is not None
        for text in dataset.texts.values():
            lengths = [int(dataset.token_bytes[part.int()].sum()) for part in parts(text)]
            assert lengths == [1_080_000, 60_000, 60_000]
    assert as_bpe.classes == as_bpe.vocabulary == 160


def test_training_an_encoding_is_reproducible() -> None:
    assert Bpe.trained([CONTENT], 150, 128) == Bpe.trained([CONTENT], 150, 128)


def reference(texts: list[bytes], vocabulary: int) -> list[tuple[int, int]]:
    """Run byte-pair encoding literally: count all pairs of all words, join the first most frequent one, repeat."""
    from optbench.data.bpe import _WORDS

    words = Counter(word for text in texts for word in _WORDS.findall(text))
    rows = [(list(word), count) for word, count in words.items()]
    merges: list[tuple[int, int]] = []
    while len(merges) + 128 < vocabulary:
        counts: Counter[tuple[int, int]] = Counter()
        for row, count in rows:
            for pair in itertools.pairwise(row):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for row, _ in rows:
            i = 0
            while i + 1 < len(row):
                if (row[i], row[i + 1]) == best:
                    row[i : i + 2] = [127 + len(merges)]
                i += 1
    return merges


def test_merges_agree_with_a_plain_implementation(texts: dict[str, bytes]) -> None:
    some = [texts["code"][:6000], texts["prose"][:6000], b"aaaa aaa aaaaaaa ---- -----\n\n\n\n" * 9]
    assert list(Bpe.trained(some, 230, 128).merges) == reference(some, 230)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text("ab \n-1é", max_size=60).map(str.encode))
def test_decoding_restores_any_encoded_bytes(text: bytes) -> None:
    encoding = Bpe.trained([CONTENT, b"aaaaaaaa --------", "éé".encode() * 9], 300, 256)
    (tokens,) = encoding.encode([text])
    assert encoding.decode(tokens) == text
    assert encoding.token_bytes[tokens].sum() == len(text)
    assert np.array_equal(encoding.encode([CONTENT, text])[1], tokens)  # independent of the other text


# --- entropy ---


def test_unigram_entropy_agrees_with_a_worked_example() -> None:
    tokens = torch.tensor([0, 0, 1, 2], dtype=torch.uint8)
    assert unigram_entropy(tokens, torch.ones(4, dtype=torch.int64)) == pytest.approx(1.5)
    # With tokens of 1, 1 and 4 bytes the same text has 4 × 1.5 bits for 1 + 1 + 1 + 4 bytes.
    assert unigram_entropy(tokens, torch.tensor([1, 1, 4])) == pytest.approx(6 / 7)


def test_the_entropy_of_uniform_bytes_is_seven_bits() -> None:
    assert unigram_entropy(torch.arange(128), torch.ones(128, dtype=torch.int64)) == 7.0


def test_entropies_of_domains_agree_with_counts_of_their_characters(as_bytes: Dataset, texts: dict[str, bytes]) -> None:
    counts = np.array(list(Counter(texts["prose"][:1_080_000]).values())) / 1_080_000
    found = as_bytes.unigram_entropies()
    assert found["prose"] == pytest.approx(-(counts * np.log2(counts)).sum())
    assert all(4.0 < entropy < 5.0 for entropy in found.values())


def test_longer_tokens_have_less_entropy_per_byte(as_bytes: Dataset, as_bpe: Dataset) -> None:
    plain, joined = as_bytes.unigram_entropies(), as_bpe.unigram_entropies()
    assert all(joined[name] < plain[name] for name in plain)


# --- users' texts ---


def test_non_ascii_bytes_give_a_vocabulary_of_256(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(CONTENT)
    (tmp_path / "b.txt").write_text("Grüße aus Köln! " * 200, encoding="utf-8")
    a, b = (str(tmp_path / name) for name in ("a.txt", "b.txt"))
    assert load(DatasetSettings.of("text-files", files={"a": a}, context=8)).classes == 128
    assert load(DatasetSettings.of("text-files", files={"a": a, "b": b}, context=8)).classes == 256
    joined = load(DatasetSettings.of("text-files", files={"a": a, "b": b}, context=8, tokens="bpe", vocabulary=270))
    assert joined.classes == 270


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"caf\xe9 " * 99, {}, "mine: expected UTF-8, got the byte 0xe9 at position 3"),
        (b"short", {}, "mine: expected at least 180 bytes, so that the last 5% contain a window of context 8, got 5"),
        (CONTENT, {"tokens": "bpe", "vocabulary": 1000}, "vocabulary: expected at most "),
        (
            "é".encode() * 99,
            {"tokens": "bpe", "vocabulary": 200},
            "vocabulary: expected more than 256, the number of single-byte tokens, got 200",
        ),
        (CONTENT[:200], {"tokens": "bpe", "vocabulary": 140}, "texts: mine.validation: expected at least 9 tokens"),
    ],
)
def test_texts_that_cannot_be_split_into_windows_of_tokens_are_refused(
    content: bytes, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(DataError) as error:
        load(DatasetSettings.of("text-files", files={"mine": str(tmp_path / "mine.txt")}, context=8, **more))
    assert str(error.value).startswith(f"dataset text-files: {message}")
    assert "\n" not in str(error.value)


def test_a_missing_text_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.txt: there is no file .*none\.txt$"):
        load(DatasetSettings.of("text-files", files={"mine": str(tmp_path / "none.txt")}))


def text(length: int = 9, high: int = 3) -> Text:
    return Text(*(torch.arange(length) % high for _ in range(3)))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, ": expected at least one domain, got none"),
        ({"a": text(high=4)}, ": a.train: expected tokens in 0..2, got 0..3"),
        (
            {"a": text(), "b": text(3)},
            ": b.train: expected at least 4 tokens, one window of context 3, got 3",
        ),
        ({"a": Text(*[torch.zeros(9)] * 3)}, ": a.train: expected integers of shape (n,), got float32 of shape (9,)"),
        ({"a": "words"}, ": a.train: expected integers of shape (n,), got NoneType"),
    ],
)
def test_wrong_domains_are_refused(texts: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        Dataset.of_texts("mine", texts, 3, 3)
    assert str(error.value) == f"dataset mine: texts{message}"


# --- token_bytes ---


def next_tokens(*rows: list[int]) -> Split:
    windows = torch.tensor(rows)
    return Split(windows[:, :-1], windows[:, 1:])


TEXT = next_tokens([0, 1, 2], [2, 1, 0])


def test_a_dataset_gives_the_number_of_bytes_of_its_tokens() -> None:
    found = Dataset("text", TEXT, TEXT, 3, token_bytes=torch.tensor([1, 2, 0]))
    assert found.token_bytes is not None
    assert found.token_bytes[found.test.targets].sum() == (2 + 0) + (2 + 1)
    assert Dataset("text", TEXT, TEXT, 3).token_bytes is None
    assert math.isclose(Dataset.of_texts("a", {"a": text()}, 3, 3).train.inputs.sum(), 6)


@pytest.mark.parametrize(
    ("token_bytes", "message"),
    [
        ([1, 1, 1], "expected a tensor, got list"),
        (torch.ones(3), "expected int64 of shape (3,), one for each class, got float32 of shape (3,)"),
        (torch.tensor([1, 1]), "expected int64 of shape (3,), one for each class, got int64 of shape (2,)"),
        (torch.tensor([1, 1, -1]), "expected byte counts of at least 0, got -1"),
        (torch.tensor([0, 0, 0]), "expected train targets that represent text, got only tokens of 0 bytes"),
    ],
)
def test_wrong_token_bytes_are_refused(token_bytes: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        Dataset("text", TEXT, TEXT, 3, token_bytes=token_bytes)
    assert str(error.value) == f"dataset text: token_bytes: {message}"


@pytest.mark.parametrize(
    ("half", "form"),
    [
        (Split(torch.zeros(2, 3), torch.tensor([0, 1])), "float32 (3,) with one target"),
        (Split(torch.zeros(2, 3).long(), torch.tensor([0, 1])), "int64 (3,) with one target"),
    ],
)
def test_token_bytes_require_a_target_at_every_position(half: Split, form: str) -> None:
    with pytest.raises(DataError, match="token_bytes: expected None") as error:
        Dataset("moons", half, half, 2, token_bytes=torch.tensor([1, 1]))
    assert form in str(error.value)
    with pytest.raises(DataError, match="texts: expected None, since examples have one target"):
        Dataset("moons", half, half, 2, texts={"a": text()})
