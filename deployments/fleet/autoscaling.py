"""Serve's autoscaling policies: dlp_core/fleet/autoscaling.py over what replicas report by `record_autoscaling_stats`.

Serve averages the reports over look_back_period_s, calls a policy in its control loop, and acts on a decision that has
held for upscale_delay_s or downscale_delay_s. The first request wakes a pool without replicas, without calling the
policy. Serve pickles this module by value into its controller, and passes policy_kwargs to classes only.
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
    """Scales the backbone by requests, tokens and adapters. The targets per replica: target_ongoing_requests requests,
    and the shares `tokens` of its cache and `adapters` of its slots."""

    def __init__(self, *, tokens: float, adapters: float, margin: float = MARGIN) -> None:
        _check(tokens=tokens, adapters=adapters, margin=margin)
        self._tokens, self._adapters, self._margin = tokens, adapters, margin

    def __call__(self, ctx: AutoscalingContext) -> Decision:
        reports = _reports(ctx, (REQUESTS, TOKENS, ADAPTERS))
        targets = Targets(ctx.config.get_target_ongoing_requests(), self._tokens, self._adapters)
        demands = [Demand(report[REQUESTS], report[TOKENS], report[ADAPTERS]) for report in reports]
        return _decision(ctx, backbone_load(demands, ctx.total_queued_requests, targets), len(reports), self._margin)


class RouterPolicy:
    """Scales the router pool by its requests, running and queued, and by the share of time its replicas compute."""

    def __init__(self, *, busy: float, margin: float = MARGIN) -> None:
        _check(busy=busy, margin=margin)
        self._busy, self._margin = busy, margin

    def __call__(self, ctx: AutoscalingContext) -> Decision:
        reports = _reports(ctx, (BUSY,))
        load = router_load(
            [report[BUSY] for report in reports],
            ctx.total_num_requests,
            target_busy=self._busy,
            target_requests=ctx.config.get_target_ongoing_requests(),
        )
        return _decision(ctx, load, len(reports), self._margin)


def _check(*, margin: float, **targets: float) -> None:
    """Check the policy's arguments. Raises ValueError."""
    if not 0 <= margin < 1:
        raise ValueError(f"policy_kwargs.margin is {margin}; it must be at least 0 and below 1")
    for name, target in targets.items():
        if not target > 0:
            raise ValueError(f"policy_kwargs.{name} is {target}; it must be above 0")


def _reports(ctx: AutoscalingContext, keys: Iterable[str]) -> list[Mapping[str, float]]:
    """The reports, by these keys, of the running replicas that have reported."""
    metrics = {key: ctx.aggregated_metrics.get(key, {}) for key in keys}
    replicas = set.intersection(*(set(by_replica) for by_replica in metrics.values()))
    return [{key: by_replica[replica] for key, by_replica in metrics.items()} for replica in replicas]


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
