"""Available memory, this process's memory use, and a limit beyond which allocations fail.

The limit lets a process report that it needs too much memory before the system kills it. Does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

SHARE = 0.8
"""Fraction of the available memory that a measurement may use by default."""
CGROUPS = (
    ("memory.max", "memory.current", Path("/sys/fs/cgroup")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", Path("/sys/fs/cgroup/memory")),
)


def available() -> int:
    """Return the number of bytes that can be allocated now.

    This is the system's available memory or the unused part of this container's memory limit, whichever is less.
    """
    found = [_free_of_system()]
    for limit, used, folder in CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    return max(0, min(found))


def _free_of_system() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bound(size: int) -> None:
    """Make allocations fail once this process has allocated `size` more bytes (on Linux only)."""
    if sys.platform == "linux":
        import resource

        most = _status("VmData") + size
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def resident() -> int:
    """Return the number of resident bytes of this process; 0 if unknown."""
    return _status("VmRSS")


def peak() -> int:
    """Return the peak number of resident bytes of this process."""
    # preferred to `ru_maxrss`, which a process on Linux inherits from its parent
    if found := _status("VmHWM"):
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(name: str) -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    return 0
