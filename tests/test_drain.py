"""What a worker pod does before it ends. That Serve moves replicas off a drained node is Ray's business."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from deployments import drain

REPLICA = ["bash", "-c", 'exec -a "ray::ServeReplica:dlp:FusedBackbone" sleep "$0"']


def test_it_waits_until_the_last_replica_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "LOOK_S", 0.05)
    before = drain.replicas()  # of a cluster that happens to run here
    replica = subprocess.Popen([*REPLICA, "1.0"])
    wait_for(lambda: drain.replicas() > before)
    began = time.monotonic()
    assert drain.wait_until_empty(lambda: replica.poll() is None and drain.replicas(), deadline=began + 30)
    assert 0.3 < time.monotonic() - began < 20


def test_it_waits_no_longer_than_the_pod_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "LOOK_S", 0.05)
    began = time.monotonic()
    assert not drain.wait_until_empty(lambda: 1, deadline=began + 0.3)
    assert 0.3 <= time.monotonic() - began < 5


def test_outside_a_pod_it_drains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in drain.POD_VARIABLES:
        for other in drain.POD_VARIABLES:
            monkeypatch.setenv(other, "x")
        monkeypatch.delenv(name)
        monkeypatch.setattr(drain, "ask_for_drain", lambda *_: pytest.fail("a node was drained"))
        monkeypatch.setattr("sys.argv", ["drain", "--seconds", "5"])
        with pytest.raises(SystemExit, match=name):
            drain.main()


def test_a_cluster_that_is_gone_keeps_no_pod(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when the whole cluster is deleted, its head first."""

    def gone(*_: object) -> None:
        raise ConnectionError("no such cluster")

    for name in drain.POD_VARIABLES:
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(drain, "ask_for_drain", gone)
    monkeypatch.setattr(drain, "wait_until_empty", lambda *_, **__: pytest.fail("it waits for nobody"))
    monkeypatch.setattr("sys.argv", ["drain", "--seconds", "300"])
    drain.main()
    assert "no such cluster" in capsys.readouterr().err


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_hook_starts_quickly() -> None:
    """It imports Ray only when it drains."""
    code = "import sys, deployments.drain; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
