"""Atomic writing of files (temporary name, flush to disk, rename), so that a reader never sees a partial file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from optbench.errors import StoreError
from optbench.file_names import file_name


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Convert an OSError or SafetensorError raised in the block to a one-line StoreError about `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot write: {reason(error)}") from error


def reason(error: OSError | SafetensorError) -> str:
    """Return the operating system's message, such as `No space left on device`, without the text that libraries add.

    Arrow and safetensors, which write files themselves, embed the system's message in their own.
    """
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else told and int(told[1])
    return os.strerror(number) if number else str(error)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path next to `path`, flush the file to disk and rename it to `path`.

    Raises:
        StoreError: the file cannot be written.
    """
    if not path.name:  # `/` or `.`
        raise StoreError(f"{path}: cannot write: {os.strerror(errno.EISDIR)}")
    # Shortened, because the file's own name may already have the maximum length.
    temporary = path.with_name(f".{file_name([path.name])}.{os.getpid()}.tmp")
    with reported(path):
        try:
            write(temporary)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON that can be written as UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A folder's name may contain undecodable bytes; their surrogates are written as JSON escapes.
    return text.encode(errors="backslashreplace").decode()


def json_value(file: Path, most: int, what: str) -> Any:
    """Read the JSON value of a file.

    most: the size limit in bytes. what: the kind of file, for the message if the file is too large.

    Raises:
        StoreError: the file cannot be read, is too large, or is not JSON.
        FileNotFoundError: the file does not exist.
    """
    try:
        if file.stat().st_size > most:
            raise StoreError(f"{file}: unreadable: larger than {most >> 20} MiB, more than any {what}")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise StoreError(f"{file}: unreadable: nested too deeply") from None
    except OSError as error:
        raise StoreError(f"{file}: unreadable: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{file}: unreadable: {error}") from error


def sync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
