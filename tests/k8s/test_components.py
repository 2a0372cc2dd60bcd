"""What the components for rollouts and edges change, as they are rendered over an overlay."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator as Schema

from tests.support.kuberay_rules import problems
from tests.support.manifests import (
    composed,
    containers,
    deployments,
    find_object,
    objects,
    pods,
    ray_cluster,
    ray_service,
    serve_config,
)
from tests.support.paths import ROOT

Compose = Callable[..., str]


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    def over_gpu(*components: str, **settings: Any) -> str:
        return composed(tmp_path, "overlays/gpu", *(f"components/{name}" for name in components), **settings)

    return over_gpu


def group(folder: str, name: str) -> dict[str, Any]:
    [found] = [group for group in ray_cluster(folder)["workerGroupSpecs"] if group["groupName"] == name]
    spec: dict[str, Any] = found["template"]["spec"]
    return spec


def request_timeout() -> float:
    [application] = serve_config("base")["applications"]
    return float(application["args"]["limits"]["request_timeout_s"])


def seconds(text: str) -> float:
    return float(re.fullmatch(r"(?:.*=)?(\d+)s?", text).group(1))  # type: ignore[union-attr]


# rollouts


def test_an_upgrade_in_steps_has_what_kuberay_wants(compose: Compose) -> None:
    strategy = ray_service(compose("incremental-upgrade"))["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    options = strategy["clusterUpgradeOptions"]
    assert options.keys() == {"gatewayClassName", "maxSurgePercent", "stepSizePercent", "intervalSeconds"}
    broken = {**ray_service(compose("incremental-upgrade"))}
    broken["spec"] = {**broken["spec"], "upgradeStrategy": {**strategy, "clusterUpgradeOptions": {}}}
    assert len(problems(broken)) >= 2


def test_backbones_behind_routers_are_never_endpoints_and_need_no_budget(compose: Compose) -> None:
    mine = compose("router-endpoints")
    [gate] = group(mine, "backbone")["readinessGates"]
    assert "/" in gate["conditionType"]
    assert "readinessGates" not in group(mine, "router")
    budgets = {o["metadata"]["name"] for o in objects(mine) if o["kind"] == "PodDisruptionBudget"}
    assert budgets == {"dlp-head", "dlp-router"}


def test_a_spot_backbone_drains_within_its_notice(compose: Compose) -> None:
    """Less than graceful_shutdown_timeout_s, or Serve would send new streams to a node that goes away."""
    mine = compose("spot")
    spec, base = group(mine, "backbone"), group("base", "backbone")
    command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:-1] == base["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][:-1]
    assert int(command[-1]) < spec["terminationGracePeriodSeconds"] < 120
    assert int(command[-1]) < deployments(mine)["FusedBackbone"]["graceful_shutdown_timeout_s"]
    assert group(mine, "router") == group("overlays/gpu", "router")


# logs


def test_every_ray_pod_has_its_logs_on_a_stdout(compose: Compose) -> None:
    mine = compose("logs")
    [name] = [o["metadata"]["name"] for o in objects(mine) if o["metadata"]["name"].startswith("dlp-logs-")]
    before = {owner: spec.get("initContainers", []) for owner, spec, _ in pods("overlays/gpu")}
    for owner, spec, _ in pods(mine):
        if not owner.startswith("RayService"):
            continue
        [sidecar] = [container for container in spec["initContainers"] if container["name"] == "logs"]
        assert sidecar["restartPolicy"] == "Always", "a plain container would end when a drain begins"
        assert spec["initContainers"] == [*before[owner], sidecar], "others are patched by their place"
        [written] = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["mountPath"] == "/tmp"]
        [read] = [mount for mount in sidecar["volumeMounts"] if mount["mountPath"] == "/tmp"]
        assert read == {**written, "readOnly": True}
        [configuration] = [volume for volume in spec["volumes"] if volume["name"] == "logs"]
        assert configuration["configMap"] == {"name": name}
        [place] = [mount["mountPath"] for mount in sidecar["volumeMounts"] if mount["name"] == "logs"]
        assert sidecar["command"][-1] == f"{place}/fluent-bit.yaml"


def test_the_sidecar_is_confined(compose: Compose) -> None:
    found = [item for item in containers(compose("logs")) if item[0].endswith(" logs")]
    assert len(found) == 3
    for name, container, _ in found:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        assert own["readOnlyRootFilesystem"], name


def test_fluent_bit_reads_what_serve_writes_and_prints_it() -> None:
    settings = yaml.safe_load((ROOT / "k8s/components/logs/fluent-bit.yaml").read_text())
    pipeline = settings["pipeline"]
    assert {kind: [plugin["name"] for plugin in plugins] for kind, plugins in pipeline.items()} == {
        "inputs": ["tail"],
        "filters": ["parser"],
        "outputs": ["stdout"],
    }
    paths = pipeline["inputs"][0]["path"].split(", ")
    assert all(path.startswith("/tmp/ray/session_latest/logs/") for path in paths)
    assert "/tmp/ray/session_latest/logs/serve/*.log" in paths


# edges


def test_an_ingress_streams_for_as_long_as_a_request_may_take(compose: Compose) -> None:
    ingress = find_object(compose("ingress"), "Ingress", "dlp")
    notes = ingress["metadata"]["annotations"]
    assert notes["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert notes["nginx.org/proxy-buffering"] == "False"
    limits = {key: value for key, value in notes.items() if "timeout" in key or "timeout" in value}
    assert len(limits) == 7
    assert all(seconds(value) > request_timeout() for value in limits.values()), limits
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]]
    [path] = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "dlp-serve-svc", "port": {"number": 8000}}


def test_a_route_streams_for_as_long_as_a_request_may_take(compose: Compose) -> None:
    mine = compose("gateway")
    route, gateway = find_object(mine, "HTTPRoute", "dlp")["spec"], find_object(mine, "Gateway", "dlp")["spec"]
    [rule] = route["rules"]
    assert seconds(rule["timeouts"]["request"]) > request_timeout()
    assert rule["backendRefs"] == [{"name": "dlp-serve-svc", "port": 8000}]
    [listener] = gateway["listeners"]
    assert (listener["protocol"], listener["tls"]["mode"]) == ("HTTPS", "Terminate")
    assert route["hostnames"] == [listener["hostname"]]


@pytest.fixture
def gateway_schemas() -> dict[str, Schema]:
    folder = os.environ.get("DLP_TEST_GATEWAY_CRDS")
    if not folder:
        pytest.skip("DLP_TEST_GATEWAY_CRDS does not name the folder with the Gateway API's resource definitions")
    found = {}
    for path in Path(folder).glob("gateway.networking.k8s.io_*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        [version] = [version for version in definition["versions"] if version["name"] == "v1"] or [None]
        if version is not None:
            found[definition["names"]["kind"]] = Schema(closed(version["schema"]["openAPIV3Schema"]))
    return found


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields forbidden, as the API server's strict validation has it."""
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {
            key: value if key == "metadata" else closed(value) for key, value in schema["properties"].items()
        }
        schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), dict):
        schema["items"] = closed(schema["items"])
    return schema


