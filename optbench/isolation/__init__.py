"""Process-wide settings of PyTorch, NumPy and Python, put back after code that may change them.

Several trials share a worker process, and an optimizer of a user's own is arbitrary code: `torch.set_num_threads(2)` or
`torch.set_default_dtype(torch.float64)` in its constructor would change or break every trial that follows. Two tables
say what is put back: `NUMERIC`, what a computation depends on, which costs a few microseconds to compare and is checked
after every call; and `AMBIENT`, the rest (random generators, working directory, environment, ...), after a whole unit
of work and after an import or a constructor.

Out of reach: `torch.set_num_interop_threads`, which a process can set only once; objects that are patched in place
(`torch.nn.functional.cross_entropy = ...`); and global state of the user's own modules. A worker process that has run a
user's code therefore serves no other code (`execution.pool`). `sys.path` stays as a plug-in leaves it, because files
that extend it often import their neighbours later, inside functions.
"""

from __future__ import annotations

from types import TracebackType

from optbench.isolation.ambient import AMBIENT, seed_generators
from optbench.isolation.numeric import NUMERIC
from optbench.isolation.snapshot import ProcessSetting, Snapshot

__all__ = ["ALL", "AMBIENT", "NUMERIC", "ProcessSetting", "Snapshot", "isolated", "seed_generators"]

ALL = (*NUMERIC, *AMBIENT)


class isolated:
    """Puts all settings back at the end of the block, however it ends."""

    def __enter__(self) -> None:
        self._numeric, self._ambient = Snapshot(NUMERIC), Snapshot(AMBIENT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._numeric.put_back()  # first: a mode that was left on may break what reads the others
        finally:
            self._ambient.put_back()
