"""Process-wide settings other than numeric ones, such as random generators, the working directory and streams."""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optbench.isolation.numeric import cuda_at_work
from optbench.isolation.snapshot import ProcessSetting


def seed_generators(seed: int) -> None:
    """Seed the global random generators of PyTorch (CPU only), NumPy and Python with `seed`, in [0, 2**31)."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # foreign code uses the global generator
    random.seed(seed)


def _generators() -> tuple[bytes, ...]:
    states = [torch.default_generator.get_state()]
    if cuda_at_work():
        states += torch.cuda.get_rng_state_all()
    return tuple(state.numpy().tobytes() for state in states)


def _set_generators(value: tuple[bytes, ...]) -> None:
    states = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in value]
    torch.default_generator.set_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # foreign code uses the global generator
    assert isinstance(keys, np.ndarray)
    return kind, keys.tobytes(), *rest


def _set_numpy_state(value: tuple[Any, ...]) -> None:
    kind, keys, *rest = value
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))  # noqa: NPY002  # as above


def _directory() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # the directory was removed
        return None


def _set_directory(value: str | None) -> None:
    if value is not None:
        with contextlib.suppress(OSError):
            os.chdir(value)


def _set_environment(value: dict[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    for name, text in value.items():
        if os.environ.get(name) != text:
            os.environ[name] = text


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in _SIGNALS]


def _set_handlers(value: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(_SIGNALS, value, strict=True):
            if handler is not None:  # None stands for a handler that was not set from Python
                signal.signal(number, handler)


def _streams() -> tuple[Any, Any]:
    return sys.stdout, sys.stderr


def _set_streams(value: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = value


def _set_collection(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


def _torch_print_options() -> dict[str, Any]:
    return dict(vars(torch._tensor_str.PRINT_OPTS))


AMBIENT: tuple[ProcessSetting, ...] = (
    ProcessSetting("torch generators", _generators, _set_generators),
    ProcessSetting("numpy generator", _numpy_state, _set_numpy_state),
    ProcessSetting("random generator", random.getstate, random.setstate),
    ProcessSetting("working directory", _directory, _set_directory),
    ProcessSetting("environment", lambda: dict(os.environ), _set_environment),
    ProcessSetting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    ProcessSetting("garbage collection", lambda: (gc.isenabled(), gc.get_threshold()), _set_collection),
    ProcessSetting("signal handlers", _handlers, _set_handlers),
    ProcessSetting("standard streams", _streams, _set_streams),
    ProcessSetting(
        "locale", lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)
    ),
    ProcessSetting(
        "torch print options", _torch_print_options, lambda value: vars(torch._tensor_str.PRINT_OPTS).update(value)
    ),
    ProcessSetting("numpy print options", np.get_printoptions, lambda value: np.set_printoptions(**value)),
    ProcessSetting("warn_always", torch.is_warn_always_enabled, torch.set_warn_always),
)
"""Process-wide settings that code may depend on, other than those in `NUMERIC`."""
