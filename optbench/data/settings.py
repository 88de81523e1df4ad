"""A suite's dataset: kind, settings, and facts available before loading it. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optbench.data.catalog import FACTS, TEXT_DOMAINS, TEXT_FILES
from optbench.data.text import VOCABULARY
from optbench.errors import KindError
from optbench.kinds import AS_WRITTEN, DATASETS, Kind

DERIVED = ("classes", "imbalanced", "noisy-labels", "spurious-patch", "corrupted")
"""Kinds derived from another dataset, named by `of`."""
MODULAR_ADDITION = "modular-addition"


@dataclass(frozen=True)
class Known:
    """Facts known about a dataset of images or numbers before loading; sizes that depend on labels are None."""

    classes: int
    shape: tuple[int, ...]
    train_size: int | None
    test_size: int | None


class DatasetSettings(Kind):
    """A built-in or user-defined dataset; a bare name stands for the dataset with no settings."""

    registry = DATASETS
    short = True

    @classmethod
    def _kept(cls, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        kept = super()._kept(kind, given)
        if kind in (TEXT_DOMAINS.name, TEXT_FILES):
            return cls._kept_of_text(kept)
        if kind in DERIVED:
            cls._check_base(kind, kept)
            return kept
        if (info := FACTS.get(kind)) is None:
            return kept
        # Without `resize`, a built-in dataset is recorded as its bare name, as before this setting existed.
        if (side := kept.get("resize")) is None:
            return {name: value for name, value in kept.items() if name != "resize"}
        if (whole := info.shape[-1]) % side:
            fitting = ", ".join(str(size) for size in range(1, whole + 1) if whole % size == 0)
            raise KindError(f"resize: expected a divisor of the image side {whole} ({fitting}), got {side}")
        return kept

    @staticmethod
    def _kept_of_text(settings: dict[str, Any]) -> dict[str, Any]:
        """Drop an unset `vocabulary` if tokens are bytes; fill in its default for a byte-pair encoding.

        Raises:
            KindError: `vocabulary` is set although tokens are bytes.
        """
        if settings["tokens"] == "bpe":
            return {**settings, "vocabulary": settings["vocabulary"] or VOCABULARY}
        if settings["vocabulary"] is not None:
            raise KindError("vocabulary: expected tokens: bpe, got tokens: bytes, whose vocabulary is fixed")
        return {name: value for name, value in settings.items() if name != "vocabulary"}

    @classmethod
    def _check_base(cls, kind: str, settings: Mapping[str, Any]) -> None:
        """Raise KindError if a kind cannot be derived from the dataset named by `of`."""
        base = cls.as_written(settings["of"])
        if base.domains:
            raise KindError(f"of: expected a dataset of examples with one label each, got the text of {base.kind}")
        if (known := base.known) is None:
            return
        if kind in ("spurious-patch", "corrupted") and len(known.shape) != 3:
            raise KindError(f"of: expected a dataset of images, got {base.kind} with inputs of shape {known.shape}")
        wrong = [label for label in settings.get("keep", ()) if label >= known.classes]
        if wrong:
            raise KindError(
                f"keep: expected classes below {known.classes}, the number of classes of {base.kind}, got {wrong[0]}"
            )

    @classmethod
    def as_written(cls, value: object) -> DatasetSettings:
        """Return previously validated settings without importing their kinds."""
        return cls.model_validate(value, context=AS_WRITTEN)

    @property
    def of_dataset(self) -> DatasetSettings | None:
        """The dataset from which this one is derived; None if there is none, or if unvalidated settings lack `of`."""
        of = self.settings.get("of") if self.kind in DERIVED else None
        named = of.get("kind") if isinstance(of, dict) else of
        return self.as_written(of) if isinstance(named, str) and named else None

    @property
    def chain(self) -> Iterator[DatasetSettings]:
        """Yield this dataset, the dataset from which it is derived, and so on."""
        yield self
        if (of := self.of_dataset) is not None:
            yield from of.chain

    @property
    def texts(self) -> dict[str, str]:
        """Paths of the user's texts, by domain."""
        files = self.settings.get("files") if self.kind == TEXT_FILES else None
        return files if isinstance(files, dict) else {}

    @property
    def domains(self) -> tuple[str, ...]:
        """The text domains that are known without loading the dataset."""
        return TEXT_DOMAINS.domains if self.kind == TEXT_DOMAINS.name else tuple(self.texts)

    @property
    def known(self) -> Known | None:
        """Facts that are known without loading the dataset; None for text and users' datasets."""
        if (info := FACTS.get(self.kind)) is not None:
            side = self.settings.get("resize")
            shape = (info.shape[0], side, side) if side else info.shape
            return Known(info.classes, shape, info.train_size, info.test_size)
        if self.kind == MODULAR_ADDITION:
            return _known_of_addition(self.settings.get("modulus"), self.settings.get("train_share"))
        base = None if (of := self.of_dataset) is None else of.known
        if base is None:
            return None
        if self.kind == "classes":
            keep = self.settings.get("keep")
            return replace(base, classes=len(keep), train_size=None, test_size=None) if isinstance(keep, list) else None
        return replace(base, train_size=None) if self.kind == "imbalanced" else base


def _known_of_addition(modulus: object, share: object) -> Known | None:
    from optbench.data.modular import sizes

    if not isinstance(modulus, int) or not isinstance(share, int | float):
        return None  # the settings have not been validated
    return Known(modulus, (2 * modulus,), *sizes(modulus, share))
