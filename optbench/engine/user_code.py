"""Calls into an optimizer's own code: under its trial's draws, the process as it was when they return."""

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
    """An optimizer raised something that is no Exception: it called `sys.exit`, say."""


def ended(error: BaseException) -> BaseException:
    """Return what a call to a user's code raises in the place of something that is no Exception."""
    if isinstance(error, SystemExit):
        return ProgramEndError(f"it ends the program with exit({error})")
    # Workers ignore Ctrl-C, so there it can only come from the optimizer.
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        return KeyboardInterrupt()
    return ProgramEndError(f"it raises {type(error).__name__}")


_NOTHING = contextlib.nullcontext()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore Python warnings in the block, except those of PyTorch about determinism, which are noted in the results.

    For constructors: their warnings are shown once, before anything is trained, rather than for every member.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=ALERT, category=UserWarning)
        yield


class UserCode:
    """Encloses the calls to one optimizer, whose trials run on one device.

    Process-wide settings are put back for a user's optimizer and for a wrapper over one. The registry's own do not
    change any.
    """

    def __init__(self, spec: OptimizerSpec, hyperparameters: Mapping[str, Any], device: torch.device) -> None:
        """The settings of this moment are those that are put back after each step."""
        self._device = device
        self._random = "random" in spec.needs
        self._settings = Snapshot(NUMERIC) if user_targets(spec.name, hyperparameters) else None

    def step(self, generator: torch.Generator | None) -> AbstractContextManager[None]:
        """Around one step. generator: of the trial, for an optimizer that draws; None: whatever it draws is not seeded.

        The global generators are not put back: `LockStep` does that after many steps.

        Raises:
            ProgramEndError: in the place of what is no Exception, Ctrl-C aside.
        """
        if self._random and generator:
            seed_all(draw_seed(generator), self._device)
        return _NOTHING if self._settings is None else self._guarded(self._settings)

    @contextlib.contextmanager
    def _guarded(self, settings: Snapshot) -> Iterator[None]:
        try:
            try:
                yield
            finally:  # first: a mode that was left on may break all that follows
                settings.put_back()
        except Exception:
            raise
        except BaseException as error:
            raise ended(error) from error

    @contextlib.contextmanager
    def aside(self, seed: int, *, quiet: bool = False) -> Iterator[None]:
        """Around all other calls: constructor, `begin_task`, `train`, `eval`.

        seed: of what it draws. quiet: `without_warnings`.

        Raises:
            ProgramEndError: as for `step`.
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
        """Around the loss that a step evaluates: in the settings of a trial, whatever the optimizer has set.

        Batches lie in memory that companions share: an inference mode or a default device must not get into it.
        """
        return self._settings.restored() if self._settings is not None else _NOTHING
