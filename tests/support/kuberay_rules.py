"""What KubeRay 1.7.0 rejects although its schema accepts it: ray-operator/controllers/ray/utils/validation.go.

Feature gates have their defaults. Where the operator requires less than we do (replica bounds, a named port), our own
rule is included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MAX_NAME_CHARACTERS = 47
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")

_DNS_1035 = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_DURATION = re.compile(r"[1-9][0-9]*|([0-9]+(\.[0-9]+)?(ms|s|m|h))+")


def problems(service: dict[str, Any]) -> list[str]:
    """A line for each rule that a RayService breaks."""
    cluster = service["spec"]["rayClusterConfig"]
    return [
        *_metadata(service["metadata"]),
        *_service(service["spec"]),
        *_groups(cluster),
        *_fault_tolerance(cluster, service["metadata"].get("annotations", {})),
        *_autoscaler(cluster),
        *_auth(cluster),
        *_gates(cluster),
    ]


def _metadata(metadata: dict[str, Any]) -> Iterator[str]:
    if len(metadata["name"]) > MAX_NAME_CHARACTERS:
        yield f"name has more than {MAX_NAME_CHARACTERS} characters"
    if not _DNS_1035.fullmatch(metadata["name"]):
        yield "name is not a DNS-1035 label"
    timeout = metadata.get("annotations", {}).get("ray.io/initializing-timeout")
    if timeout is not None and not _DURATION.fullmatch(timeout):
        yield "ray.io/initializing-timeout is not a positive duration"


def _service(spec: dict[str, Any]) -> Iterator[str]:
    cluster, strategy = spec["rayClusterConfig"], spec.get("upgradeStrategy", {})
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headService must not be named"
    if not any(port.get("name") == "serve" for port in _container(cluster["headGroupSpec"]).get("ports", [])):
        yield "the head has no port named serve, so no service is created"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    if strategy.get("type", "NewCluster") not in UPGRADES:
        yield f"upgradeStrategy.type must be one of {UPGRADES}"
    if cluster.get("upgradeStrategy"):
        yield "upgradeStrategy belongs to the RayService, not to its cluster"
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _incremental(strategy.get("clusterUpgradeOptions"), cluster)


def _incremental(options: dict[str, Any] | None, cluster: dict[str, Any]) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs the autoscaler"
    if options is None:
        yield "an incremental upgrade needs clusterUpgradeOptions"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not (0 <= step <= surge <= 100):
        yield "stepSizePercent must be between 0 and maxSurgePercent, at most 100"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds must be above 0"
    if not options.get("gatewayClassName"):
        yield "an incremental upgrade needs a gatewayClassName"


def _groups(cluster: dict[str, Any]) -> Iterator[str]:
    for name, group in named_groups(cluster):
        start = group.get("rayStartParams", {})
        if group.get("resources") and any(start.get(key) for key in _START_RESOURCES):
            yield f"{name}: resources and rayStartParams both set resources"
        if "labels" in start:
            yield f"{name}: labels belong in the group's labels, not in rayStartParams"
        for key, value in group.get("labels", {}).items():
            if not (_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)):
                yield f"{name}: {key}={value} is not a Kubernetes label"
        if not group["template"]["spec"].get("containers"):
            yield f"{name}: no container"
    for group in cluster.get("workerGroupSpecs", []):
        name, min_replicas, max_replicas = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
        if min_replicas is None or max_replicas is None:
            yield f"{name}: minReplicas and maxReplicas must be set"
        elif not 0 <= min_replicas <= max_replicas:
            yield f"{name}: minReplicas must be between 0 and maxReplicas"
        if group.get("suspend"):
            yield f"{name}: a group cannot be suspended"


def _fault_tolerance(cluster: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    """Rules of GCS fault tolerance."""
    options, head = cluster.get("gcsFaultToleranceOptions"), cluster["headGroupSpec"]
    start, env = head.get("rayStartParams", {}), environment(_container(head))
    if start.get("redis-username") or "REDIS_USERNAME" in env:
        yield "the Redis user belongs in gcsFaultToleranceOptions"
    if options is None:
        if "RAY_REDIS_ADDRESS" in env:
            yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        return
    if start.get("redis-password") or "REDIS_PASSWORD" in env or "RAY_REDIS_ADDRESS" in env:
        yield "Redis belongs only in gcsFaultToleranceOptions"
    for annotation in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if annotations.get(annotation):
            yield f"{annotation} beside gcsFaultToleranceOptions"
    if options.get("backend", "redis") == "rocksdb":
        yield "the rocksdb backend is behind a feature gate"
    elif options.get("storage"):
        yield "storage is for the rocksdb backend"


def _autoscaler(cluster: dict[str, Any]) -> Iterator[str]:
    options = cluster.get("autoscalerOptions", {})
    enabled = bool(cluster.get("enableInTreeAutoscaling"))
    is_v2 = enabled and options.get("version") == "v2"
    v2_variable = environment(_container(cluster["headGroupSpec"])).get("RAY_enable_autoscaler_v2")
    if v2_variable is not None and enabled and "version" in options:
        yield "RAY_enable_autoscaler_v2 beside autoscalerOptions.version"
    if v2_variable is not None and not enabled and v2_variable.get("value") in ("1", "true"):
        yield "RAY_enable_autoscaler_v2 without the autoscaler"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in environment(options):
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is reserved for KubeRay"
    for name, group in named_groups(cluster):
        if is_v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy must be Never or unset with autoscaler v2"
        if group.get("idleTimeoutSeconds") is not None and (group["idleTimeoutSeconds"] < 0 or not is_v2):
            yield f"{name}: idleTimeoutSeconds must not be negative, and needs autoscaler v2"
        if group.get("priority") and (not is_v2 or version(cluster) < (2, 56, 0)):
            yield f"{name}: priority needs autoscaler v2 and Ray 2.56"


def _auth(cluster: dict[str, Any]) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    if options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not supported for a RayService"
    if options.get("mode") == "token" and version(cluster) < (2, 52, 0):
        yield "authOptions.mode token needs a rayVersion of 2.52.0 or later"


def _gates(cluster: dict[str, Any]) -> Iterator[str]:
    for field in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if field in cluster:
            yield f"{field} is behind a feature gate"


def named_groups(cluster: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The worker groups by name, preceded by the head as `head`."""
    return [
        ("head", cluster["headGroupSpec"]),
        *((group["groupName"], group) for group in cluster.get("workerGroupSpecs", [])),
    ]


def environment(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in container.get("env", [])}


def version(cluster: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in cluster.get("rayVersion", "0").split("."))


def _container(group: dict[str, Any]) -> dict[str, Any]:
    """The Ray container, which is the first."""
    return next(iter(group["template"]["spec"].get("containers", [])), {})
