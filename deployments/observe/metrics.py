"""Every metric this application exports, grouped by the process that records it.

Ray adds the prefix `ray_` and the tags application, deployment and replica.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray.serve.metrics import Counter, Gauge, Histogram

from dlp_core.adapter.names import unqualify
from dlp_core.bank.rollout import Role, ShadowCounts
from dlp_core.decision import Decision
from dlp_core.fleet.trial import SIGNALS, Outcome, Verdict
from dlp_core.generation.messages import Finished

if TYPE_CHECKING:
    from dlp_core.bank.manifest import CanaryEnd
    from dlp_core.engine.stats import EngineStats

_MILLISECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]

_BANK = ("bank",)  # serving, canary or shadow: versions would be series without end


class RoutingMetrics:
    """Recorded by the ingress, once per decision, and per request that ends a replica."""

    def __init__(self) -> None:
        self._seconds = Histogram(
            "dlp_route_seconds", "Time to decide a mix, router call included.", _MILLISECONDS, ("bank",)
        )
        self._confidence = Histogram(
            "dlp_route_confidence",
            "Confidence of the router.",
            [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0],
            ("bank",),
        )
        self._size = Histogram(
            "dlp_mix_size", "Adapters in a mix; 0 is the plain backbone.", [0.5, 1, 2, 3, 4, 6, 8], ("bank",)
        )
        self._hits = Counter("dlp_adapter_hits_total", "Requests an adapter took part in.", ("adapter",))
        self._fallbacks = Counter(
            "dlp_fallback_total",
            "Requests for `auto` served without adapters chosen by the router.",
            ("reason", "bank"),
        )
        self._fatal = Counter("dlp_fatal_requests_total", "Requests that a replica's generation ended with.")

    def decided(self, decision: Decision, seconds: float, *, role: Role) -> None:
        """Count a decision. `role` is that of its bank; what a shadow decides counts as the shadow's alone."""
        bank = {"bank": role}
        self._seconds.observe(seconds, tags=bank)
        self._size.observe(len(decision.mix.adapters), tags=bank)
        if decision.confidence is not None:
            self._confidence.observe(decision.confidence, tags=bank)
        if decision.reason in ("none_of_these", "low_confidence", "router_unavailable"):
            self._fallbacks.inc(tags={"reason": decision.reason, **bank})
        if role == "shadow":
            return
        for part in decision.mix.adapters:
            self._hits.inc(tags={"adapter": part.name})

    def ended_a_replica(self) -> None:
        self._fatal.inc()


class RequestMetrics:
    """Recorded by the ingress, once per request that the request log has."""

    def __init__(self) -> None:
        self._requests = Counter(
            "dlp_requests_total",
            "Requests that ended, by status (499: the client left) and error code (none, or as the log has it).",
            ("route", "status", "error_code"),
        )

    def ended(self, route: str, status: int, error_code: str | None) -> None:
        self._requests.inc(tags={"route": route, "status": str(status), "error_code": error_code or "none"})


class RouterMetrics:
    """Recorded by a router replica, each time it reports to the autoscaler."""

    def __init__(self) -> None:
        self._busy = Gauge("dlp_router_busy", "Share of time a router replica spends computing.")
        self._drift = Gauge(
            "dlp_drift", "Population stability index of the router's margins against its training.", ("adapter",)
        )

    def state(self, *, busy: float, drift: Mapping[str, float]) -> None:
        """`drift` is by adapter, see dlp_core/router/drift.py."""
        self._busy.set(busy)
        for adapter, index in drift.items():
            self._drift.set(index, tags={"adapter": adapter})


class BankMetrics:
    """Recorded by the ingress, each time it polls the pointer."""

    def __init__(self) -> None:
        self._refused = Gauge("dlp_bank_refused", "1 while a bank that the pointer names cannot be used.")
        self._info = Gauge("dlp_bank_info", "1 for each version in use, by what it is.", ("bank", "version"))
        self._versions: dict[str, str] = {}

    def polled(self, *, refused: bool, versions: Mapping[str, str]) -> None:
        """Set the gauges. `versions` are those in use, by role."""
        self._refused.set(float(refused))
        for role, version in self._versions.items():
            if versions.get(role) != version:
                self._info.set(0.0, tags={"bank": role, "version": version})
        for role, version in versions.items():
            self._info.set(1.0, tags={"bank": role, "version": version})
        self._versions = dict(versions)


class RolloutMetrics:
    """Recorded by the ingress: what becomes of requests by their bank, and how a canary and a shadow compare."""

    def __init__(self) -> None:
        self._requests = Counter("dlp_bank_requests_total", "Completions by bank and outcome.", ("bank", "outcome"))
        self._seconds = Histogram("dlp_bank_request_seconds", "Time to the end of an answer.", _SECONDS, _BANK)
        self._evidence = Gauge(
            "dlp_canary_evidence", "Evidence against the canary, as a power of ten; 0 without one.", ("signal",)
        )
        self._ends = Counter("dlp_canary_ends_total", "Canaries ended by their trial.", ("outcome",))
        self._shadow = Counter("dlp_shadow_total", "Comparisons with the shadow.", ("result",))

    def ended(self, role: Role, outcome: Outcome) -> None:
        result = "error" if outcome.error else "abstained" if outcome.abstained else "ok"
        self._requests.inc(tags={"bank": role, "outcome": result})
        if outcome.seconds is not None:
            self._seconds.observe(outcome.seconds, tags={"bank": role})

    def turned(self, verdict: Verdict | None) -> None:
        """Set the evidence, as of this turn."""
        for signal in SIGNALS:
            value = 0.0 if verdict is None else verdict.signals.get(signal, 0.0)
            self._evidence.set(value / math.log(10), tags={"signal": signal})
        self._evidence.set(0.0 if verdict is None else verdict.total / math.log(10), tags={"signal": "all"})

    def canary_ended(self, end: CanaryEnd) -> None:
        self._ends.inc(tags={"outcome": end.outcome})

    def compared(self, counts: ShadowCounts) -> None:
        results = {
            "same_mix": counts.same_mixes,
            "other_mix": counts.mixes - counts.same_mixes,
            "same_answer": counts.same_answers,
            "other_answer": counts.answers - counts.same_answers,
            "failed": counts.failed,
            "skipped": counts.skipped,
        }
        for result, count in results.items():
            if count:
                self._shadow.inc(count, tags={"result": result})


