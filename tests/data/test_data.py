"""Datasets: the embedded MNIST against the original, and others from tiny files in the published formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
import scipy.io
import torch
from pydantic import ValidationError

from optbench.data import FACTS, Dataset, data_folder, load
from optbench.data.mnist import SHA256, embedded_mnist
from optbench.data.settings import DERIVED, MODULAR_ADDITION, DatasetSettings
from optbench.data.statistics import statistics
from optbench.data.vision import torchvision_datasets
from optbench.errors import DataError, KindError
from optbench.kinds import DATASETS

TRAIN, TEST = 15, 6
PUBLISHED = [name for name, info in FACTS.items() if not info.embedded]


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return embedded_mnist()


# --- the embedded MNIST ---


@pytest.mark.parametrize("name", SHA256)
def test_embedded_mnist_equals_the_original_byte_for_byte(mnist: Dataset, name: str) -> None:
    split = mnist.train if name.startswith("train") else mnist.test
    data = split.inputs[:, 0] if "images" in name else split.targets.to(torch.uint8)
    header = bytes([0, 0, 8, data.ndim]) + b"".join(side.to_bytes(4, "big") for side in data.shape)
    assert hashlib.sha256(header + data.numpy().tobytes()).hexdigest() == SHA256[name]


def test_embedded_mnist_has_the_documented_form(mnist: Dataset) -> None:
    assert mnist.inputs.shape == (1, 28, 28)
    assert mnist.classes == 10
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    for split in (mnist.train, mnist.test):
        assert split.inputs.dtype == torch.uint8
        assert split.targets.dtype == torch.int64
        assert split.inputs.is_contiguous()
    assert mnist.train.targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_embedded_mnist_constants_are_the_statistics_of_its_pixels(mnist: Dataset) -> None:
    assert statistics(mnist.train.inputs) == (mnist.mean, mnist.std)


def test_modifying_a_loaded_copy_does_not_affect_the_next(mnist: Dataset) -> None:
    fresh = embedded_mnist()
    fresh.train.inputs.zero_()
    assert int(embedded_mnist().train.inputs.max()) == 255
    assert int(mnist.train.inputs.max()) == 255


def test_the_package_data_is_small() -> None:
    folder = Path(sys.modules["optbench.data"].__file__ or "").parent
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.suffix in {".parquet", ".md"}}
    assert sizes.pop("text.parquet") < 2_000_000
    assert sum(sizes.values()) < 10_000_000


def test_a_damaged_embedded_file_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mnist.parquet").write_bytes(b"PAR1 but not really")
    monkeypatch.setattr("optbench.data.mnist.files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"^the embedded MNIST cannot be read; reinstall optbench"):
        load("mnist")


# --- the catalogue and the folder ---


def test_the_catalogue_does_not_import_torch() -> None:
    code = "import sys, optbench.data; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(KindError, match="unknown dataset 'mnits'; did you mean 'mnist'"):
        load("mnits")


def test_the_data_folder_is_the_argument_or_the_environment_variable_or_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPTBENCH_DATA", str(tmp_path / "named"))
    assert data_folder(tmp_path / "given") == tmp_path / "given"
    assert data_folder() == tmp_path / "named"
    monkeypatch.setenv("OPTBENCH_DATA", "")
    assert data_folder() == tmp_path / ".cache" / "optbench" / "data"


def test_statistics_agree_with_numpy_over_a_chunk_boundary() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2050, 3, 2, 2), dtype=np.uint8))
    mean, std = statistics(images)
    scaled = images.numpy() / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), atol=5.1e-5)


# --- published files: the files that authors publish, reduced to 15 and 6 images ---


def contents(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images (N, C, H, W) and labels (N,) of both splits, as `load` should return them."""
    info = FACTS[name]
    draw = np.random.default_rng(sum(name.encode()))
    return {
        split: (
            draw.integers(0, 256, (size, *info.shape), dtype=np.uint8),
            # Not every class fits into 15 images; the first and the last do.
            np.linspace(0, info.classes - 1, size).astype(np.int64),
        )
        for split, size in (("train", TRAIN), ("test", TEST))
    }


