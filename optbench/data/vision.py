"""Datasets in published files, read and downloaded by torchvision's dataset classes."""

from __future__ import annotations

import contextlib
import importlib
import io
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import numpy as np
import torch

from optbench.data.catalog import DatasetInfo
from optbench.data.dataset import Dataset, Split
from optbench.data.statistics import statistics
from optbench.errors import DataError

_TIMEOUT = 30.0  # seconds without data after which a download fails


@dataclass(frozen=True)
class _Source:
    """How to access a dataset through torchvision."""

    type_name: str
    checksums: Callable[[Any], list[str]]
    """Function from torchvision's class to the MD5 checksum of each of `DatasetInfo.files`."""
    arrays: Callable[[Any], tuple[Any, Any]]
    """Function from a torchvision dataset to its images (N, C, H, W) and labels (N,), as NumPy arrays or lists."""
    unpacked: tuple[str, ...] = ()
    """The paths in the data folder to which torchvision unpacks the files."""
    train: Mapping[str, Any] = field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = field(default_factory=lambda: {"train": False})


def _unpacked_idx(folder: str, train: str = "train", test: str = "t10k") -> tuple[str, ...]:
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return tuple(f"{folder}/raw/{part}-{kind}" for part in (train, test) for kind in kinds)


def _idx_source(type_name: str) -> _Source:
    return _Source(
        type_name,
        checksums=lambda kind: [checksum for _, checksum in kind.resources],
        arrays=lambda instance: (instance.data.unsqueeze(1).numpy(), instance.targets.numpy()),
        unpacked=_unpacked_idx(type_name),
    )


def _cifar_source(type_name: str, folder: str) -> _Source:
    return _Source(
        type_name,
        checksums=lambda kind: [kind.tgz_md5],
        arrays=lambda instance: (instance.data.transpose(0, 3, 1, 2), instance.targets),
        unpacked=(folder,),
    )


