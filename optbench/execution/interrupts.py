"""Interrupts: Ctrl-C, and SIGTERM, which batch systems send."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ECHO = 0.3
"""Seconds after the first interrupt in which another one is that one again: `timeout` and shells pass on to their
children the Ctrl-C that a terminal has sent to all of them. A second press takes longer."""


class Interrupts:
    """Raise the first interrupt as a KeyboardInterrupt, but never while something is written.

    Handlers are installed in the main thread only, where Python delivers signals, and restored at the end of the block.
    """

    def __init__(self, further: Callable[[], object]) -> None:
        """further: called for every later interrupt but an echo. It raises nothing itself: the first is on its way."""
        self._further = further
        self._requested = self._held = False
        self._since = math.inf  # on the monotonic clock, the first interrupt
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                # Ignored under nohup, say; None is a handler that Python could not restore.
                if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._interrupt)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self, *, again: bool = True) -> Iterator[None]:
        """Let an interrupt wait for the end of the block. again: and raise it there, unless an exception leaves it.

        Of a block inside another one, too: the end of the inner one lets interrupts through.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        # Also an earlier one: an exception that is raised while Python cleans up an object is lost.
        if self._requested and again:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            if time.monotonic() - self._since >= ECHO:
                self._further()
            return
        self._requested, self._since = True, time.monotonic()
        if not self._held:
            raise KeyboardInterrupt
