"""The selection of a run's backend, as named by `--on`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optbench.errors import DeviceError, UsageError, unknown
from optbench.execution.backend import Backend

LOCAL, RAY, SLURM = "local", "ray", "slurm"
PLACES = (LOCAL, RAY, SLURM)
ADDRESS = re.compile(r"(ray://)?[^/\s]+:\d{1,5}")
EXTRAS = {RAY: ("ray", "Ray"), SLURM: ("submitit", "submitit")}
"""For each cluster backend, the module that it needs and the name of the module's package. The extra of optbench that
installs the package has the backend's name."""


@dataclass(frozen=True)
class Place:
    """The place where a run trains, as given by `--on` and `--set-on`.

    Attributes:
        name: the name of the backend.
        address: the address of the cluster to join, or None.
        settings: the backend's settings, by name.
    """

    name: str
    address: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str, settings: Sequence[str] = ()) -> Place:
        """Parse `local`, `ray`, `ray:HOST:PORT` or `slurm`, and check that the backend's package is installed.

        The package is not imported. settings: texts of the form `name=value`.

        Raises:
            UsageError: there is no such backend, its package is not installed, the address or a setting is malformed,
                or an address or settings are given for a backend that has none.
        """
        name, colon, address = text.partition(":")
        if name not in PLACES:
            raise UsageError(f"--on {text}: {unknown('backend', name, PLACES)}")
        if colon and (name != RAY or not ADDRESS.fullmatch(address)):
            raise UsageError(f"--on {text}: expected {'ray:HOST:PORT' if name == RAY else name}, got {text}")
        if name in EXTRAS and not is_installed(EXTRAS[name][0]):
            package = EXTRAS[name][1]
            raise UsageError(f"--on {text}: {package} is not installed: pip install 'optbench[{name}]'")
        if settings and name != SLURM:
            raise UsageError(f"--set-on {settings[0]}: expected --on slurm, got --on {text}, which has no settings")
        given: dict[str, str] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not (key and equals and value):
                raise UsageError(f"--set-on {setting}: expected NAME=VALUE, got {setting}")
            given[key] = value
        return Place(name, address or None, given)

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL

    def check_device(self, device: str) -> None:
        """Check that the backend supports a device, as far as possible without connecting to a cluster.

        Raises:
            DeviceError: the backend does not support the device.
        """
        if not self.is_local and device not in ("auto", "cpu", "cuda"):
            raise DeviceError(f"--device {device}: expected auto, cpu or cuda with --on {self.name}, got {device}")

    def describe(self, device: str) -> str:
        """Return a description, e.g. `Ray: joins 10.0.0.1:6379; one CPU for each worker`."""
        if self.name == SLURM:
            settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
            of = "one GPU" if device == "cuda" else "one CPU"
            more = f"; {settings}" if settings else ""
            return f"SLURM: jobs with {of} each, and a folder that all nodes can access{more}"
        what = {"cpu": "one CPU", "cuda": "one GPU"}.get(device, "one GPU (or one CPU if there are no GPUs)")
        joins = f"joins {self.address}" if self.address else "joins the cluster on this machine, or starts one"
        return f"Ray: {joins}; {what} for each worker"


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def open_backend(place: Place, device: str, jobs: int | None, runs_dir: Path, *, force: bool) -> Backend:
    """Start or join the backend of a run; the caller must close it. Imports torch.

    runs_dir: the folder below which a new folder is created for exchanging files with SLURM jobs, unless a setting in
        `place` names another.

    Raises:
        UsageError: a setting of the backend is invalid.
        DeviceError: there is no such device.
        WorkerError: the Ray cluster cannot be joined, SLURM is unavailable, or the folder for SLURM jobs cannot be
            written.
    """
    place.check_device(device)
    if place.name == RAY:
        from optbench.execution.ray_cluster import RayCluster

        return RayCluster(place.address, device, jobs, force=force)
    if place.name == SLURM:
        from optbench.execution.slurm_jobs import SlurmJobs

        return SlurmJobs(place.settings, runs_dir, device, jobs, force=force)
    from optbench.engine.device import cores, resolve, worker_devices
    from optbench.execution.local import LocalProcesses

    resolved = resolve(device)
    return LocalProcesses([str(one) for one in worker_devices(device, resolved, jobs, cores())])
