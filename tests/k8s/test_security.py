"""Containers are confined, secrets are referenced and not shipped, and pods reach only what they need."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import PurePosixPath
from typing import Any

import pytest

from deployments.kubernetes import first_key
from tests.support.manifests import (
    OVERLAYS,
    containers,
    deployments,
    find_object,
    objects,
    pods,
    ray_cluster,
    serve_config,
    settings,
)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_confined(overlay: str) -> None:
    found = list(containers(overlay))
    assert len(found) >= 6
    for name, container, spec in found:
        own, pod = container["securityContext"], spec["securityContext"]
        both = pod | own
        assert both["runAsNonRoot"] is True, name
        assert both["runAsUser"] > 0, name
        assert both["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert own["allowPrivilegeEscalation"] is False, name
        assert own["readOnlyRootFilesystem"] is True, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        assert not own.get("privileged"), name
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys(), name
    for where, spec, _ in pods(overlay):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), where
        assert all("hostPath" not in volume for volume in spec["volumes"]), where
        assert spec["automountServiceAccountToken"] is where.endswith(" head"), where
    labels = find_object(overlay, "Namespace", "dlp")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_referenced(overlay: str) -> None:
    for name, container, _ in containers(overlay):
        for entry in container.get("env", []):
            if re.search("(TOKEN|SECRET|PASSWORD|ACCESS_KEY|AUTH|ROOT_USER)(?!.*_FILE$)", entry["name"]):
                assert "secretKeyRef" in entry.get("valueFrom", {}), f"{name} {entry['name']}"
    assert "secretKeyRef" in ray_cluster(overlay)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]
    assert not [key for key in settings(overlay) if re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", key)]


@pytest.mark.parametrize("overlay", ["base", "overlays/gpu", "overlays/vllm"])
def test_no_secret_is_shipped(overlay: str) -> None:
    assert not [o for o in objects(overlay) if o["kind"] == "Secret"]


def test_the_laptop_overlay_ships_the_secrets_its_pods_name() -> None:
    shipped = {o["metadata"]["name"]: set(o["data"]) for o in objects("overlays/local") if o["kind"] == "Secret"}
    assert shipped == {"dlp-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, "dlp-redis": {"password"}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_accounts_that_pods_name_exist(overlay: str) -> None:
    """KubeRay creates no account for a head that names one."""
    accounts = {o["metadata"]["name"] for o in objects(overlay) if o["kind"] == "ServiceAccount"}
    named = {spec["serviceAccountName"] for _, spec, _ in pods(overlay) if "serviceAccountName" in spec}
    assert named == accounts == {"dlp", "dlp-head"}


# who reaches whom


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )


def allowed(overlay: str, direction: str, labels: dict[str, str], peer: dict[str, str], port: int) -> bool:
    """Whether a pod with `labels` may reach, or be reached by, a pod with `peer` labels of the same namespace."""
    rules = [
        rule
        for policy in objects(overlay)
        if policy["kind"] == "NetworkPolicy" and selects(policy["spec"]["podSelector"], labels)
        if direction.capitalize() in policy["spec"]["policyTypes"]
        for rule in [None, *policy["spec"].get(direction, [])]
    ]
    if not rules:
        return True

    def matches(rule: dict[str, Any] | None) -> bool:
        if rule is None or port not in {p["port"] for p in rule.get("ports", [{"port": port}])}:
            return False
        peers = rule.get("from" if direction == "ingress" else "to")
        return peers is None or any(
            "namespaceSelector" not in item and selects(item["podSelector"], peer)
            for item in peers
            if "podSelector" in item
        )

    return any(matches(rule) for rule in rules)


def labels_of(overlay: str, component: str) -> dict[str, str]:
    return next(labels for _, _, labels in pods(overlay) if labels["app.kubernetes.io/component"] == component)


@pytest.mark.parametrize(
    ("source", "target", "port", "open_"),
    [
        ("head", "backbone", 10002, True),
        ("backbone", "head", 6379, True),
        ("router", "backbone", 30000, True),
        ("head", "redis", 6379, True),
        ("backbone", "redis", 6379, False),
        ("redis", "head", 6379, False),
        ("router", "minio", 9000, True),
        ("backbone", "minio", 9000, True),
        ("demo-bank", "minio", 9000, True),
        ("demo-bank", "router", 8000, True),
        ("demo-bank", "head", 8265, False),
        ("demo-bank", "redis", 6379, False),
    ],
)
def test_who_reaches_whom(source: str, target: str, port: int, open_: bool) -> None:
    source_labels, target_labels = labels_of("overlays/local", source), labels_of("overlays/local", target)
    egress = allowed("overlays/local", "egress", source_labels, target_labels, port)
    ingress = allowed("overlays/local", "ingress", target_labels, source_labels, port)
    assert (egress and ingress) is open_


@pytest.mark.parametrize(
    ("address", "port", "open_"),
    [
        ("52.216.0.1", 443, True),  # S3
        ("10.0.0.9", 4317, True),  # a collector
        ("10.0.0.9", 4318, True),
        ("169.254.170.23", 80, True),  # EKS Pod Identity
        ("169.254.169.254", 80, False),  # the node's metadata
        ("169.254.169.254", 443, False),
        ("169.254.170.23", 443, False),
        ("52.216.0.1", 80, False),
        ("fd00:ec2::23", 80, True),
    ],
)
@pytest.mark.parametrize("component", ["head", "router", "backbone"])
def test_which_addresses_pods_reach(component: str, address: str, port: int, open_: bool) -> None:
    wanted, labels = ip_address(address), labels_of("base", component)
    blocks = [
        peer["ipBlock"]
        for policy in objects("base")
        if policy["kind"] == "NetworkPolicy" and selects(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get("egress", [])
        if port in {entry["port"] for entry in rule.get("ports", [])}
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    reached = [
        block
        for block in blocks
        if wanted in ip_network(block["cidr"]) and not any(wanted in ip_network(net) for net in block.get("except", []))
    ]
    assert bool(reached) is open_


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budgets_and_policies_select_existing_pods(overlay: str) -> None:
    labels = [labels for _, _, labels in pods(overlay)]
    for found in objects(overlay):
        if found["kind"] == "NetworkPolicy":
            assert any(selects(found["spec"]["podSelector"], each) for each in labels), found["metadata"]["name"]
        if found["kind"] == "PodDisruptionBudget":
            chosen = [each for each in labels if selects(found["spec"]["selector"], each)]
            assert len(chosen) == 1, found["metadata"]["name"]
            # a RayCluster has no scale subresource, so Kubernetes accepts nothing else for its pods
            assert isinstance(found["spec"]["minAvailable"], int)
            assert "maxUnavailable" not in found["spec"]
        if found["kind"] == "Service":
            assert any(selects({"matchLabels": found["spec"]["selector"]}, each) for each in labels)
    guarded = {
        o["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        for o in objects(overlay)
        if o["kind"] == "PodDisruptionBudget"
    }
    assert guarded == {"head", "router", "backbone"}


# keys


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_holders_of_a_key_are_let_in(overlay: str) -> None:
    """The ingress reads the mounted Secret, without which no router pod starts; the head makes it."""
    [application] = serve_config(overlay)["applications"]
    keys_file = PurePosixPath(application["args"]["access"]["keys_file"])
    assert keys_file.name == first_key.KEY_FILE
    specs = {where: spec for where, spec, _ in pods(overlay)}
    router = specs["RayService dlp router"]
    [mount] = [m for m in router["containers"][0]["volumeMounts"] if m["mountPath"] == str(keys_file.parent)]
    [volume] = [volume for volume in router["volumes"] if volume["name"] == mount["name"]]
    [container] = specs["RayService dlp head"]["initContainers"]
    assert container["command"] == ["python", "-m", first_key.__name__, volume["secret"]["secretName"]]
    assert not volume["secret"].get("optional")
    assert deployments(overlay)["Ingress"]["ray_actor_options"]["resources"].keys() <= {"cpu_router"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_may_make_secrets_and_nothing_more(overlay: str) -> None:
    [role] = [o for o in objects(overlay) if o["kind"] in ("Role", "ClusterRole")]
    assert role["kind"] == "Role"
    assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    [binding] = [o for o in objects(overlay) if o["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "dlp-head", "namespace": "dlp"}]
