"""What the server did in the last hour, from its own `GET /metrics`: the console reads it every few seconds and keeps
the differences in memory. It needs no Prometheus, and is none: a console that starts knows nothing of what was before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from deployments.console.proxy import Api

EVERY_S = 5.0
KEPT_S = 3600.0
_RAYS = "ray_"  # the prefix in what Ray's own agents export

Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Reading:
    """The values of all `dlp_` series of one `GET /metrics`, by name and labels."""

    values: dict[Series, float]

    @classmethod
    def of(cls, text: str) -> Reading:
        """Raises ValueError if `text` is not Prometheus text."""
        return cls(
            {
                (sample.name.removeprefix(_RAYS), tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                if family.name.removeprefix(_RAYS).startswith("dlp_")
                for sample in family.samples
            }
        )

    def since(self, earlier: Reading) -> Reading:
        """What counters and histograms gained, series by series: a process that ended takes nothing away."""
        return Reading({key: max(value - earlier.values.get(key, 0.0), 0.0) for key, value in self.values.items()})

    def by(self, label: str, name: str) -> dict[str, float]:
        """The sum of the series `name` for each value of a label, without zeros."""
        sums: dict[str, float] = {}
        for labels, value in self._named(name):
            if value:
                sums[labels.get(label, "")] = sums.get(labels.get(label, ""), 0.0) + value
        return sums

    def total(self, name: str) -> float:
        return sum(value for _, value in self._named(name))

    def histogram(self, name: str) -> dict[str, float]:
        """Observations by the upper bound of their bucket, not cumulative, without empty buckets."""
        cumulative = sorted((float(bound), count) for bound, count in self.by("le", f"{name}_bucket").items())
        found: dict[str, float] = {}
        before = 0.0
        for bound, count in cumulative:
            if count > before:
                found["inf" if bound == float("inf") else f"{bound:g}"] = count - before
            before = max(before, count)
        return found

    def resident(self) -> dict[str, list[str]]:
        """The adapters in slots, by replica."""
        found: dict[str, list[str]] = {}
        for labels, value in self._named("dlp_adapter_in_slot"):
            names = found.setdefault(labels.get("replica", ""), [])
            if value:
                names.append(labels.get("adapter", ""))
        return {replica: sorted(names) for replica, names in sorted(found.items())}

    def _named(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        return ((dict(labels), value) for (found, labels), value in self.values.items() if found == name)


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

    @classmethod
    def between_readings(cls, earlier: Reading, later: Reading, *, at: float, seconds: float) -> Point:
        gained = later.since(earlier)
        return cls(
            at=at,
            seconds=seconds,
            routed=gained.total("dlp_mix_size_count"),
            statuses=gained.by("status", "dlp_requests_total"),
            adapters=gained.by("adapter", "dlp_adapter_hits_total"),
            sizes=gained.histogram("dlp_mix_size"),
            abstained=gained.by("reason", "dlp_fallback_total"),
            confidence=gained.histogram("dlp_route_confidence"),
            first=gained.histogram("dlp_time_to_first_token_seconds"),
            between=gained.histogram("dlp_inter_token_seconds"),
            tokens=gained.by("kind", "dlp_tokens_total"),
            running=later.total("dlp_requests_running"),
            waiting=later.total("dlp_requests_waiting"),
        )


class Traffic:
    """The points of the last hour. Use from one event loop."""

    def __init__(self, api: Api, *, every_s: float = EVERY_S) -> None:
        self._api = api
        self._every_s = every_s
        self._points: deque[Point] = deque(maxlen=int(KEPT_S / every_s))
        self._last: tuple[float, Reading] | None = None
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
            reading = Reading.of(await self._api.text("/metrics"))
        except httpx.HTTPStatusError as error:
            self._problem = _refusal(error.response.status_code)
        except httpx.HTTPError as error:
            self._problem = f"{self._api.url} does not answer: {error or type(error).__name__}"
        except ValueError as error:
            self._problem = f"/metrics is not Prometheus text: {error}"
        else:
            now = time.time()
            if self._last is not None:
                then, earlier = self._last
                self._points.append(Point.between_readings(earlier, reading, at=now, seconds=now - then))
            self._last, self._problem = (now, reading), None
        self.fresh.set()

    def json(self, since: float = 0.0) -> dict[str, Any]:
        """The points after `since`, Unix time, and what is resident now."""
        return {
            "every_s": self._every_s,
            "kept_s": KEPT_S,
            "problem": self._problem,
            "resident": {} if self._last is None else self._last[1].resident(),
            "points": [asdict(point) for point in self._points if point.at > since],
        }


def _refusal(status: int) -> str:
    if status == httpx.codes.NOT_FOUND:
        return "this server has no /metrics; a newer one has"
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return "the server gives its metrics to the admin token alone; start the console with --admin-token"
    return f"/metrics answers with status {status}"