class KeptMetrics:
    """Recorded by the ingress, each time it polls the pointer. `kind` is feedback or requests."""

    def __init__(self) -> None:
        self._written = Counter("dlp_kept_written_total", "Records written to the bank's store.", ("kind",))
        self._dropped = Counter("dlp_kept_dropped_total", "Records dropped: the store took none for long.", ("kind",))
        self._waiting = Gauge("dlp_kept_waiting", "Records that are in memory only.", ("kind",))
        self._before: dict[str, tuple[int, int]] = {}

    def state(self, kind: str, *, written: int, dropped: int, waiting: int) -> None:
        """Record the counts of a writer since it began."""
        tags = {"kind": kind}
        written_before, dropped_before = self._before.get(kind, (0, 0))
        if written > written_before:
            self._written.inc(written - written_before, tags=tags)
        if dropped > dropped_before:
            self._dropped.inc(dropped - dropped_before, tags=tags)
        self._waiting.set(waiting, tags=tags)
        self._before[kind] = (written, dropped)


class EngineMetrics:
    """Recorded by a backbone replica."""

    def __init__(self) -> None:
        self._first = Histogram(
            "dlp_time_to_first_token_seconds", "From acceptance by the replica to the first token.", _SECONDS
        )
        self._between = Histogram(
            "dlp_inter_token_seconds", "Mean time between the tokens that arrive together.", _SECONDS
        )
        self._tokens = Counter("dlp_tokens_total", "Tokens read (prompt) and written (completion).", ("kind",))
        self._loads = Counter("dlp_adapter_loads_total", "Adapters moved into a slot.", ("adapter",))
        self._load_seconds = Histogram(
            "dlp_adapter_load_seconds", "Time to bring an adapter to a tier: disk, host, device.", _SECONDS, ("tier",)
        )
        self._resident = Gauge("dlp_adapters_resident", "Adapters resident in a tier.", ("tier",))
        self._in_slot = Gauge("dlp_adapter_in_slot", "1 while a replica has the adapter in a slot.", ("adapter",))
        self._in_slots: set[str] = set()
        self._running = Gauge("dlp_requests_running", "Requests in the batch.")
        self._waiting = Gauge("dlp_requests_waiting", "Requests waiting for their adapters.")
        self._tokens_running = Gauge("dlp_tokens_running", "Tokens in the cache of requests in the batch.")
        self._tokens_waiting = Gauge("dlp_tokens_waiting", "Maximum tokens of requests not yet in the batch.")
        self._cache_use = Gauge("dlp_cache_use", "Share of the paged cache held by requests.")
        self._cuda_graphs = Gauge("dlp_cuda_graphs", "CUDA graphs captured by the engine.")
        self._adapter_demand = Gauge("dlp_adapter_demand", "Adapters that requests use or wait for, over the slots.")
        self._adapter_wait = Gauge("dlp_adapter_wait_seconds", "Longest current wait of a request for its adapters.")

    def loaded(self, adapter: str, tier: str, seconds: float) -> None:
        """Count a load. `adapter` is the engine's name, name@version."""
        if tier == "device":
            self._loads.inc(tags={"adapter": unqualify(adapter)})
        self._load_seconds.observe(seconds, tags={"tier": tier})

    def state(self, stats: EngineStats, *, on_disk: int) -> None:
        """Set the gauges. `on_disk` counts the adapters in the node's disk cache, whichever process fetched them."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._tokens_running.set(stats.tokens_running)
        self._tokens_waiting.set(stats.tokens_waiting)
        self._cache_use.set(1 - stats.cache_free)
        self._cuda_graphs.set(stats.cuda_graphs)
        self._adapter_demand.set(stats.adapter_demand)
        self._adapter_wait.set(stats.adapter_wait_s)
        in_slots = {unqualify(adapter) for adapter in stats.resident}
        for adapter in in_slots | self._in_slots:
            self._in_slot.set(float(adapter in in_slots), tags={"adapter": adapter})
        self._in_slots = in_slots
        self._resident.set(len(stats.resident), tags={"tier": "device"})
        self._resident.set(stats.host_adapters, tags={"tier": "host"})
        self._resident.set(on_disk, tags={"tier": "disk"})

    def finished(self, finished: Finished) -> None:
        self._tokens.inc(finished.prompt_tokens, tags={"kind": "prompt"})
        if finished.completion_tokens:
            self._tokens.inc(finished.completion_tokens, tags={"kind": "completion"})

    def stopwatch(self) -> TokenStopwatch:
        return TokenStopwatch(self._first, self._between)


class TokenStopwatch:
    """Times the tokens of one request, starting at its creation."""

    def __init__(self, first: Histogram, between: Histogram) -> None:
        self._first = first
        self._between = between
        self._last = time.perf_counter()
        self._started = False

    def tokens(self, count: int) -> None:
        """Note that `count` tokens arrived together, now."""
        now = time.perf_counter()
        if not count:
            return
        if self._started:
            self._between.observe((now - self._last) / count)
        else:
            self._first.observe(now - self._last)
        self._started, self._last = True, now
