"""What the server did in the last hour, from its own `GET /metrics`: the console reads it every few seconds and keeps
the differences in memory. It needs no Prometheus, and is none: a console that starts knows nothing of what was before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import httpx

from deployments.client.activity import Reading
from deployments.console.proxy import Api

EVERY_S = 5.0
KEPT_S = 3600.0


@dataclass(frozen=True)
class Point:
    """What happened between two readings. Histograms are counts by upper bound."""

    at: float
    """Unix time of the later one."""
    seconds: float
    routed: float
    """Decisions: prompts that were given a mix, `auto` or not."""
    statuses: dict[str, float]
    adapters: dict[str, float]
    sizes: dict[str, float]
    abstained: dict[str, float]
    confidence: dict[str, float]
    first: dict[str, float]
    between: dict[str, float]
    tokens: dict[str, float]
    running: float
    waiting: float
    drift: dict[str, float]
    """The mean of the router replicas, by adapter."""

    @classmethod
    def between_readings(cls, earlier: Reading, later: Reading) -> Point:
        gained = later.since(earlier)
        return cls(
            at=later.at,
            seconds=later.at - earlier.at,
            routed=gained.total("dlp_mix_size_count"),
            statuses=_some(gained.by("status", "dlp_requests_total")),
            adapters=_some(gained.by("adapter", "dlp_adapter_hits_total")),
            sizes=_histogram(gained, "dlp_mix_size"),
            abstained=_some(gained.by("reason", "dlp_fallback_total")),
            confidence=_histogram(gained, "dlp_route_confidence"),
            first=_histogram(gained, "dlp_time_to_first_token_seconds"),
            between=_histogram(gained, "dlp_inter_token_seconds"),
            tokens=_some(gained.by("kind", "dlp_tokens_total")),
            running=later.total("dlp_requests_running"),
            waiting=later.total("dlp_requests_waiting"),
            drift=_means(later, "adapter", "dlp_drift"),
        )


class Traffic:
    """The points of the last hour. Use from one event loop."""

    def __init__(self, api: Api, *, every_s: float = EVERY_S) -> None:
        self._api = api
        self._every_s = every_s
        self._points: deque[Point] = deque(maxlen=int(KEPT_S / every_s))
        self._last: Reading | None = None
        self._problem: str | None = None
        self.fresh = asyncio.Event()
        """Set once a reading has been tried."""

    async def watch(self) -> None:
        """Read every few seconds. Never returns."""
        while True:
            await self.read()
            await asyncio.sleep(self._every_s)

    async def read(self) -> None:
        """Take a reading; a server that does not answer leaves a gap."""
        try:
            text = await self._api.text("/metrics")
            reading = Reading.of(text, time.time())
        except httpx.HTTPStatusError as error:
            self._problem = _refusal(error.response.status_code)
        except httpx.HTTPError as error:
            self._problem = f"{self._api.url} does not answer: {error or type(error).__name__}"
        except ValueError as error:
            self._problem = f"/metrics is not Prometheus text: {error}"
        else:
            if self._last is not None:
                self._points.append(Point.between_readings(self._last, reading))
            self._last, self._problem = reading, None
        self.fresh.set()

    def json(self, since: float = 0.0) -> dict[str, Any]:
        """The points after `since`, Unix time, and what is resident now."""
        return {
            "every_s": self._every_s,
            "kept_s": KEPT_S,
            "problem": self._problem,
            "resident": {} if self._last is None else _resident(self._last),
            "points": [asdict(point) for point in self._points if point.at > since],
        }


def _some(sums: dict[str, float]) -> dict[str, float]:
    """Without zeros."""
    return {label: value for label, value in sums.items() if value}


def _means(reading: Reading, label: str, name: str) -> dict[str, float]:
    """The mean of a gauge's series for each value of a label."""
    values: dict[str, list[float]] = {}
    for labels, value in reading.named(name):
        values.setdefault(labels.get(label, ""), []).append(value)
    return {found: fmean(each) for found, each in values.items()}


def _histogram(reading: Reading, name: str) -> dict[str, float]:
    """Observations by the upper bound of their bucket, not cumulative, without empty buckets."""
    found: dict[str, float] = {}
    before = 0.0
    for bound, count in sorted((float(le), count) for le, count in reading.by("le", f"{name}_bucket").items()):
        if count > before:
            found["inf" if bound == float("inf") else f"{bound:g}"] = count - before
        before = max(before, count)
    return found


def _resident(reading: Reading) -> dict[str, list[str]]:
    """The adapters in slots, by replica."""
    found: dict[str, list[str]] = {}
    for labels, value in reading.named("dlp_adapter_in_slot"):
        names = found.setdefault(labels.get("replica", ""), [])
        if value:
            names.append(labels.get("adapter", ""))
    return {replica: sorted(names) for replica, names in sorted(found.items())}


def _refusal(status: int) -> str:
    if status == httpx.codes.NOT_FOUND:
        return "this server has no /metrics; a newer one has"
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return "the server gives its metrics to the admin token alone; start the console with --admin-token"
    return f"/metrics answers with status {status}"
