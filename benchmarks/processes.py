"""Processes that end with everything they started, and files that are whole at every moment.

On Linux every descendant of a process is found, those in sessions of their own and orphans included; elsewhere only the
process itself and its group.
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
"""Of prctl(2)."""
PATIENCE = 5.0
"""Seconds in which killed processes have to disappear; one that waits for a device's driver may take longer."""


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, so that `descendants` finds them."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """Ids of all processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                # The name, in parentheses, may hold anything; state and parent follow it.
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def end_descendants() -> list[int]:
    """Kill all processes below this one; return those that are still there after `PATIENCE` seconds.

    Exit codes of children that were not waited for are lost.
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
    """End this process and all below it once what `descriptor` reads from ends, whose other end only the parent holds.

    This is how children learn of the death of a parent that was killed.
    """
    ours = os.dup(descriptor)  # pytest puts something else in the place of standard input

    def watch() -> None:
        while os.read(ours, 1):
            pass
        end_descendants()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with the parent").start()


def replace(file: Path, text: str) -> None:
    """Write a file that is the old or the new one at every moment, and on the disk afterwards."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    with new.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
