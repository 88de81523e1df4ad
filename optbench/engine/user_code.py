"""Calls to an optimizer's code with per-trial seeds; process settings are restored after each call."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from optbench.engine.determinism import ALERT
from optbench.engine.randomness import draw_seed, seed_all, seeded
from optbench.isolation import NUMERIC, Snapshot, isolated
from optbench.optimizers.registry import user_targets
from optbench.optimizers.spec import OptimizerSpec


class ProgramEndError(Exception):
    """A user's code raised a BaseException that is not an Exception, for example by calling `sys.exit`."""


def ended(error: BaseException) -> BaseException:
    """Return the error that replaces a BaseException raised by a user's code."""
    if isinstance(error, SystemExit):
        return ProgramEndError(f"it ends the program with exit({error})")
    # Workers ignore Ctrl-C, so a KeyboardInterrupt in a worker can only come from the user's code.
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        return KeyboardInterrupt()
    return ProgramEndError(f"it raises {type(error).__name__}")


_NOTHING = contextlib.nullcontext()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore Python warnings in the block, except PyTorch's warnings about determinism, which results record.

    Used for constructors, whose warnings are shown once before training instead of for every member.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=ALERT, category=UserWarning)
        yield


class UserCode:
    """Wraps all calls of one optimizer's code on one device.

    Process-wide settings are restored for users' optimizers and for wrappers around them. Registered optimizers do not
    change such settings.
    """

    def __init__(self, spec: OptimizerSpec, hyperparameters: Mapping[str, Any], device: torch.device) -> None:
        """Record the process's current settings, which are restored after each step."""
        self._device = device
        self._random = "random" in spec.needs
        self._settings = Snapshot(NUMERIC) if user_targets(spec.name, hyperparameters) else None

    def step(self, generator: torch.Generator | None) -> AbstractContextManager[None]:
        """Wrap one step.

        The global generators are not restored; `LockStep` restores them after many steps.

        generator: the trial's generator, for an optimizer that draws random numbers; None for no seeding.

        Raises:
            ProgramEndError: the step raised a BaseException that is not an Exception, except for Ctrl-C.
        """
        if self._random and generator:
            seed_all(draw_seed(generator), self._device)
        return _NOTHING if self._settings is None else self._guarded(self._settings)

    @contextlib.contextmanager
    def _guarded(self, settings: Snapshot) -> Iterator[None]:
        try:
            try:
                yield
            finally:  # before any other code, which could fail in a mode that the optimizer has left on
                settings.put_back()
        except Exception:
            raise
        except BaseException as error:
            raise ended(error) from error

    @contextlib.contextmanager
    def aside(self, seed: int, *, quiet: bool = False) -> Iterator[None]:
        """Wrap a call of anything except `step`: the constructor, `begin_task`, `train` or `eval`.

        seed: the seed for random draws in the call. quiet: True to ignore warnings, as in `without_warnings`.

        Raises:
            ProgramEndError: as in `step`.
        """
        kept = isolated() if self._settings is not None else _NOTHING
        try:
            with without_warnings() if quiet else _NOTHING, seeded(seed, self._device), kept:
                yield
        except Exception:
            raise
        except BaseException as error:
            raise ended(error) from error

    def closure(self) -> AbstractContextManager[None]:
        """Wrap an evaluation of the loss in a step, so that settings changed by the optimizer do not apply to it.

        Members share the memory of batches, which must not depend on an optimizer's inference mode or default device.
        """
        return self._settings.restored() if self._settings is not None else _NOTHING
