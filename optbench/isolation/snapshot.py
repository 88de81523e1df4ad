"""Settings, and what they were at a moment: compared, and put back where they differ."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProcessSetting:
    """One setting: how to read it, as a value that compares by `==`, and how to set it to a value that was read."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]


class Snapshot:
    """The values of some settings at the time it was made."""

    __slots__ = ("_getters", "_settings", "_values")

    def __init__(self, settings: Sequence[ProcessSetting]) -> None:
        self._settings = settings
        self._getters = [setting.get for setting in settings]
        self._values = [get() for get in self._getters]

    def changed(self) -> list[str]:
        """The names of the settings that differ by now."""
        return [s.name for s, value in zip(self._settings, self._values, strict=True) if s.get() != value]

    def put_back(self) -> None:
        """Set what differs to what it was."""
        if [get() for get in self._getters] == self._values:
            return
        for setting, value in zip(self._settings, self._values, strict=True):
            if setting.get() != value:
                setting.set(value)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """The block runs with the settings of the snapshot; what differed before it differs again after it."""
        if [get() for get in self._getters] == self._values:
            yield
            return
        current = Snapshot(self._settings)
        self.put_back()
        try:
            yield
        finally:
            current.put_back()
