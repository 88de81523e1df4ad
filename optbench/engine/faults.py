"""The distinction between errors caused by the machine and errors in optimizers and models."""

from __future__ import annotations

import torch

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory", "could not create a memory object")


class ModelError(Exception):
    """A user's model raised `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory is exhausted. On a CPU, this is recognised from the error message."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def is_broken_device(error: Exception) -> bool:
    """Return whether an error means that this process can no longer use its CUDA device, e.g. after a kernel error."""
    return isinstance(error, RuntimeError) and speaks_of_broken_device(str(error))


def speaks_of_broken_device(message: str) -> bool:
    """Return whether an error message indicates a broken device. Failed CUDA graph captures do not count."""
    return "CUDA error" in message and "captur" not in message


def of_the_machine(error: Exception) -> bool:
    """Return whether an error affects the whole cohort and may not recur in a smaller cohort or in another process."""
    return is_out_of_memory(error) or is_broken_device(error)
