"""The agents of all nodes are read; one that fails is counted, not an error. The agents are HTTP servers of this
process. That Ray's are read: tests/cluster/test_observe.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from deployments.observe import cluster
from deployments.observe.cluster import ClusterMetrics
from dlp_core.ports import free_port
from tests.support.http_server import QuietHandler, serving
from tests.support.waiting import HANG_S

RUNNING = 'ray_dlp_requests_running{{application="dlp",replica="{}"}} {}.0\n'


class Agents:
    """Two nodes' agents, with what they answer and how often they were asked."""

    def __init__(self, started: ExitStack) -> None:
        self.bodies = [RUNNING.format("a", 1), RUNNING.format("b", 2)]
        self.statuses = [200, 200]
        self.asked = 0
        self.urls = [f"http://{started.enter_context(serving(self._handler(node)))}/metrics" for node in (0, 1)]

    def _handler(self, node: int) -> type[QuietHandler]:
        agents = self

        class Handler(QuietHandler):
            def answer(self, body: bytes) -> None:
                agents.asked += 1
                self.reply(agents.statuses[node], agents.bodies[node].encode())

        return Handler

    def metrics(self) -> ClusterMetrics:
        return ClusterMetrics("dlp", lambda: self.urls)


@pytest.fixture
def agents() -> Iterator[Agents]:
    with ExitStack() as started:
        yield Agents(started)


def samples(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_all_nodes_are_in_one_answer(agents: Agents) -> None:
    assert samples(await agents.metrics().text()) == {
        'dlp_requests_running{replica="a"}': 1,
        'dlp_requests_running{replica="b"}': 2,
        "dlp_scrape_incomplete": 0,
    }


@pytest.mark.parametrize("how", ["refuses", "fails", "is nonsense"])
async def test_a_node_that_does_not_answer_is_counted(agents: Agents, how: str) -> None:
    if how == "refuses":
        agents.urls[1] = f"http://127.0.0.1:{free_port()}/metrics"
    elif how == "fails":
        agents.statuses[1] = 500
    else:
        agents.bodies[1] = 'ray_dlp_requests_running{application="dlp" 2.0\n'
    found = samples(await agents.metrics().text())
    assert found == {'dlp_requests_running{replica="a"}': 1, "dlp_scrape_incomplete": 1}


async def test_the_nodes_of_the_last_answer_are_read_while_ray_does_not_name_them(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "FRESH_S", -1.0)
    head_is_there = True

    def nodes() -> list[str]:
        if not head_is_there:
            raise ConnectionError("no head")
        return agents.urls

    metrics = ClusterMetrics("dlp", nodes)
    complete = samples(await metrics.text())
    head_is_there = False
    assert samples(await metrics.text()) == complete | {"dlp_scrape_incomplete": 1}


async def test_readers_at_the_same_time_share_an_answer(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FRESH_S", HANG_S)
    metrics = agents.metrics()
    texts = await asyncio.gather(*(metrics.text() for _ in range(20)))
    assert (len(set(texts)), agents.asked) == (1, 2)


async def test_an_answer_is_not_given_again_when_it_is_old(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FRESH_S", -1.0)
    metrics = agents.metrics()
    await metrics.text()
    agents.bodies[0] = RUNNING.format("a", 7)
    assert samples(await metrics.text())['dlp_requests_running{replica="a"}'] == 7
