"""Which backend a run uses: what `--on` names."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from optbench.errors import DeviceError, UsageError, unknown
from optbench.execution.backend import Backend

LOCAL, RAY = "local", "ray"
PLACES = (LOCAL, RAY)
EXTRAS = {RAY: ("ray", "Ray")}
"""The module that a backend needs, and what it is called; the extra has the backend's name."""


@dataclass(frozen=True)
class Place:
    """Where a run trains, as `--on` says.

    Attributes:
        name: of the backend.
        address: of the cluster to join; None: none is named.
    """

    name: str
    address: str | None = None

    @staticmethod
    def parse(text: str) -> Place:
        """Parse `local`, `ray` or `ray:ADDRESS`; check that what it needs is installed, and import nothing of it.

        Raises:
            UsageError: there is no such backend, or it is not installed.
        """
        name, colon, address = text.partition(":")
        if name not in PLACES:
            raise UsageError(f"--on {text}: {unknown('backend', name, PLACES)}")
        if colon and (name == LOCAL or not address):
            form = "ray:ADDRESS" if name == RAY else name
            raise UsageError(f"--on {text}: expected {form}, got {text}")
        if name in EXTRAS and not is_installed(EXTRAS[name][0]):
            raise UsageError(f"--on {text}: needs {EXTRAS[name][1]}: pip install 'optbench[{name}]'")
        return Place(name, address or None)

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL

    def check_device(self, device: str) -> None:
        """Check that a device can be one of this place's, as far as it is known before there is a connection.

        Raises:
            DeviceError: it cannot.
        """
        if not self.is_local and device not in ("auto", "cpu", "cuda"):
            raise DeviceError(f"--device {device}: expected auto, cpu or cuda with --on {self.name}, got {device}")

    def describe(self, device: str) -> str:
        """`Ray: joins 10.0.0.1:6379; one CPU for each worker`."""
        what = {"cpu": "one CPU", "cuda": "one GPU"}.get(device, "one GPU, or one CPU where there are none,")
        joins = f"joins {self.address}" if self.address else "joins the cluster of this machine, or starts one"
        return f"Ray: {joins}; {what} for each worker"


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def open_backend(place: Place, device: str, jobs: int | None, *, force: bool) -> Backend:
    """Start or join what a run trains on; the caller closes it. Imports torch.

    Raises:
        DeviceError: there is no such device.
        WorkerError: the cluster cannot be joined.
    """
    place.check_device(device)
    if place.name == RAY:
        from optbench.execution.ray_cluster import RayCluster

        return RayCluster(place.address, device, jobs, force=force)
    from optbench.engine.device import cores, resolve, worker_devices
    from optbench.execution.local import LocalProcesses

    resolved = resolve(device)
    return LocalProcesses([str(one) for one in worker_devices(device, resolved, jobs, cores())])
