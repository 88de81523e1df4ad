"""Which device a run trains on."""

from __future__ import annotations

import os

import torch

from optbench.errors import DeviceError

KINDS = ("auto", "cpu", "cuda", "mps")


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve(text: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` names; `auto` is the best there is.

    Raises:
        DeviceError: no such kind of device, or this machine or this build of PyTorch has none of it.
    """
    kind, _, index = text.partition(":")
    if kind not in KINDS or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"--device {text}: needs auto, cpu, cuda, cuda:N or mps")
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if kind == "cuda":
        if not torch.cuda.is_available():
            built = torch.version.cuda
            reason = f"no CUDA device is visible to PyTorch {torch.__version__}"
            raise DeviceError(
                f"--device {text}: {reason if built else f'PyTorch {torch.__version__} is built without CUDA'}"
            )
        count = torch.cuda.device_count()
        if index and int(index) >= count:
            raise DeviceError(f"--device {text}: this machine has cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"--device {text}: PyTorch {torch.__version__} finds no Metal device")
    return torch.device(kind)


def worker_devices(text: str, device: torch.device, jobs: int | None, cores: int) -> list[torch.device]:
    """The device of every worker process, where `device` is what `text` was resolved to.

    On a CPU one process per core. Of accelerators every one that `text` may mean has a process: `auto` and `cuda` all
    of them, `cuda:N` that one. jobs: so many processes instead, in turns.
    """
    devices = [device]
    if device.type == "cuda" and ":" not in text:
        devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    count = jobs or (cores if device.type == "cpu" else len(devices))
    return [devices[i % len(devices)] for i in range(count)]


def settle(device: torch.device) -> None:
    """Have this process work on a device, whatever does not say where it works."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def cpu_capability() -> str:
    """The instruction set that PyTorch uses on this CPU: `AVX2`, say. Initial weights are drawn with it everywhere."""
    return str(torch.backends.cpu.get_cpu_capability())


def accelerators() -> list[str]:
    """Names of the GPUs that PyTorch sees."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
