"""Functions that end processes together with all processes they started, and that replace files atomically.

Descendants of a process, including orphans and those in other sessions, are only found on Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PROC = Path("/proc")
SET_CHILD_SUBREAPER = 36
"""The option PR_SET_CHILD_SUBREAPER of prctl(2)."""
PATIENCE = 5.0
"""Seconds to wait until killed processes disappear; a process waiting for a device driver may take longer."""


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that `descendants` finds them."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """Return the ids of all descendants of this process."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended
                # The name, in parentheses, may contain any character; state and parent follow it.
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def end_descendants() -> list[int]:
    """Kill all descendants of this process; return those that still exist after `PATIENCE` seconds.

    The exit codes of children that were not waited for are lost.
    """
    deadline = time.monotonic() + PATIENCE
    while (found := descendants()) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)
    return found


def end_with(descriptor: int) -> None:
    """End this process and its descendants when `descriptor`, a pipe from the parent, reaches end of file.

    A child then ends even if its parent is killed.
    """
    ours = os.dup(descriptor)  # pytest replaces standard input

    def watch() -> None:
        while os.read(ours, 1):
            pass
        end_descendants()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with the parent").start()


def replace(file: Path, text: str) -> None:
    """Replace a file atomically, and flush it to the disk."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    with new.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
