"""The head node of a Ray cluster, checked without Ray."""

from __future__ import annotations

import socket

import pytest

from optbench.errors import WorkerError
from optbench.execution import ray_cluster


def test_a_head_node_is_lost_once_it_has_not_answered_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: now)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = ray_cluster._Head(f"127.0.0.1:{server.getsockname()[1]}")
        now += 1000.0
        head.check()  # it answers, however long ago the last check was
    now += 1000.0  # the process was stopped: a single refusal is not enough
    head.check()
    now += ray_cluster.GONE - 1
    head.check()
    now += ray_cluster.CHECK + 1
    lost = r"^lost contact with the head node of the Ray cluster \(127\.0\.0\.1:\d+\): no answer"
    with pytest.raises(WorkerError, match=lost):
        head.check()


def test_a_head_node_is_not_checked_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[str] = []
    now = 100.0
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: now)
    monkeypatch.setattr(ray_cluster, "_probe", probes.append)
    head = ray_cluster._Head("head:1")
    for _ in range(100):
        now += ray_cluster.CHECK / 10
        head.check()
    assert 9 <= len(probes) <= 10
