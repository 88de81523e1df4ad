"""Settings that computations in this thread depend on, such as PyTorch's flags, modes and hooks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.modules.module as _modules
import torch.optim.optimizer as _optimizers

from optbench.isolation.snapshot import ProcessSetting


def _private(*names: str, reads: str = "_get_{}", writes: str = "_set_{}") -> Iterator[ProcessSetting]:
    """Yield a setting for each name that has a private getter and setter in `torch._C` and is readable in this build.

    reads, writes: the patterns for the names of the getter and the setter. A tuple value is passed to the setter as
    separate arguments.
    """
    for name in names:
        get, set_ = (getattr(torch._C, form.format(name), None) for form in (reads, writes))
        if get is None or set_ is None:
            continue
        with contextlib.suppress(RuntimeError, AttributeError):  # raised for a back end that this build lacks
            get()
            yield ProcessSetting(reads.format(name).removeprefix("_get_").removeprefix("_is_"), get, _setter(set_))


def _setter(set_: Callable[..., object]) -> Callable[[Any], object]:
    return lambda value: set_(*value) if isinstance(value, tuple) else set_(value)


def _precisions() -> list[ProcessSetting]:
    """Return the float32 precision settings, legacy ones first, since setting a legacy one changes some newer ones."""
    get, set_ = (getattr(torch._C, f"_{verb}_fp32_precision_{verb}ter", None) for verb in ("get", "set"))
    matmul = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    found = [_older("float32_matmul_precision", *matmul)]
    found += [_older(s.name, s.get, s.set) for s in _private("cudnn_allow_tf32")]
    if get is None or set_ is None:
        return found
    for backend in ("generic", "cuda", "mkldnn"):
        for operation in ("all",) if backend == "generic" else ("all", "matmul", "conv", "rnn"):

            def read(backend: str = backend, operation: str = operation) -> str:
                value: str = get(backend, operation)
                return value

            def write(value: str, backend: str = backend, operation: str = operation) -> None:
                set_(backend, operation, value)

            found.append(ProcessSetting(f"{backend}.{operation}.fp32_precision", read, write))
    return found


def _older(name: str, get: Callable[[], Any], set_: Callable[[Any], object]) -> ProcessSetting:
    """Return a legacy setting, which combines several newer ones.

    If PyTorch raises an error when the value is read, the value is None, and the setting is not restored.
    """

    def read() -> Any:
        try:
            return get()
        except RuntimeError:
            return None

    def write(value: Any) -> None:
        if value is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                set_(value)

    return ProcessSetting(name, read, write)


_REDUCED = "cublas_allow_{}_reduced_precision_reduction"
"""The pattern for the names of settings that allow reduced-precision sums in matrix products, one for each data type.

