"""Our manifests satisfy the operator's rules, and each rule detects a violation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.kuberay_rules import problems
from tests.support.manifests import OVERLAYS, ray_service

Cluster = dict[str, Any]
Change = Callable[[dict[str, Any], Cluster], object]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operator_accepts_what_we_ship(overlay: str) -> None:
    assert problems(ray_service(overlay)) == []


def head(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    return found


def group(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster["workerGroupSpecs"][0]
    return found


def upgrade(service: dict[str, Any], **options: Any) -> None:
    good = {"gatewayClassName": "istio", "stepSizePercent": 10, "intervalSeconds": 30, "maxSurgePercent": 20}
    service["spec"]["upgradeStrategy"] = {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": good | options,
    }


def env(name: str, value: str = "1") -> list[dict[str, str]]:
    return [{"name": name, "value": value}]


BROKEN: dict[str, tuple[str, Change]] = {
    "a long name": ("47", lambda s, c: s["metadata"].update(name="d" * 48)),
    "a name that starts with a digit": ("DNS-1035", lambda s, c: s["metadata"].update(name="1dlp")),
    "a bad timeout": (
        "initializing-timeout",
        lambda s, c: s["metadata"].update(annotations={"ray.io/initializing-timeout": "soon"}),
    ),
    "a named head service": (
        "headService",
        lambda s, c: c["headGroupSpec"].update(headService={"metadata": {"name": "x"}}),
    ),
    "no serve port": ("port named serve", lambda s, c: head(c).update(ports=[])),
    "a negative delay": ("DelaySeconds", lambda s, c: s["spec"].update(rayClusterDeletionDelaySeconds=-1)),
    "an unknown upgrade": ("upgradeStrategy.type", lambda s, c: s["spec"].update(upgradeStrategy={"type": "Rolling"})),
    "an upgrade of the cluster": ("belongs", lambda s, c: c.update(upgradeStrategy={"type": "Recreate"})),
    "an incremental upgrade without options": (
        "clusterUpgradeOptions",
        lambda s, c: s["spec"].update(upgradeStrategy={"type": "NewClusterWithIncrementalUpgrade"}),
    ),
    "an incremental upgrade in steps too large": ("stepSizePercent", lambda s, c: upgrade(s, stepSizePercent=30)),
    "an incremental upgrade at once": ("intervalSeconds", lambda s, c: upgrade(s, intervalSeconds=0)),
    "an incremental upgrade without gateway": ("gatewayClassName", lambda s, c: upgrade(s, gatewayClassName="")),
    "an incremental upgrade without autoscaler": (
        "needs the autoscaler",
        lambda s, c: (upgrade(s), c.update(enableInTreeAutoscaling=False)),
    ),
    "resources twice": ("both set", lambda s, c: group(c)["rayStartParams"].update({"num-cpus": "1"})),
    "labels for ray start": ("labels belong", lambda s, c: group(c)["rayStartParams"].update(labels="a=b")),
    "a bad label": ("not a Kubernetes label", lambda s, c: group(c).update(labels={"a b": "c"})),
    "a group without container": ("no container", lambda s, c: group(c)["template"]["spec"].update(containers=[])),
    "no maxReplicas": ("must be set", lambda s, c: group(c).pop("maxReplicas")),
    "minReplicas above maxReplicas": ("between 0", lambda s, c: group(c).update(minReplicas=9)),
    "a suspended group": ("suspended", lambda s, c: group(c).update(suspend=True)),
    "a Redis user": ("Redis user", lambda s, c: head(c)["env"].extend(env("REDIS_USERNAME"))),
    "a Redis password twice": ("only in", lambda s, c: head(c)["env"].extend(env("REDIS_PASSWORD"))),
    "Redis by the environment": (
        "without gcs",
        lambda s, c: (c.pop("gcsFaultToleranceOptions"), head(c)["env"].extend(env("RAY_REDIS_ADDRESS"))),
    ),
    "fault tolerance twice": (
        "ft-enabled",
        lambda s, c: s["metadata"].update(annotations={"ray.io/ft-enabled": "true"}),
    ),
    "rocksdb": ("feature gate", lambda s, c: c["gcsFaultToleranceOptions"].update(backend="rocksdb")),
    "storage for Redis": ("storage", lambda s, c: c["gcsFaultToleranceOptions"].update(storage={"size": "1Gi"})),
    "the autoscaler's version twice": (
        "beside autoscalerOptions",
        lambda s, c: head(c)["env"].extend(env("RAY_enable_autoscaler_v2")),
    ),
    "autoscaler v2 without autoscaler": (
        "without the autoscaler",
        lambda s, c: (c.update(enableInTreeAutoscaling=False), head(c)["env"].extend(env("RAY_enable_autoscaler_v2"))),
    ),
    "a negative idle timeout": ("negative", lambda s, c: c["autoscalerOptions"].update(idleTimeoutSeconds=-1)),
    "KubeRay's command": (
        "reserved for KubeRay",
        lambda s, c: c["autoscalerOptions"].update(env=env("KUBERAY_GEN_AUTOSCALER_START_CMD")),
    ),
    "pods that restart": ("restartPolicy", lambda s, c: group(c)["template"]["spec"].update(restartPolicy="Always")),
    "an idle timeout of a group with v1": (
        "needs autoscaler v2",
        lambda s, c: (c["autoscalerOptions"].update(version="v1"), group(c).update(idleTimeoutSeconds=60)),
    ),
    "priority with an old Ray": ("2.56", lambda s, c: (c.update(rayVersion="2.55.0"), group(c).update(priority=1))),
    "token auth with an old Ray": ("2.52", lambda s, c: c.update(rayVersion="2.51.0")),
    "token auth with no Ray version": ("2.52", lambda s, c: c.pop("rayVersion")),
    "Kubernetes tokens": (
        "not supported for a RayService",
        lambda s, c: c["authOptions"].update(enableK8sTokenAuth=True),
    ),
    "KubeRay's network policy": ("networkPolicy", lambda s, c: c.update(networkPolicy={})),
    "KubeRay's TLS": ("tlsOptions", lambda s, c: c.update(tlsOptions={})),
    "the history server": ("historyServerOptions", lambda s, c: c.update(historyServerOptions={})),
}


@pytest.mark.parametrize("case", BROKEN)
def test_violations_of_the_operators_rules_are_detected(case: str) -> None:
    expected, change = BROKEN[case]
    service = copy.deepcopy(ray_service("base"))
    change(service, service["spec"]["rayClusterConfig"])
    found = problems(service)
    assert any(expected in line for line in found), found


def test_a_good_incremental_upgrade_passes() -> None:
    service = copy.deepcopy(ray_service("base"))
    upgrade(service)
    assert problems(service) == []
