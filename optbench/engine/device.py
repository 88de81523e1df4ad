"""The devices of a run."""

from __future__ import annotations

import os

import torch

from optbench.errors import DeviceError

KINDS = ("auto", "cpu", "cuda", "mps")


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve(text: str) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda`, `cuda:N` or `mps` to a device; `auto` prefers CUDA to MPS and MPS to the CPU.

    Raises:
        DeviceError: the device is unknown, or not available on this machine or in this build of PyTorch.
    """
    kind, _, index = text.partition(":")
    if kind not in KINDS or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"--device: expected auto, cpu, cuda, cuda:N or mps, got {text or 'nothing'}")
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
            there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise DeviceError(f"--device {text}: expected {there}, got cuda:{index}")
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"--device {text}: PyTorch {torch.__version__} finds no Metal device")
    return torch.device(kind)


def worker_devices(text: str, device: torch.device, jobs: int | None, cores: int) -> list[torch.device]:
    """Return the device of every worker process.

    By default there is one process per core on a CPU, one per GPU on CUDA unless `text` names one GPU (`cuda:N`), and
    one process on MPS.

    text: the device as requested. device: the device resolved from `text`.
    jobs: the number of processes, to which devices are assigned in turn; None for the default.
    """
    devices = [device]
    if device.type == "cuda" and ":" not in text:
        devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    count = jobs or (cores if device.type == "cpu" else len(devices))
    return [devices[i % len(devices)] for i in range(count)]


def settle(device: torch.device) -> None:
    """Make a CUDA device the current device of this process; do nothing for other devices."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def cpu_capability() -> str:
    """Return the instruction set that PyTorch uses on this CPU, such as `AVX2`.

    Initial weights are drawn on the CPU with this instruction set, regardless of the device of the run.
    """
    return str(torch.backends.cpu.get_cpu_capability())


def accelerators() -> list[str]:
    """Return the names of the CUDA devices visible to PyTorch."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
