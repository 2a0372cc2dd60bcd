"""What a worker pod does before it ends. That Serve moves replicas off a drained node is Ray's business."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from deployments.fleet import drain
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "POLL_S", 0.05)
    monkeypatch.setattr(drain, "SETTLE_S", 0.0)


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in drain.POD_VARIABLES:
        monkeypatch.setenv(name, "head:6379")
    monkeypatch.setattr("sys.argv", ["drain", "--seconds", "300"])


@pytest.mark.parametrize(
    "title", ["ray::ServeReplica:dlp:FusedBackbone", "ray::ProxyActor", "ray::HAProxyManager.ready"]
)
def test_it_waits_until_what_serves_has_ended(title: str) -> None:
    with subprocess.Popen(["bash", "-c", f'exec -a "{title}" sleep 600']) as process:
        wait_for(lambda: process.pid in drain.serving(), "process")
        looks: list[bool] = []

        def left() -> bool:
            """Of this process alone: other replicas may run on this machine."""
            looks.append(process.pid in drain.serving())
            if len(looks) == 3:
                process.terminate()
                process.wait()
            return looks[-1]

        assert drain.wait_until_empty(left, lambda: True, deadline=math.inf)
        assert looks == [True, True, True, False]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only while the hook sleeps."""
    clock = SimpleNamespace(now=100.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(drain, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def test_it_waits_no_longer_than_the_pod_lives(clock: SimpleNamespace) -> None:
    assert not drain.wait_until_empty(lambda: 1, lambda: True, deadline=clock.now + 30)
    assert clock.now == pytest.approx(130, abs=2 * drain.POLL_S)


def test_it_waits_for_a_head_that_is_replaced_but_not_for_a_cluster_that_is_gone(clock: SimpleNamespace) -> None:
    assert not drain.wait_until_empty(lambda: 1, lambda: False, deadline=math.inf)
    assert clock.now == pytest.approx(100 + drain.GONE_S, abs=2 * drain.POLL_S)
    until = clock.now + drain.GONE_S - 1
    assert drain.wait_until_empty(lambda: clock.now < until, lambda: False, deadline=math.inf)


def test_a_head_answers_by_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert drain.answers(address)
    assert not drain.answers(address)


@pytest.mark.parametrize("absent", drain.POD_VARIABLES)
def test_outside_a_pod_it_drains_nothing(absent: str, in_a_pod: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(absent)
    monkeypatch.setattr(drain, "ask_for_drain", lambda *_: pytest.fail("a node was drained"))
    with pytest.raises(SystemExit, match=absent):
        drain.main()


@pytest.mark.parametrize("emptied", [True, False])
def test_it_drains_this_cluster_for_as_long_as_the_pod_lives(
    emptied: bool, in_a_pod: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(drain, "ask_for_drain", lambda *request: asked.append(request))
    monkeypatch.setattr(drain, "wait_until_empty", lambda *_, **__: emptied)
    drain.main()
    assert asked == [("head:6379", 300)]
    assert ("still" in capsys.readouterr().err) is not emptied


def test_a_cluster_that_does_not_answer_keeps_no_pod(
    in_a_pod: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object) -> None:
        raise ConnectionError("no such cluster")

    monkeypatch.setattr(drain, "ask_for_drain", gone)
    monkeypatch.setattr(drain, "wait_until_empty", lambda *_, **__: pytest.fail("it waits for nobody"))
    drain.main()
    assert "no such cluster" in capsys.readouterr().err


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> SimpleNamespace:
    """What the cluster says of its nodes, which changes as time passes."""
    nodes = SimpleNamespace(workers=[{"a", "b"}], draining=[set[str]()], looks=0)

    def next_of(states: list[set[str]]) -> set[str]:
        return states.pop(0) if len(states) > 1 else states[0]

    client = SimpleNamespace(get_draining_nodes=lambda: dict.fromkeys(next_of(nodes.draining), 0))
    monkeypatch.setattr("ray._raylet.GcsClient", lambda address: client)
    monkeypatch.setattr(drain, "workers", lambda: next_of(nodes.workers))
    return nodes


@pytest.mark.parametrize(
    ("draining", "leaves"),
    [([set()], False), ([{"a"}], False), ([{"a", "b"}], True), ([set(), {"a"}, {"a", "b"}], True)],
)
def test_a_cluster_ends_when_all_its_workers_drain(
    draining: list[set[str]], leaves: bool, nodes: SimpleNamespace, clock: SimpleNamespace
) -> None:
    nodes.draining = draining
    assert drain.all_leave("head:6379") is leaves
    assert (clock.now > 100 + drain.TOGETHER_S) is not leaves


def test_a_head_without_workers_waits_for_nobody(nodes: SimpleNamespace, clock: SimpleNamespace) -> None:
    nodes.workers = [set()]
    assert not drain.all_leave("head:6379")
    assert clock.now == 100


@pytest.mark.parametrize("leaves", [True, False])
def test_a_head_stays_until_its_workers_have_left_and_no_longer_than_its_pod_lives(
    leaves: bool, nodes: SimpleNamespace, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[bool] = []
    monkeypatch.setattr(drain, "joined", lambda _: nullcontext(SimpleNamespace(gcs_address="head:6379")))
    monkeypatch.setattr(drain, "remove_applications", lambda: removed.append(True))
    nodes.draining = [{"a", "b"}]
    nodes.workers = [{"a", "b"}, {"a", "b"}, {"b"}, *([set[str]()] if leaves else [])]
    drain.end_with_cluster("head:6379", deadline=clock.now + 60)
    assert removed == [True]
    assert (clock.now < 110) is leaves


def test_a_head_that_ends_alone_removes_nothing(
    nodes: SimpleNamespace, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "joined", lambda _: nullcontext(SimpleNamespace(gcs_address="head:6379")))
    monkeypatch.setattr(drain, "remove_applications", lambda: pytest.fail("the cluster goes on"))
    drain.end_with_cluster("head:6379", deadline=math.inf)


def test_the_heads_hook_drains_no_node(in_a_pod: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr("sys.argv", ["drain", "--head", "--seconds", "300"])
    monkeypatch.setattr(drain, "ask_for_drain", lambda *_: pytest.fail("a node was drained"))
    monkeypatch.setattr(drain, "end_with_cluster", lambda *words, **_: ended.extend(words))
    drain.main()
    assert ended == ["head:6379"]


def test_the_hook_imports_ray_only_to_drain() -> None:
    code = "import sys, deployments.fleet.drain; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
