"""One moment of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One moment of an engine, for metrics and routing."""

    running: int
    waiting: int
    """Requests that wait for their adapters."""
    resident: tuple[str, ...]
    host_adapters: int
    """Adapters in host memory, those on the device among them."""
    pinned: int
    cache_free: float
    """Share of the paged cache that no request holds."""
    shared_tokens: int
    """Prompt tokens not computed since the start, because the cache had them under the same mix."""
    tokens_running: int
    """Tokens, prompt and completion, that the cache holds of requests in the batch; shared ones count for each."""
    tokens_waiting: int
    """Tokens, prompt and the most that may be generated, of requests that are not in the batch: they wait for their
    adapters, or for room in it."""
    adapter_demand: float
    """Adapters that requests use or wait for, over the slots there are for them. Above 1, some wait for others."""
    adapter_wait_s: float
    """How long the request that has waited longest for its adapters has waited, loading included."""
