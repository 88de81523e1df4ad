"""Process-wide settings of PyTorch, NumPy and Python, restored after running code that may change them.

Several trials share a worker process, and a user's optimizer is arbitrary code: `torch.set_num_threads(2)` or
`torch.set_default_dtype(torch.float64)` in its constructor would change or break every later trial. Two tables
list the settings that are restored:

NUMERIC: settings that computations depend on. Comparing them takes a few microseconds, so they are checked after every
call.
AMBIENT: all other settings (random generators, working directory, environment, ...). They are checked after a complete
unit of work and after an import or a constructor call.

Three kinds of changes are not undone:

- `torch.set_num_interop_threads`, which a process can call only once;
- objects patched in place (`torch.nn.functional.cross_entropy = ...`);
- the global state of the user's own modules.

A worker process that has run a user's code is therefore never used for other code (`execution.pool`). Changes to
`sys.path` by a plug-in are kept as well, because a file that extends `sys.path` often imports its neighbours later,
inside functions.
"""

from __future__ import annotations

from types import TracebackType

from optbench.isolation.ambient import AMBIENT, seed_generators
from optbench.isolation.numeric import NUMERIC
from optbench.isolation.snapshot import ProcessSetting, Snapshot

__all__ = ["ALL", "AMBIENT", "NUMERIC", "ProcessSetting", "Snapshot", "isolated", "seed_generators"]

ALL = (*NUMERIC, *AMBIENT)


class isolated:
    """A context manager that restores all settings on exit, even after an exception."""

    def __enter__(self) -> None:
        self._numeric, self._ambient = Snapshot(NUMERIC), Snapshot(AMBIENT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._numeric.put_back()  # first, because a mode left active may break the getters of other settings
        finally:
            self._ambient.put_back()
