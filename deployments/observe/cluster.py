"""The metrics of all replicas on all nodes, read from Ray's agents.

Each node has one. It knows what the processes of its node reported in the last seconds, and keeps the counts of those
that ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from deployments.observe.exposition import Merged, application_families

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("ray.serve")

TIMEOUT_S = 3.0
"""Wait for a node's agent; Prometheus itself waits 10 s by default."""
FRESH_S = 1.0
"""How long an answer is given again: readers cannot make the agents busier than this."""


def agents() -> list[str]:
    """The URLs of the agents of all living nodes."""
    import ray
    from httpx import URL

    return [
        str(URL(scheme="http", host=node["NodeManagerAddress"], port=node["MetricsExportPort"], path="/metrics"))
        for node in ray.nodes()
        if node["Alive"]
    ]


class ClusterMetrics:
    """The metrics of an application. Use from one event loop; `agents` may block."""

    def __init__(self, application: str, agents: Callable[[], Sequence[str]] = agents) -> None:
        self._application = application
        self._agents = agents
        self._urls: Sequence[str] = ()
        self._lock = asyncio.Lock()
        self._text = b""
        self._read_at = float("-inf")

    async def text(self) -> bytes:
        """Prometheus text. Never raises because of Ray: `dlp_scrape_incomplete` counts the nodes that did not answer,
        and one more where Ray did not say which nodes there are, so that those of the last answer were read."""
        async with self._lock:  # who comes meanwhile gets the same answer
            if time.monotonic() - self._read_at > FRESH_S:
                self._text = await self._read()
                self._read_at = time.monotonic()
            return self._text

    async def _read(self) -> bytes:
        import httpx

        listed = await self._list()
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:  # nodes are not behind a proxy
            nodes = await asyncio.gather(*(self._node(client, url) for url in self._urls))
        missing = GaugeMetricFamily(
            "dlp_scrape_incomplete",
            "Nodes whose metrics are missing from this answer.",
            value=sum(node is None for node in nodes) + (not listed),
        )
        return await asyncio.to_thread(lambda: Merged([[missing], *(node or () for node in nodes)]).text())

    async def _list(self) -> bool:
        """Whether Ray said which nodes there are."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                self._urls = await asyncio.to_thread(self._agents)
        except Exception as error:  # Ray's head is away: it raises what it likes, or waits
            log.warning("the nodes are not known, those of the last answer are read (%s)", error or "no answer in time")
            return False
        return True

    async def _node(self, client: httpx.AsyncClient, url: str) -> list[Metric] | None:
        """The metrics of a node; None if it does not answer as it should."""
        import httpx

        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await client.get(url)
                answer.raise_for_status()
            return await asyncio.to_thread(lambda: list(application_families(answer.text, self._application)))
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            log.warning("%s: no metrics (%s: %s)", url, type(error).__name__, error)
            return None
