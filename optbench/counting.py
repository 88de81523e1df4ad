"""Counts with their nouns (`2 trials`), ranges of numbers, lists in words, and grouping by key."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


def grouped(pairs: Iterable[tuple[Key, Item]]) -> dict[Key, list[Item]]:
    """Group items by key, keeping keys and items in order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for key, item in pairs:
        groups.setdefault(key, []).append(item)
    return groups


def count(number: float, noun: str, plural: str | None = None) -> str:
    """Return a number followed by its noun, e.g. `1 trial`, `2 trials`, `0 trials` or `0.5 epochs`.

    noun: a noun or noun phrase in the singular; the plural ending is added to its last word.
    plural: the plural, if it is irregular.
    """
    written = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{written} {noun if number == 1 else plural or _plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def number_ranges(numbers: Sequence[int]) -> str:
    """Abbreviate ascending numbers, e.g. `0-9` or `0-2, 5, 7-8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(str(end) for end in run) for run in runs)


def listed(words: Iterable[str]) -> str:
    """Join one or more words, e.g. `a`, `a and b` or `a, b and c`."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def kept(trials: int) -> str:
    """Return a clause such as `3 finished trials are kept`."""
    return f"{count(trials, 'finished trial is', 'finished trials are')} kept"
