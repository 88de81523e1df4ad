"""Detection of differences between the main process and a worker on another machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path

from optbench.errors import DeviceError
from optbench.execution.messages import Job
from optbench.targets import TargetError, is_file, is_object, is_text, read_source

INSTRUCTIONS = "CPU instructions"


@functools.cache
def versions() -> dict[str, str]:
    """Return, by name, the versions of torch and optbench, which must agree between processes.

    The version of optbench includes a hash of its source. Does not import torch.
    """
    return {"torch": _version("torch"), "optbench": f"{_version('optbench')} (source {_source()})"}


def made_with() -> dict[str, str]:
    """Return `versions` and the CPU instructions that torch uses. Imports torch.

    A worker with other CPU instructions is accepted, but its trials get a note.
    """
    from optbench.engine.device import cpu_capability

    return {**versions(), INSTRUCTIONS: cpu_capability()}


def differences(expected: Mapping[str, str]) -> list[str]:
    """Return notes for trials trained by this process: one per entry of `made_with` that differs from `expected`."""
    return [
        f"trained with {name} {now}; the main process has {expected[name]}"
        for name, now in made_with().items()
        if name in expected and now != expected[name]
    ]


def refusal(found: Mapping[str, str], host: str) -> str | None:
    """Return why a worker with the versions `found` must not train for this process; None if it may.

    Different builds of the same version of torch (`+cpu`, `+cu126`) are accepted, because the main process's machine
    often has no GPU.
    """
    for name, expected in versions().items():
        if _public(expected) != _public(now := found.get(name, "none")):
            return f"{name} on {host}: expected {expected}, got {now}; --force trains anyway and adds notes to trials"
    return None


def unlike(job: Job) -> str | None:
    """Return how an installed package that the run uses differs from the main process's copy; None if none differs.

    Before the comparison, users' modules that were sent with the job are written to a folder and made importable.
    """
    assert job.elsewhere is not None
    folder = job.interim.parent / "modules"
    for where, source in job.sources.items():
        if not (source.is_installed or is_file(where) or is_text(where) or is_object(where)):
            for name, content in source.files.items():
                (folder / source.hash / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / source.hash / name).write_bytes(content)
            sys.path.append(str(folder / source.hash))  # last, like the working directory
    for target, expected in job.elsewhere.installed.items():
        try:
            found = read_source(target)
        except TargetError as error:
            return str(error)
        if found is None or found.hash != expected:
            return f"{target}: expected source hash {expected}, got {'none' if found is None else found.hash}"
    return None


def unavailable(device: str) -> str | None:
    """Return why PyTorch cannot use a device in this process; None if it can. Imports torch."""
    from optbench.engine.device import resolve

    try:
        resolve(device)
    except DeviceError as error:
        return str(error)
    return None


def _public(version: str) -> str:
    first, *more = version.split(" ", 1)
    return " ".join([first.partition("+")[0], *more])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _source() -> str:
    """Return a hash of the package's modules, to distinguish different code with the same version number."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode())
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:8]