_SOURCES = {
    "fashion-mnist": _idx_source("FashionMNIST"),
    "kmnist": _idx_source("KMNIST"),
    "emnist": _Source(
        "EMNIST",
        train={"split": "balanced", "train": True},
        test={"split": "balanced", "train": False},
        checksums=lambda kind: [kind.md5],
        # EMNIST's files store images column by column; transposing makes them upright, as in MNIST
        arrays=lambda instance: (instance.data.mT.unsqueeze(1).numpy(), instance.targets.numpy()),
        unpacked=_unpacked_idx("EMNIST", "emnist-balanced-train", "emnist-balanced-test"),
    ),
    "cifar10": _cifar_source("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _cifar_source("CIFAR100", "cifar-100-python"),
    "svhn": _Source(
        "SVHN",
        train={"split": "train"},
        test={"split": "test"},
        checksums=lambda kind: [kind.split_list[split][2] for split in ("train", "test")],
        arrays=lambda instance: (instance.data, instance.labels),
    ),
}


def load_published(
    info: DatasetInfo, folder: Path, download: bool = True, notify: Callable[[str], None] | None = None
) -> Dataset:
    """Load a catalogued dataset from its published files in `folder`.

    Published archives in `folder` are unpacked even if `download` is False. The progress of a download is shown on
    standard error if `notify` is given and standard error is a terminal.

    Raises:
        DataError: files are missing and cannot be obtained, or are damaged. The message names the required files and
            their folder.
    """
    source = _SOURCES[info.name]
    datasets = torchvision_datasets()
    # Parsers of third-party files can raise nearly any exception (RuntimeError, AssertionError, UnpicklingError, ...).
    # Here it always means that files are missing or damaged; it stays attached as the cause.
    try:
        return _read(info, source, datasets, folder, fetch=False)
    except Exception as error:
        if not download and not _archives_complete(info, source, datasets, folder):
            raise _not_available(info, source, folder, error, tried=False) from error
    if notify is not None:
        notify(f"{info.name}: incomplete in {folder}; downloading and unpacking the missing files")
    try:
        with _progress(visible=notify is not None):
            return _read(info, source, datasets, folder, fetch=True)
    except Exception as error:
        raise _not_available(info, source, folder, error, tried=download) from error


def torchvision_datasets() -> ModuleType:
    """Import `torchvision.datasets`, even if torchvision was built for a different build of torch.

    With a CPU build of torch, a CUDA build of torchvision cannot load its compiled operators, and importing it fails
    at the first operator that it registers. The dataset classes do not use these operators.

    Raises:
        DataError: torchvision is not installed, or cannot be imported for another reason.
    """
    name = "torchvision.datasets"
    try:
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if "operator torchvision::nms does not exist" not in str(error):
                raise
            for operator in ("torchvision::nms", "torchvision::qnms"):
                torch.library.define(operator, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        raise DataError(f"torchvision, which reads this dataset, cannot be imported ({_line(error)})") from error


def _read(info: DatasetInfo, source: _Source, datasets: ModuleType, folder: Path, fetch: bool) -> Dataset:
    kind = getattr(datasets, source.type_name)
    splits = []
    for arguments, size in ((source.train, info.train_size), (source.test, info.test_size)):
        with warnings.catch_warnings():
            # CIFAR's pickles encode a dtype's flag as 0, about which NumPy 2.4.0 to 2.4.4 warn (numpy/numpy#31177)
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            instance = kind(root=str(folder), download=fetch, **arguments)
        splits.append(_split(*source.arrays(instance), info, size))
    train, test = splits
    mean, std = statistics(train.inputs)
    return Dataset(info.name, train, test, info.classes, mean, std)


def _split(images: Any, labels: Any, info: DatasetInfo, size: int) -> Split:
    """Convert arrays to tensors with their own memory; raise ValueError if they do not match the catalogue."""
    pixels = torch.from_numpy(np.array(images, dtype=np.uint8, order="C"))
    classes = torch.from_numpy(np.array(labels, dtype=np.int64))
    arrived, needed = [(tuple(pixels.shape), tuple(classes.shape)), ((size, *info.shape), (size,))]
    if arrived != needed:
        said = [f"{images} images and {labels} labels" for images, labels in (needed, arrived)]
        raise ValueError(f"expected {said[0]}, got {said[1]}")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= info.classes:
        raise ValueError(f"expected labels in 0..{info.classes - 1}, got {low}..{high}")
    return Split(pixels, classes)


def _archives_complete(info: DatasetInfo, source: _Source, datasets: ModuleType, folder: Path) -> bool:
    """Return whether every published file exists with the correct checksum; if so, unpacking needs no network."""
    checksums = source.checksums(getattr(datasets, source.type_name))
    return all(
        datasets.utils.check_integrity(str(folder / file), checksum)
        for file, checksum in zip(info.files, checksums, strict=True)
    )


def _not_available(info: DatasetInfo, source: _Source, folder: Path, error: Exception, tried: bool) -> DataError:
    place = folder / PurePath(info.files[0]).parent
    wanted = ", ".join(PurePath(file).name for file in info.files)
    found = any((folder / file).exists() for file in (*info.files, *source.unpacked))
    if found:
        problem = f"the files in {place} are incomplete or damaged ({_line(error)}); replace them with"
    elif tried:
        problem = f"not found in {place}, and cannot be downloaded ({_line(error)}); put these files there:"
    else:
        problem = f"not found in {place}; put these files there:"
    return DataError(f"dataset {info.name}: {problem} {wanted}")


@contextlib.contextmanager
def _progress(visible: bool) -> Iterator[None]:
    """Send torchvision's messages and progress bars to standard error if it is a terminal, else discard them.

    Also set a network timeout, because torchvision sets none.
    """
    stream = sys.stderr if visible and sys.stderr.isatty() else io.StringIO()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield
    finally:
        socket.setdefaulttimeout(timeout)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
