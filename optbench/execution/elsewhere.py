"""What may differ between the run's own process and a worker on another machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path

from optbench.execution.messages import Job
from optbench.targets import TargetError, is_file, is_object, is_text, read_source

INSTRUCTIONS = "CPU instructions"


@functools.cache
def versions() -> dict[str, str]:
    """What a worker is refused for, by name: torch, and optbench with a hash of its source. Imports no torch."""
    return {"torch": _version("torch"), "optbench": f"{_version('optbench')} (source {_source()})"}


def made_with() -> dict[str, str]:
    """`versions`, and what is only said of trials: imports torch."""
    from optbench.engine.device import cpu_capability

    return {**versions(), INSTRUCTIONS: cpu_capability()}


def differences(expected: Mapping[str, str]) -> list[str]:
    """What is to be said of trials that are made by this process, where `made_with` is not as expected."""
    return [
        f"trained with {name} {now}, and the run's own process has {expected[name]}"
        for name, now in made_with().items()
        if name in expected and now != expected[name]
    ]


def refusal(found: Mapping[str, str], host: str) -> str | None:
    """Return why a worker with these versions must not train for this process; None if it may.

    Builds of one version of torch (`+cpu`, `+cu126`) may differ: the machine that hands out work often has no GPU.
    """
    for name, expected in versions().items():
        if _public(expected) != _public(now := found.get(name, "none")):
            return f"{name} on {host}: expected {expected}, got {now}; --force trains all the same, and trials say so"
    return None


def unlike(job: Job) -> str | None:
    """Return what a run uses of installed packages that is another source here than there; None: nothing.

    Modules of the user's own that came with the job are made importable first, next to its states.
    """
    assert job.elsewhere is not None
    folder = job.interim.parent / "modules"
    for where, source in job.sources.items():
        if not (source.is_installed or is_file(where) or is_text(where) or is_object(where)):
            for name, content in source.files.items():
                (folder / source.hash / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / source.hash / name).write_bytes(content)
            sys.path.append(str(folder / source.hash))  # last, as the working directory is
    for target, expected in job.elsewhere.installed.items():
        try:
            found = read_source(target)
        except TargetError as error:
            return str(error)
        if found is None or found.hash != expected:
            return f"{target}: expected source {expected}, got {'none' if found is None else found.hash}"
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
    """A hash of the package's own modules: versions in development share their number."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode())
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:8]
