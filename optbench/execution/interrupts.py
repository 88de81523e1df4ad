"""Handling of interrupts: Ctrl-C, and SIGTERM, which batch systems send."""

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
"""Seconds after the first interrupt within which another one is regarded as its echo. A terminal sends Ctrl-C to all
processes, and `timeout` and shells forward it to their children again. A second key press takes longer."""


class Interrupts:
    """Signal handlers that raise the first interrupt as a KeyboardInterrupt, but never while files are being written.

    The handlers are installed only in the main thread, in which Python delivers signals. The earlier handlers are
    restored at the end of the `with` block.
    """

    def __init__(self, further: Callable[[], object]) -> None:
        """further: a function that is called on later interrupts, except those within `ECHO` seconds of the first.

        The function must not raise an exception, because the first interrupt is still pending.
        """
        self._further = further
        self._requested = self._held = False
        self._since = math.inf  # time of the first interrupt, on the monotonic clock
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                # Under nohup, for example, a signal is ignored; None is a handler that Python could not restore.
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
        """Delay an interrupt until the end of the block.

        again: True to raise the interrupt at the end, unless the block raises an exception.

        Blocks must not be nested: the end of an inner block raises interrupts even within an outer block.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        # Also for an interrupt before the block, because an exception raised while Python destroys an object is lost.
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
