"""How much memory there is, how much a process took, and a bound that makes it fail rather than be killed.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

SHARE = 0.8
"""Of the memory that is available a measurement may take so much, unless a limit is given."""
CGROUPS = (
    ("memory.max", "memory.current", Path("/sys/fs/cgroup")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", Path("/sys/fs/cgroup/memory")),
)


def available() -> int:
    """Bytes that can be allocated now: what the system has free, or what is left of this container's limit."""
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
    """Have allocations of this process fail beyond `size` more bytes, on Linux; elsewhere nothing."""
    if sys.platform == "linux":
        import resource

        most = _status("VmData") + size
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    return _status("VmRSS")


def peak() -> int:
    """The most bytes that this process has had in memory."""
    # Not `ru_maxrss` on Linux, where a process begins with that of the one that started it.
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
