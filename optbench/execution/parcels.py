"""Data sent to workers on other machines, with hashes that are checked on arrival.

The data are jobs, which include the users' code; datasets; and units of work, with the saved states or final weights
that they use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.data import load
from optbench.data.settings import DatasetSettings
from optbench.execution.elsewhere import made_with
from optbench.execution.messages import Compare, Elsewhere, Job, Train, Unit
from optbench.store.interim import Begun, find_holding
from optbench.suite.schema import ExperimentSettings
from optbench.targets import split

INTERIM, WEIGHTS = "interim", "weights"
"""Folders, below the worker's own folder, for files that are sent with a unit."""


class DamagedError(Exception):
    """Data were damaged in transit."""


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def unpickled(content: bytes) -> Any:
    """Unpickle bytes made by `pickled`. Unpickling may execute code, so use this only for data of the same run.

    Raises:
        DamagedError: `content` cannot be unpickled.
    """
    try:
        return pickle.loads(content)
    except Exception as error:
        raise DamagedError(f"cannot be unpickled: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Parcel:
    """Pickled data. sum: the SHA-256 hash of the bytes. content: the bytes, or the backend's reference to them."""

    sum: str
    content: Any

    @staticmethod
    def of(content: bytes) -> Parcel:
        return Parcel(hashlib.sha256(content).hexdigest(), content)

    def checked(self, content: bytes) -> bytes:
        """Return the received bytes `content`. Raises DamagedError if they differ from the bytes that were sent."""
        if (found := hashlib.sha256(content).hexdigest()) != self.sum:
            raise DamagedError(f"arrived damaged: expected SHA-256 {self.sum[:16]}..., got {found[:16]}...")
        return content


@dataclass(frozen=True)
class _Packed:
    """A unit with relative paths, and the files at these paths."""

    unit: Unit
    files: Mapping[str, bytes]


def pack(unit: Unit, interim: Path) -> bytes:
    """Pack a unit with the files that it reads. interim: the folder with the saved states of cohorts."""
    files: dict[str, bytes] = {}

    def take(place: str, file: Path) -> None:
        with contextlib.suppress(OSError):  # the worker reports a missing file when it reads it
            files[place] = file.read_bytes()

    if isinstance(unit, Train):
        for part in find_holding(interim, [trial.id for trial in unit.cohort.trials]):
            for file in part.iterdir():
                take(f"{INTERIM}/{part.name}/{file.name}", file)
        begun = {trial: Begun(Path(INTERIM, place.part.name), place.task) for trial, place in unit.begun.items()}
        return pickled(_Packed(dataclasses.replace(unit, begun=begun), files))
    places = {trial: Path(WEIGHTS, f"{i}.safetensors") for i, trial in enumerate(unit.places)}
    for trial, place in places.items():
        take(place.as_posix(), unit.places[trial])
    return pickled(_Packed(dataclasses.replace(unit, places=places), files))


def unpack(content: bytes, folder: Path) -> Unit:
    """Unpack a unit, and write its files below `folder`."""
    packed: _Packed = unpickled(content)
    for name, data in packed.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if isinstance(unit := packed.unit, Compare):
        return dataclasses.replace(unit, places={trial: folder / place for trial, place in unit.places.items()})
    begun = {trial: Begun(folder / place.part, place.task) for trial, place in unit.begun.items()}
    return dataclasses.replace(unit, begun=begun)


def job_for_elsewhere(job: Job, units: Iterable[Unit], *, force: bool) -> Job:
    """Return a copy of the job for workers on other machines, with an `Elsewhere` and without this machine's paths."""
    targets = {
        target
        for unit in units
        for trial in (unit.cohort.trials if isinstance(unit, Train) else unit.comparison.trials)
        for target in trial.user_files
    }
    known = {target: job.sources.get(split(target)[0]) for target in sorted(targets)}
    installed = {target: source.hash for target, source in known.items() if source is not None and source.is_installed}
    return dataclasses.replace(
        job, data_dir=None, interim=Path(INTERIM), elsewhere=Elsewhere(made_with(), installed, force)
    )


def datasets(experiment: ExperimentSettings) -> dict[str, DatasetSettings]:
    """Return the settings of an experiment's datasets, by the keys under which the datasets are sent."""
    found = (experiment.dataset, experiment.transfer)
    return {settings.model_dump_json(): settings for settings in found if settings is not None}


def packed_dataset(settings: DatasetSettings, data_dir: Path | None) -> bytes:
    """Load and pickle a dataset whose files already exist on this machine."""
    return pickled(load(settings, data_dir, download=False))
