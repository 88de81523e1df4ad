"""Errors of the machine, which are the fault of no optimizer and no member."""

from __future__ import annotations

import torch

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory", "could not create a memory object")


class ModelError(Exception):
    """A user's model raised `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class of its own for it on accelerators only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def is_broken_device(error: Exception) -> bool:
    """After an error in a kernel every call of a process to its CUDA device fails."""
    return isinstance(error, RuntimeError) and speaks_of_broken_device(str(error))


def speaks_of_broken_device(message: str) -> bool:
    """Whether an error of this text is one; not where something could not be recorded."""
    return "CUDA error" in message and "captur" not in message


def of_the_machine(error: Exception) -> bool:
    """Whether it is raised for the whole cohort, wherever it came up: in less company, or another process, all may be
    well."""
    return is_out_of_memory(error) or is_broken_device(error)
