"""Snapshots of process-wide settings, used to find and restore the settings that have changed since."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProcessSetting:
    """A process-wide setting.

    get: returns the current value; values are compared by `==`.
    set: restores a value that `get` returned earlier.
    """

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]


class Snapshot:
    """The values of some settings, read when the snapshot is constructed."""

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
        """Run the block with the snapshot's settings, then restore the settings that were in force before the block."""
        if [get() for get in self._getters] == self._values:
            yield
            return
        current = Snapshot(self._settings)
        self.put_back()
        try:
            yield
        finally:
            current.put_back()
