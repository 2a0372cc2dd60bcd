"""A snapshot of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine, for metrics and routing."""

    running: int
    waiting: int
    """Requests that wait for their adapters."""
    resident: tuple[str, ...]
    host_adapters: int
    """Adapters in host memory, including those on the device."""
    pinned: int
    cache_tokens: int
    """Tokens that the paged cache holds."""
    cache_free: float
    """Fraction of it that no request holds."""
    shared_tokens: int
    """Prompt tokens since the start that were not computed, because the cache had them under the same mix."""
    tokens_running: int
    """Tokens, prompt and completion, that the cache holds for requests in the batch; shared ones count for each."""
    tokens_waiting: int
    """Tokens, prompt and longest possible completion, of requests that are not in the batch: they wait for their
    adapters or for room in the batch."""
    adapter_demand: float
    """Adapters that requests use or wait for, divided by the slots for them. Above 1, some wait for others."""
    adapter_wait_s: float
    """Seconds that the request waiting longest for its adapters has waited so far, loading included."""
    cuda_graphs: int = 0
    """CUDA graphs captured, on devices that have them. All are captured at the start."""
