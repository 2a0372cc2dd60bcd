"""Serve's autoscaling policies: dlp_core/fleet/autoscaling.py over what replicas report by `record_autoscaling_stats`.

Serve averages the reports over look_back_period_s, calls a policy in its control loop, and acts on what it says once
it has said it for upscale_delay_s or downscale_delay_s. A pool without replicas is woken by the first request,
without asking. Serve pickles this module by value into its controller, and passes policy_kwargs to classes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

from dlp_core.fleet.autoscaling import MARGIN, Demand, Targets, backbone_load, desired_replicas, router_load

REQUESTS = "requests"
TOKENS = "tokens"
ADAPTERS = "adapters"
BUSY = "busy"
"""Keys of the reports."""

Decision = tuple[int, dict[str, Any]]


class BackbonePolicy:
    """Requests, tokens and adapters of the backbone replicas. One replica should have target_ongoing_requests of the
    first, and these shares of its cache and its slots."""

    def __init__(self, *, tokens: float, adapters: float, margin: float = MARGIN) -> None:
        _check(tokens=tokens, adapters=adapters, margin=margin)
        self._tokens, self._adapters, self._margin = tokens, adapters, margin

    def __call__(self, ctx: AutoscalingContext) -> Decision:
        reports = _reports(ctx, (REQUESTS, TOKENS, ADAPTERS))
        targets = Targets(ctx.config.get_target_ongoing_requests(), self._tokens, self._adapters)
        demands = [Demand(one[REQUESTS], one[TOKENS], one[ADAPTERS]) for one in reports]
        return _decision(ctx, backbone_load(demands, ctx.total_queued_requests, targets), len(reports), self._margin)


class RouterPolicy:
    """Requests of the router pool, running and queued, and the share of their time that its replicas compute."""

    def __init__(self, *, busy: float, margin: float = MARGIN) -> None:
        _check(busy=busy, margin=margin)
        self._busy, self._margin = busy, margin

    def __call__(self, ctx: AutoscalingContext) -> Decision:
        reports = _reports(ctx, (BUSY,))
        load = router_load(
            [one[BUSY] for one in reports],
            ctx.total_num_requests,
            target_busy=self._busy,
            target_requests=ctx.config.get_target_ongoing_requests(),
        )
        return _decision(ctx, load, len(reports), self._margin)


def _check(*, margin: float, **targets: float) -> None:
    """Raises ValueError for what no replica count could follow from."""
    if not 0 <= margin < 1:
        raise ValueError(f"policy_kwargs.margin is {margin}; it must be at least 0 and below 1")
    for name, target in targets.items():
        if not target > 0:
            raise ValueError(f"policy_kwargs.{name} is {target}; it must be above 0")


def _reports(ctx: AutoscalingContext, keys: Iterable[str]) -> list[Mapping[str, float]]:
    """Of each running replica that has reported, by these keys."""
    metrics = {key: ctx.aggregated_metrics.get(key, {}) for key in keys}
    replicas = set.intersection(*(set(of_key) for of_key in metrics.values()))
    return [{key: of_key[replica] for key, of_key in metrics.items()} for replica in replicas]


def _decision(ctx: AutoscalingContext, load: float, reported: int, margin: float) -> Decision:
    number = desired_replicas(
        load,
        ctx.target_num_replicas,
        min_replicas=ctx.capacity_adjusted_min_replicas,
        max_replicas=ctx.capacity_adjusted_max_replicas,
        all_reported=reported >= ctx.current_num_replicas,
        margin=margin,
    )
    return number, {}