def idx_gz(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def old_pickle(value: object) -> bytes:
    """Return a pickle with dtypes as written by NumPy when CIFAR was published: flags are 0 and 1, not booleans."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=2)
    pickler.dispatch_table = {type(np.dtype("u1")): lambda dtype: (np.dtype, ("u1", 0, 1), dtype.__reduce__()[2])}
    pickler.dump(value)
    return buffer.getvalue()


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def publication(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return the published files of a dataset by their path in the data folder; patch torchvision's checksums."""
    data = contents(name)
    datasets = torchvision_datasets()
    if name in {"fashion-mnist", "kmnist"}:
        kind = {"fashion-mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[name]
        files = {}
        for prefix, split in (("train", "train"), ("t10k", "test")):
            images, labels = data[split]
            files[f"{prefix}-images-idx3-ubyte.gz"] = idx_gz(images[:, 0])
            files[f"{prefix}-labels-idx1-ubyte.gz"] = idx_gz(labels)
        monkeypatch.setattr(kind, "resources", [(file, md5(content)) for file, content in files.items()])
        return {f"{kind.__name__}/raw/{file}": content for file, content in files.items()}
    if name == "emnist":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for split, (images, labels) in data.items():
                prefix = f"gzip/emnist-balanced-{split}"
                # Column by column, as in EMNIST.
                archive.writestr(f"{prefix}-images-idx3-ubyte.gz", idx_gz(images[:, 0].transpose(0, 2, 1)))
                archive.writestr(f"{prefix}-labels-idx1-ubyte.gz", idx_gz(labels))
        monkeypatch.setattr(datasets.EMNIST, "md5", md5(buffer.getvalue()))
        return {"EMNIST/raw/gzip.zip": buffer.getvalue()}
    if name in {"cifar10", "cifar100"}:
        kind, key = {"cifar10": (datasets.CIFAR10, "labels"), "cifar100": (datasets.CIFAR100, "fine_labels")}[name]
        batches: dict[str, bytes] = {}
        for split, table in (("train", kind.train_list), ("test", kind.test_list)):
            images, labels = data[split]
            for i, (file, _) in enumerate(table):
                rows = np.array_split(np.arange(len(images)), len(table))[i]
                batch = {"data": images[rows].reshape(len(rows), -1), key: labels[rows].tolist()}
                batches[file] = old_pickle(batch)
            monkeypatch.setattr(kind, f"{split}_list", [[file, md5(batches[file])] for file, _ in table])
        meta = pickle.dumps({kind.meta["key"]: [str(i) for i in range(FACTS[name].classes)]}, protocol=2)
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
        batches[kind.meta["filename"]] = meta
        archive_bytes = tar_gz({f"{kind.base_folder}/{file}": content for file, content in batches.items()})
        monkeypatch.setattr(kind, "tgz_md5", md5(archive_bytes))
        return {kind.filename: archive_bytes}
    assert name == "svhn"
    files = {}
    table = {}
    for split, (images, labels) in data.items():
        buffer = io.BytesIO()
        # Axes are rows, columns, channels, images, and the digit 0 has label 10.
        ten = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        scipy.io.savemat(buffer, {"X": images.transpose(2, 3, 1, 0), "y": ten})
        file = f"{split}_32x32.mat"
        files[file] = buffer.getvalue()
        table[split] = [f"http://svhn.test/{file}", file, md5(files[file])]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    return files


def put(files: dict[str, bytes], folder: Path) -> None:
    for place, content in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)


class Response(io.BytesIO):
    """A response of `urlopen`."""

    def __init__(self, url: str, content: bytes) -> None:
        super().__init__(content)
        self.url = url
        self.length = len(content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Block the network; return the list of requested addresses."""
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, *_: object, **__: object) -> Response:
        asked.append(request.full_url)
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the catalogue of `load` expect 15 and 6 images of the published datasets."""
    infos = {
        name: info if info.embedded else replace(info, train_size=TRAIN, test_size=TEST) for name, info in FACTS.items()
    }
    monkeypatch.setattr("optbench.data.shipped.FACTS", infos)


def assert_holds(dataset: Dataset, name: str) -> None:
    info = FACTS[name]
    assert (dataset.name, dataset.classes, dataset.inputs.shape) == (name, info.classes, info.shape)
    for split, (images, labels) in contents(name).items():
        found = getattr(dataset, split)
        np.testing.assert_array_equal(found.inputs.numpy(), images)
        np.testing.assert_array_equal(found.targets.numpy(), labels)
        assert found.inputs.is_contiguous()
        assert found.targets.dtype == torch.int64
    assert (dataset.mean, dataset.std) == statistics(dataset.train.inputs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_are_unpacked_and_read_without_the_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
) -> None:
    put(publication(name, monkeypatch), tmp_path)
    assert_holds(load(name, tmp_path, download=False), name)
    assert_holds(load(name, tmp_path), name)
    assert offline == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_catalogue_names_the_published_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(FACTS[name].files) == sorted(publication(name, monkeypatch))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("download", [True, False])
def test_missing_files_are_named_with_their_folder_in_one_line(
    name: str, download: bool, tmp_path: Path, offline: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        load(name, tmp_path, download=download)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"dataset {name}: not found in {(tmp_path / FACTS[name].files[0]).parent}")
    assert all(file.rpartition("/")[2] in message for file in FACTS[name].files)
    assert ("Temporary failure in name resolution" in message) == download
    assert bool(offline) == download


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "svhn"])
def test_a_download_is_announced_and_prints_nothing_to_standard_output(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    served = {Path(place).name: content for place, content in publication(name, monkeypatch).items()}
    monkeypatch.setattr(
        urllib.request,
        "urlopen",
        lambda request, *_, **__: Response(request.full_url, served[request.full_url.rpartition("/")[2]]),
    )
    told: list[str] = []
    assert_holds(load(name, tmp_path / "new" / "folder", notify=told.append), name)
    assert told == [f"{name}: incomplete in {tmp_path / 'new' / 'folder'}; downloading and unpacking the missing files"]
    # Neither stream is a terminal here, so there is no progress bar.
    assert capfd.readouterr() == ("", "")
    told.clear()
    load(name, tmp_path / "new" / "folder", notify=told.append)
    assert told == []


def test_progress_is_shown_only_on_a_terminal_with_messages_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    served = publication("svhn", monkeypatch)
    monkeypatch.setattr(
        urllib.request,
        "urlopen",
        lambda request, *_, **__: Response(request.full_url, served[request.full_url.rpartition("/")[2]]),
    )
    shown = {}
    for case, notify in (("told", [].append), ("silent", None)):
        terminal, output = Terminal(), io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            patch.setattr(sys, "stdout", output)
            load("svhn", tmp_path / case, notify=notify)
        assert output.getvalue() == ""
        shown[case] = terminal.getvalue()
    assert "%" in shown["told"]
    assert shown["silent"] == ""


@pytest.mark.parametrize("name", PUBLISHED)
def test_damaged_files_are_reported_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    put({place: content[:-9] for place, content in publication(name, monkeypatch).items()}, tmp_path)
    for download in (True, False):
        with pytest.raises(DataError, match=r"incomplete or damaged \(.+\); replace them with ") as caught:
            load(name, tmp_path, download=download)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("unpacked", "content", "reason"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0\0\x0f\0\0\0\x1c\0\0\0\x1c\0\0", "invalid for input of size 2"),
        ("train-images-idx3-ubyte", b"", "damaged"),
        ("t10k-labels-idx1-ubyte", gzip.decompress(idx_gz(np.zeros(5))), r"\(6,\) labels, got"),
        ("t10k-labels-idx1-ubyte", gzip.decompress(idx_gz(np.full(6, 10))), r"expected labels in 0\.\.9, got 10\.\.10"),
    ],
    ids=["cut short", "empty", "too few labels", "label outside the classes"],
)
def test_unpacked_files_that_are_not_the_dataset_are_refused(
    unpacked: str, content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(publication("fashion-mnist", monkeypatch), tmp_path)
    load("fashion-mnist", tmp_path)
    (tmp_path / "FashionMNIST" / "raw" / unpacked).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        load("fashion-mnist", tmp_path)


def test_the_warning_of_numpy_2_4_about_old_pickles_is_suppressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only NumPy 2.4.0 to 2.4.4 warn; here every version is made to, and warnings are errors in these tests.
    unpickle = pickle.load

    def load_with_warning(file: io.BufferedReader, **options: str) -> object:
        message = "dtype(): align should be passed as Python or NumPy boolean but got `align=0`."
        warnings.warn(message, np.exceptions.VisibleDeprecationWarning, stacklevel=2)
        return unpickle(file, **options)

    put(publication("cifar10", monkeypatch), tmp_path)
    monkeypatch.setattr(pickle, "load", load_with_warning)
    assert_holds(load("cifar10", tmp_path), "cifar10")


def test_a_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be downloaded"):
        load("fashion-mnist", tmp_path / "file" / "data")


def test_an_unusable_torchvision_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match="torchvision, which reads this dataset, cannot be imported"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name", FACTS)
def test_a_shipped_dataset_is_a_function_like_a_users(name: str) -> None:
    assert list(DATASETS.names) == [*FACTS, "text-domains", "text-files", MODULAR_ADDITION, *DERIVED]
    assert list(DATASETS.settings(name).model_fields) == ["resize"]
    assert DATASETS.load(name).__annotations__["return"] == "Dataset"


def test_a_shipped_dataset_can_be_named_as_a_target(mnist: Dataset) -> None:
    found = load(DatasetSettings.of("optbench.data.shipped:mnist"))
    assert torch.equal(found.train.inputs, mnist.train.inputs)


def test_pooled_images_are_rounded_means_of_blocks_with_recomputed_statistics() -> None:
    whole, pooled = load("mnist"), load(DatasetSettings.of("mnist", resize=14))
    assert pooled.inputs.shape == (1, 14, 14)
    for half, small in ((whole.train, pooled.train), (whole.test, pooled.test)):
        means = torch.nn.functional.avg_pool2d(half.inputs[-500:].double(), 2)
        assert small.inputs.dtype == torch.uint8
        assert torch.equal(small.inputs[-500:].double(), (means + 0.5).floor())
        assert torch.equal(small.targets, half.targets)
    scaled = pooled.train.inputs.double() / 255
    assert pooled.mean == pytest.approx((scaled.mean().item(),), abs=1e-4)
    assert pooled.std == pytest.approx((scaled.std(correction=0).item(),), abs=1e-4)


def test_without_resize_a_dataset_is_written_as_its_name() -> None:
    assert DatasetSettings.of("mnist", resize=None).model_dump() == "mnist"
    assert DatasetSettings.of("mnist", resize=7).model_dump() == {"kind": "mnist", "resize": 7}


@pytest.mark.parametrize("side", [13, 56])
def test_a_side_that_does_not_divide_the_image_is_refused_with_valid_sides(side: int) -> None:
    with pytest.raises(ValidationError, match=r"resize: expected a divisor of the image side 28 \(.*7, 14, 28\), got"):
        DatasetSettings.of("mnist", resize=side)
