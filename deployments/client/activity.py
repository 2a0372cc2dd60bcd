"""What a server does, from two readings of `GET /metrics`: totals, and what happened between the two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from deployments.observe.exposition import Series, series_of

CLIENT_LEFT = "client_disconnected"
NO_ERROR = "none"
REPORTED = ("dlp_bank_refused", "dlp_router_busy", "dlp_requests_running")
"""A gauge of each deployment, which every living replica sets."""


@dataclass(frozen=True)
class Reading:
    """The series of one `GET /metrics`, and when it was read, in seconds of any clock."""

    at: float
    values: dict[Series, float]

    @classmethod
    def of(cls, text: str, at: float) -> Reading:
        """Raises ValueError if `text` is not Prometheus text."""
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return cls(at, {series_of(sample): sample.value for sample in samples})

    @property
    def missing_nodes(self) -> int:
        return int(self.values.get(("dlp_scrape_incomplete", ()), 0))

    def since(self, earlier: Reading) -> Reading:
        """What counters and histograms gained in between, series by series, so that one that ended takes nothing away.
        A series that was not there before began then, unless a node was missing."""

        def gained(series: Series, value: float) -> float:
            before = earlier.values.get(series, value if earlier.missing_nodes else 0.0)
            return max(value - before, 0.0)

        return Reading(self.at, {series: gained(series, value) for series, value in self.values.items()})

    def named(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of each series of this name that has these labels."""
        for (found, pairs), value in self.values.items():
            if found == name and set(labels.items()) <= set(pairs):
                yield dict(pairs), value

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.named(name, **labels))

    def by(self, label: str, name: str) -> dict[str, float]:
        """The sum for each value of a label."""
        sums: dict[str, float] = {}
        for labels, value in self.named(name):
            sums[labels.get(label, "")] = sums.get(labels.get(label, ""), 0.0) + value
        return sums

    def quantile(self, share: float, name: str) -> float | None:
        """Of a histogram of all replicas, interpolated in its bucket as Prometheus does; None if it is empty."""
        buckets = sorted((float(le), count) for le, count in self.by("le", f"{name}_bucket").items())
        if not buckets or not buckets[-1][1]:
            return None
        rank, below, low = share * buckets[-1][1], 0.0, 0.0
        for bound, count in buckets:
            if count >= rank:
                return low if bound == float("inf") else low + (bound - low) * (rank - below) / (count - below)
            below, low = count, bound
        return low


@dataclass(frozen=True)
class Counts:
    """What happened in some time. Times are in seconds, as (median, 95th percentile); None if there were none."""

    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    first_token: tuple[float, float] | None
    between_tokens: tuple[float, float] | None

    @classmethod
    def of(cls, reading: Reading) -> Counts:
        return cls(
            requests=int(reading.total("dlp_requests_total")),
            errors=sum(errors_of(reading).values()),
            prompt_tokens=int(reading.total("dlp_tokens_total", kind="prompt")),
            completion_tokens=int(reading.total("dlp_tokens_total", kind="completion")),
            first_token=_spread(reading, "dlp_time_to_first_token_seconds"),
            between_tokens=_spread(reading, "dlp_inter_token_seconds"),
        )


def errors_of(reading: Reading) -> dict[str, int]:
    """Requests that failed, by error code. That a client left is not an error."""
    found = reading.by("error_code", "dlp_requests_total")
    return {code: int(count) for code, count in sorted(found.items()) if count and code not in (NO_ERROR, CLIENT_LEFT)}


def _spread(reading: Reading, name: str) -> tuple[float, float] | None:
    median, high = reading.quantile(0.5, name), reading.quantile(0.95, name)
    return None if median is None or high is None else (median, high)


@dataclass(frozen=True)
class AdapterActivity:
    name: str
    in_slots: int
    """Replicas that have it in a slot."""
    hits: int
    loads: int
    hits_per_second: float | None
    """None after one reading."""


@dataclass(frozen=True)
class Activity:
    """What a server does now, and did since its counters began."""

    seconds: float | None
    """Between the two readings; None if there is one."""
    total: Counts
    recent: Counts | None
    errors: dict[str, int]
    running: int
    waiting: int
    cache_use: float | None
    """Of the replica that uses most of its cache, 0 to 1."""
    replicas: dict[str, int]
    """Those of each deployment that report."""
    resident: dict[str, int]
    """Adapters in each tier: the sum over replicas of `device` and `host`, the most of a node on `disk`."""
    missing_nodes: int
    adapters: list[AdapterActivity] = field(default_factory=list)
    """Those that are in a slot or were ever used, the busiest first."""

    @classmethod
    def of(cls, now: Reading, earlier: Reading | None = None) -> Activity:
        gained = None if earlier is None else now.since(earlier)
        seconds = None if earlier is None else now.at - earlier.at
        caches = [value for _, value in now.named("dlp_cache_use")]
        resident = {tier: now.total("dlp_adapters_resident", tier=tier) for tier in ("device", "host")}
        disks = [value for _, value in now.named("dlp_adapters_resident", tier="disk")]
        return cls(
            seconds=seconds,
            total=Counts.of(now),
            recent=None if gained is None else Counts.of(gained),
            errors=errors_of(now),
            running=int(now.total("dlp_requests_running")),
            waiting=int(now.total("dlp_requests_waiting")),
            cache_use=max(caches, default=None),
            replicas=_replicas(now),
            resident=_whole({**resident, "disk": max(disks, default=0)}),
            missing_nodes=now.missing_nodes,
            adapters=_adapters(now, gained, seconds),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _replicas(now: Reading) -> dict[str, int]:
    found = Counter(labels.get("deployment", "") for name in REPORTED for labels, _ in now.named(name))
    return dict(sorted(found.items()))


def _adapters(now: Reading, gained: Reading | None, seconds: float | None) -> list[AdapterActivity]:
    hits, loads = now.by("adapter", "dlp_adapter_hits_total"), now.by("adapter", "dlp_adapter_loads_total")
    in_slots = now.by("adapter", "dlp_adapter_in_slot")
    recent = {} if gained is None else gained.by("adapter", "dlp_adapter_hits_total")
    found = [
        AdapterActivity(
            name=name,
            in_slots=int(in_slots.get(name, 0)),
            hits=int(hits.get(name, 0)),
            loads=int(loads.get(name, 0)),
            hits_per_second=recent.get(name, 0) / seconds if seconds else None,
        )
        for name in {*hits, *loads, *in_slots}
    ]
    found = [one for one in found if one.hits or one.loads or one.in_slots]
    return sorted(found, key=lambda one: (-(one.hits_per_second or 0), -one.hits, -one.in_slots, one.name))


def _whole(counts: dict[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in sorted(counts.items())}
