"""Facts about shipped datasets, available without loading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about one dataset.

    Attributes:
        shape: (C, H, W) of one image: channels, rows, columns.
        licence: the terms stated by the dataset's authors.
        files: the published files, by path in the data folder; empty if the package embeds the data.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train_size: int
    test_size: int
    licence: str
    source: str
    files: tuple[str, ...] = ()

    @property
    def embedded(self) -> bool:
        """True if the data are included in the package."""
        return not self.files


@dataclass(frozen=True)
class TextInfo:
    """Facts about a text dataset.

    Attributes:
        domains: the names of the domains, in their fixed order.
        size: the number of bytes in each domain.
        classes: the vocabulary size if tokens are bytes.
    """

    name: str
    domains: tuple[str, ...]
    size: int
    classes: int
    licence: str


_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

_SMALL_GREY = partial(DatasetInfo, classes=10, shape=(1, 28, 28), train_size=60_000, test_size=10_000)
_CIFAR = partial(
    DatasetInfo, shape=(3, 32, 32), train_size=50_000, test_size=10_000, licence="none stated; cite Krizhevsky 2009"
)
_KRIZHEVSKY = "Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html"

_INFOS = (
    _SMALL_GREY(
        name="mnist",
        licence="CC BY-SA 3.0",
        source="LeCun, Cortes & Burges; http://yann.lecun.com/exdb/mnist/",
    ),
    _SMALL_GREY(
        name="fashion-mnist",
        licence="MIT",
        source="Xiao, Rasul & Vollgraf 2017; https://github.com/zalandoresearch/fashion-mnist",
        files=tuple(f"FashionMNIST/raw/{file}" for file in _IDX_FILES),
    ),
    _SMALL_GREY(
        name="kmnist",
        licence="CC BY-SA 4.0",
        source="Clanuwat et al. 2018; http://codh.rois.ac.jp/kmnist/",
        files=tuple(f"KMNIST/raw/{file}" for file in _IDX_FILES),
    ),
    DatasetInfo(
        name="emnist",
        classes=47,
        shape=(1, 28, 28),
        train_size=112_800,
        test_size=18_800,
        licence="public domain (NIST Special Database 19)",
        source="Cohen et al. 2017; https://www.nist.gov/itl/products-and-services/emnist-dataset",
        files=("EMNIST/raw/gzip.zip",),
    ),
    _CIFAR(
        name="cifar10",
        classes=10,
        source=_KRIZHEVSKY,
        files=("cifar-10-python.tar.gz",),
    ),
    _CIFAR(
        name="cifar100",
        classes=100,
        source=_KRIZHEVSKY,
        files=("cifar-100-python.tar.gz",),
    ),
    DatasetInfo(
        name="svhn",
        classes=10,
        shape=(3, 32, 32),
        train_size=73_257,
        test_size=26_032,
        licence="non-commercial use only",
        source="Netzer et al. 2011; http://ufldl.stanford.edu/housenumbers/",
        files=("train_32x32.mat", "test_32x32.mat"),
    ),
)

FACTS: Mapping[str, DatasetInfo] = MappingProxyType({info.name: info for info in _INFOS})

TEXT_DOMAINS = TextInfo(
    name="text-domains",
    domains=("scripture", "glosses", "prose", "code"),
    size=1_200_000,
    classes=128,
    licence="public domain; WordNet 3.0; PSF version 2 (TEXT-LICENSE.md)",
)
TEXT_FILES = "text-files"
"""The name of the dataset kind for users' own texts."""
