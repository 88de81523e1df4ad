"""Snapshots of process-wide settings: compared later, and restored where they differ."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProcessSetting:
    """A setting: a getter, whose values compare by `==`, and a setter that accepts such a value."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]


class Snapshot:
    """The values of some settings at the time of its construction."""

    __slots__ = ("_getters", "_settings", "_values")

    def __init__(self, settings: Sequence[ProcessSetting]) -> None:
        self._settings = settings
        self._getters = [setting.get for setting in settings]
        self._values = [get() for get in self._getters]

    def changed(self) -> list[str]:
        """Return the names of the settings that have changed since the snapshot was taken."""
        return [s.name for s, value in zip(self._settings, self._values, strict=True) if s.get() != value]

    def put_back(self) -> None:
        """Restore every setting that has changed."""
        if [get() for get in self._getters] == self._values:
            return
        for setting, value in zip(self._settings, self._values, strict=True):
            if setting.get() != value:
                setting.set(value)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Run the block with the settings of the snapshot, then return to those in force before it."""
        if [get() for get in self._getters] == self._values:
            yield
            return
        current = Snapshot(self._settings)
        self.put_back()
        try:
            yield
        finally:
            current.put_back()
