"""What vLLM's scheduler says of each step, in the replica's process."""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class Gauges(StatLoggerBase):  # type: ignore[misc]
    """Takes the place of vLLM's own log of statistics."""

    def __init__(self) -> None:
        self.cache_use = 0.0
        """Fraction of the cache's blocks that requests held after the last step."""
        self.preempted = 0
        """Requests that were put back so far, because the cache was full."""
        self.last_step = time.monotonic()

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> Gauges:
        """vLLM asks a factory for one logger per engine; this engine is one."""
        return self

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        self.last_step = time.monotonic()
        if scheduler_stats is not None:
            self.cache_use = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            self.preempted += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        pass