@pytest.mark.parametrize("kind", ["Gateway", "HTTPRoute"])
def test_gateway_objects_match_their_schemas(kind: str, compose: Compose, gateway_schemas: dict[str, Schema]) -> None:
    found = find_object(compose("gateway"), kind, "dlp")
    assert [error.message for error in gateway_schemas[kind].iter_errors(found)] == []
    assert list(gateway_schemas[kind].iter_errors({**found, "spec": {**found["spec"], "typo": 1}}))


@pytest.mark.parametrize(
    ("component", "kind"), [("gateway", "Gateway"), ("gateway", "HTTPRoute"), ("ingress", "Ingress")]
)
def test_names_are_changed_as_the_header_says(component: str, kind: str, compose: Compose) -> None:
    text = (ROOT / f"k8s/components/{component}/kustomization.yaml").read_text()
    lines = [line.removeprefix("# ").removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    start = next(number for number, line in enumerate(lines) if line.strip() == "patches:")
    block = "\n".join(line for line in lines[start + 1 :] if line.startswith("    ") and line.strip())
    patches = yaml.safe_load(f"patches:\n{block}")["patches"]
    mine = compose(component, patches=patches)
    found = find_object(mine, kind, "dlp")
    assert "example.com" in str(found["spec"])
    assert "dlp.example.com" not in str(found["spec"])


def test_all_pods_that_pull_our_images_have_the_registrys_secret(compose: Compose) -> None:
    mine = compose("pull-secret")
    secret = [{"name": "dlp-registry"}]
    accounts = {o["metadata"]["name"]: o for o in objects(mine) if o["kind"] == "ServiceAccount"}
    assert all(account["imagePullSecrets"] == secret for account in accounts.values())
    for owner, spec, _ in pods(mine):
        assert spec.get("imagePullSecrets") == secret or spec["serviceAccountName"] in accounts, owner