The value of such a setting is a pair of flags, which are set together.
"""
_KERNELS_OF_ATTENTION = {"reads": "_get_{}_sdp_enabled", "writes": "_set_sdp_use_{}"}
_SMALLEST = 5e-324
"""The smallest denormal number. In a thread that flushes denormals, its product with 1 is 0, which reveals the setting.
PyTorch has no function that reads it."""


def _default_type() -> tuple[torch.dtype, str]:
    return torch.get_default_dtype(), str(torch._C._get_default_device())


def _set_default_type(value: tuple[torch.dtype, str]) -> None:
    dtype, device = value
    if str(torch._C._get_default_device()) != device:
        scalar = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half"}.get(dtype, "Float")
        torch._C._set_default_tensor_type(f"torch.{'' if device == 'cpu' else device + '.'}{scalar}Tensor")
    torch.set_default_dtype(dtype)


def _default_device() -> torch.device | None:
    # The public getter creates a tensor, which takes as long as reading all other settings together.
    context = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return None if context is None else context.device


_kept_modes: list[Any] = []
"""Inference modes entered by `_set_inference_mode`, kept alive because deleting one would change the current mode."""


def _set_inference_mode(value: bool) -> None:
    mode = torch.inference_mode(value)
    mode.__enter__()
    _kept_modes.append(mode)


def _stack(
    name: str, read: Callable[[], tuple[Any, ...]], pop: Callable[[], object], push: Callable[[Any], object]
) -> ProcessSetting:
    """Return a setting for a stack of modes (bottom first) that is restored by popping and pushing modes.

    The closure passed to an optimizer runs outside the modes of the optimizer's own `with` blocks. These modes must be
    pushed again after the closure, because each `with` block pops its mode on exit.
    """

    def put(value: tuple[Any, ...]) -> None:
        present = read()
        differs = next((i for i, (a, b) in enumerate(zip(present, value, strict=False)) if a != b), None)
        shared = min(len(present), len(value)) if differs is None else differs
        for _ in present[shared:]:
            pop()
        for mode in value[shared:]:
            push(mode)

    return ProcessSetting(name, read, put)


def _function_modes() -> tuple[Any, ...]:
    return tuple(torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack()))


def _dispatch_modes() -> tuple[Any, ...]:
    return tuple(torch._C._get_dispatch_stack_at(i) for i in range(torch._C._len_torch_dispatch_stack()))


def _pop_dispatch_mode() -> None:
    torch._C._pop_torch_dispatch_stack(None)


def _saved_tensor_hooks() -> tuple[Any, ...]:
    """Return the stack of saved-tensor hooks as (pack, unpack) pairs, bottom first.

    PyTorch gives access to the top pair only, so all pairs are popped and then pushed again.
    """
    found = []
    while (top := torch._C._autograd._top_saved_tensors_default_hooks(False)) is not None:
        found.append(top)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    found.reverse()
    for pair in found:
        _push_saved_tensor_hooks(pair)
    return tuple(found)


def _push_saved_tensor_hooks(pair: tuple[Any, Any]) -> None:
    torch._C._autograd._push_saved_tensors_default_hooks(*pair)


def _autocast(device: str) -> list[ProcessSetting]:
    def set_enabled(value: bool) -> None:
        torch.set_autocast_enabled(device, value)
        torch.clear_autocast_cache()

    return [
        ProcessSetting(f"autocast {device}", lambda: torch.is_autocast_enabled(device), set_enabled),
        ProcessSetting(
            f"autocast {device} dtype",
            lambda: torch.get_autocast_dtype(device),
            lambda value: torch.set_autocast_dtype(device, value),
        ),
    ]


def _entries(name: str, holder: dict[Any, Any]) -> ProcessSetting:
    """Return a setting for the entries of `holder`, a dictionary of global hooks that is restored in place."""

    def put(value: tuple[tuple[Any, Any], ...]) -> None:
        holder.clear()
        holder.update(value)

    return ProcessSetting(name, lambda: tuple(holder.items()) if holder else (), put)


def _hooks() -> list[ProcessSetting]:
    found = []
    for module in (_modules, _optimizers):
        for name, value in vars(module).items():
            if name.startswith("_global_") and isinstance(value, dict):
                found.append(_entries(name, value))
    return found


def _set_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]  # typeshed declares a sequence
    warnings._filters_mutated()  # type: ignore[attr-defined]  # else, decisions on showing warnings stay cached


def cuda_at_work() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _cuda_device() -> int | None:
    # Querying the device would initialise the driver, which forked processes could then no longer use.
    return torch.cuda.current_device() if cuda_at_work() else None


def _set_cuda_device(value: int | None) -> None:
    if value is not None:
        torch.cuda.set_device(value)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


NUMERIC: tuple[ProcessSetting, ...] = (
    ProcessSetting("inference_mode", torch.is_inference_mode_enabled, _set_inference_mode),
    ProcessSetting("grad_mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    *_private("fwd_grad_enabled", "multithreading_enabled", reads="_is_{}"),
    ProcessSetting("default_device", _default_device, torch.set_default_device),
    _stack(
        "torch function modes",
        _function_modes,
        torch._C._pop_torch_function_stack,
        torch._C._push_on_torch_function_stack,
    ),
    _stack("torch dispatch modes", _dispatch_modes, _pop_dispatch_mode, torch._C._push_on_torch_dispatch_stack),
    _stack(
        "saved tensor hooks",
        _saved_tensor_hooks,
        torch._C._autograd._pop_saved_tensors_default_hooks,
        _push_saved_tensor_hooks,
    ),
    ProcessSetting("default_dtype", _default_type, _set_default_type),
    ProcessSetting("num_threads", torch.get_num_threads, torch.set_num_threads),
    ProcessSetting("flush_denormal", lambda: _SMALLEST * 1.0 == 0.0, torch.set_flush_denormal),
    ProcessSetting(
        "deterministic_algorithms", _deterministic, lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1])
    ),
    *_private("deterministic_fill_uninitialized_memory"),
    *_autocast("cpu"),
    *_autocast("cuda"),
    ProcessSetting("autocast_cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    ProcessSetting(
        "anomaly_mode",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.set_anomaly_enabled(*value),
    ),
    *_precisions(),
    *_private("cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic", "mkldnn_enabled", "mkldnn_deterministic"),
    *_private("nnpack_enabled", "cublas_allow_fp16_accumulation", "cpu_allow_fp16_reduced_precision_reduction"),
    *_private("linalg_preferred_backend", "blas_preferred_backend"),
    *_private("fp16", "bf16", reads=f"_get_{_REDUCED}", writes=f"_set_{_REDUCED}"),
    *_private("flash", "mem_efficient", "math", "cudnn", "overrideable", **_KERNELS_OF_ATTENTION),
    *_hooks(),
    ProcessSetting("numpy errors", np.geterr, lambda value: np.seterr(**value)),
    ProcessSetting("warning filters", lambda: list(warnings.filters), _set_filters),
    ProcessSetting("cuda device", _cuda_device, _set_cuda_device),
)
"""Settings that computations in this thread depend on, in the order in which they are restored.

`inference_mode` comes before `grad_mode` because setting it changes `grad_mode`.
"""
