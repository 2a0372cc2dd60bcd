"""The manifests: their schemas, the one serve config, security, capacity and drain times."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from jsonschema import Draft202012Validator as Schema

from deployments.args import AppArgs
from deployments.cli import app
from deployments.drain import SETTLE_S
from k8s.embed import MANIFESTS, embed, embedded, with_values
from tests.manifests import (
    OVERLAYS,
    ROOT,
    containers,
    objects,
    one,
    pods,
    quantity,
    ray_cluster,
    ray_containers,
    ray_service,
    serve_config,
    settings,
)

CONFIG = (ROOT / "serve_config.yaml").read_text()
OURS = {"RayService"}  # kinds whose schema Kubernetes does not have

ENGINE = "applications.dlp.args.engine"
BACKBONE = "applications.dlp.deployments.FusedBackbone"
MAY_DIFFER = {
    "base": set[str](),
    "overlays/gpu": {
        f"{ENGINE}.slots",
        f"{ENGINE}.host_bytes",
        f"{ENGINE}.max_requests",
        f"{ENGINE}.cache_tokens",
        f"{ENGINE}.batch_tokens",
        f"{BACKBONE}.max_ongoing_requests",
        f"{BACKBONE}.max_queued_requests",
        f"{BACKBONE}.autoscaling_config.target_ongoing_requests",
        f"{BACKBONE}.ray_actor_options.num_gpus",
    },
    "overlays/local": {
        "applications.dlp.args.dtype",
        "applications.dlp.args.cache.max_bytes",
        f"{ENGINE}.host_bytes",
        f"{ENGINE}.max_requests",
        f"{ENGINE}.cache_tokens",
        f"{BACKBONE}.max_ongoing_requests",
        f"{BACKBONE}.max_queued_requests",
        f"{BACKBONE}.autoscaling_config.max_replicas",
        "applications.dlp.deployments.Ingress.autoscaling_config.max_replicas",
        "applications.dlp.deployments.Router.autoscaling_config.max_replicas",
    },
}


# schemas


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_what_kubernetes_expects(overlay: str) -> None:
    for found in objects(overlay):
        if found["kind"] not in OURS:
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_the_strict_schema_notices_a_typo() -> None:
    broken = json.loads(json.dumps(one("base", "StatefulSet", "dlp-redis")))
    broken["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


@pytest.fixture(scope="module")
def rayservice_schema() -> Schema:
    path = os.environ.get("DLP_TEST_RAYSERVICE_SCHEMA")
    if not path:
        pytest.skip("DLP_TEST_RAYSERVICE_SCHEMA does not name the JSON Schema of KubeRay's RayService v1")
    return Schema(json.loads(Path(path).read_text()))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rayservice_is_what_kuberay_expects(overlay: str, rayservice_schema: Schema) -> None:
    problems = [
        f"{list(error.path)}: {error.message[:200]}" for error in rayservice_schema.iter_errors(ray_service(overlay))
    ]
    assert problems == []


def test_the_rayservice_schema_notices_a_typo(rayservice_schema: Schema) -> None:
    broken = json.loads(json.dumps(ray_service("base")))
    broken["spec"]["rayClusterConfig"]["autoscalerOptions"]["idleTimeout"] = 60
    assert list(rayservice_schema.iter_errors(broken))


# the serve config


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_manifests_hold_the_serve_config_word_for_word(path: Path) -> None:
    wanted = with_values(CONFIG, MANIFESTS[path])
    assert embedded(path.read_text()) == wanted, "run: python -m k8s.embed"
    assert embed(path.read_text(), wanted) == path.read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_serve_config_differs_only_where_it_may(overlay: str) -> None:
    ours, theirs = dict(flat(yaml.safe_load(CONFIG))), dict(flat(serve_config(overlay)))
    assert ours.keys() == theirs.keys()
    assert {place for place in ours if ours[place] != theirs[place]} == MAY_DIFFER[overlay]


def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its place; items of lists by their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from flat(item, f"{place}.{item.get('name', number) if isinstance(item, dict) else number}")
    else:
        yield place, value


def test_values_go_to_their_places_and_nowhere_else() -> None:
    text = "a: 1 # one\nlist:\n  - name: x\n    a: 1\n  - name: y\n    a: {b: no}\n"
    assert with_values(text, {"list.y.a.b": 7, "a": 22}) == text.replace("a: 1 #", "a: 22 #").replace("no", "7")
    with pytest.raises(KeyError):
        with_values(text, {"list.z.a": 1})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_limits_agree(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings(overlay).items():
        monkeypatch.setenv(name, value)
    [application] = serve_config(overlay)["applications"]
    args = AppArgs(**application["args"])
    backbone = deployments(overlay)["FusedBackbone"]
    assert backbone["max_ongoing_requests"] == args.engine.max_requests
    assert backbone["autoscaling_config"]["target_ongoing_requests"] <= backbone["max_ongoing_requests"]
    assert (args.bank, str(args.base_model)) == (settings(overlay)["DLP_BANK"], settings(overlay)["DLP_BASE_MODEL"])


def deployments(overlay: str) -> dict[str, dict[str, Any]]:
    [application] = serve_config(overlay)["applications"]
    return {deployment["name"]: deployment for deployment in application["deployments"]}


# capacity

Capacity = dict[str, dict[str, float]]
"""By group: what Ray may give away in one of its pods."""


def capacity(overlay: str) -> Capacity:
    """As KubeRay tells Ray: the group's own `resources`, and what they leave open from the container's limits."""
    found: Capacity = {}
    for group in ray_cluster(overlay)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        offers = {"CPU": math.ceil(quantity(limits["cpu"])), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        found[group["groupName"]] = offers | {name: quantity(value) for name, value in group["resources"].items()}
    return found


def needs(overlay: str, bound: str) -> list[dict[str, float]]:
    """What each replica asks for when every deployment has `bound` of them, largest first."""
    replicas = []
    for deployment in deployments(overlay).values():
        options = deployment["ray_actor_options"]
        need = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), **options["resources"]}
        replicas += [need] * deployment["autoscaling_config"][bound]
    return sorted(replicas, key=lambda need: need["CPU"], reverse=True)


def pods_needed(replicas: list[dict[str, float]], offers: Capacity) -> dict[str, int]:
    """Pods of each group when every replica goes to the first one with room. Raises LookupError for one that no pod
    could ever take."""
    opened: list[tuple[str, dict[str, float]]] = []

    def fits(need: dict[str, float], free: dict[str, float]) -> bool:
        return all(amount <= free.get(name, 0) + 1e-9 for name, amount in need.items())

    for need in replicas:
        free = next((free for _, free in opened if fits(need, free)), None)
        if free is None:
            group = next((group for group, offer in offers.items() if fits(need, offer)), None)
            if group is None:
                raise LookupError(f"no group offers {need}")
            free = dict(offers[group])
            opened.append((group, free))
        for name, amount in need.items():
            free[name] = free.get(name, 0) - amount
    return {group: sum(name == group for name, _ in opened) for group in offers}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_autoscaler_reads_the_same_capacity(overlay: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec

    for group in ray_cluster(overlay)["workerGroupSpecs"]:
        read = _get_ray_resources_from_group_spec(group, False)
        read.pop("memory")
        assert {"GPU": 0, **read} == capacity(overlay)[group["groupName"]]
    assert _get_ray_resources_from_group_spec(ray_cluster(overlay)["headGroupSpec"], True)["CPU"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("bound", "replicas"), [("min_replicas", "minReplicas"), ("max_replicas", "maxReplicas")])
def test_every_replica_has_a_pod_to_run_in(overlay: str, bound: str, replicas: str) -> None:
    needed = pods_needed(needs(overlay, bound), capacity(overlay))
    for group in ray_cluster(overlay)["workerGroupSpecs"]:
        assert 1 <= needed[group["groupName"]] <= group[replicas]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_backbone_pod_takes_one_replica_and_no_other_deployment(overlay: str) -> None:
    """Two would share the CPUs and the memory that are sized for one."""
    offers = capacity(overlay)
    backbone = deployments(overlay)["FusedBackbone"]["autoscaling_config"]["max_replicas"]
    assert pods_needed(needs(overlay, "max_replicas"), offers)["backbone"] == backbone
    assert "cpu_router" not in offers["backbone"]
    assert "gpu_backbone" not in offers["router"]


def test_a_resource_that_nobody_offers_is_noticed() -> None:
    offers = capacity("base")
    del offers["router"]["cpu_router"]
    with pytest.raises(LookupError, match="cpu_router"):
        pods_needed(needs("base", "min_replicas"), offers)


def test_gpus_are_asked_for_where_they_are_offered() -> None:
    assert capacity("overlays/gpu")["backbone"]["GPU"] == 1
    assert deployments("overlays/gpu")["FusedBackbone"]["ray_actor_options"]["num_gpus"] == 1
    assert all(offer["GPU"] == 0 for overlay in ("base", "overlays/local") for offer in capacity(overlay).values())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_memory_and_disk_hold_what_the_config_may_fill(overlay: str) -> None:
    [application] = serve_config(overlay)["applications"]
    for name, container, spec in ray_containers(overlay):
        if not name.endswith("backbone ray-worker"):
            continue
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        home = next(entry["value"] for entry in container["env"] if entry["name"] == "HOME")
        cache = application["args"]["cache"]
        assert cache["path"].replace("~", home).startswith(f"{mounts['adapters']}/")
        assert quantity(volumes["adapters"]["emptyDir"]["sizeLimit"]) > cache["max_bytes"]
        shared = quantity(volumes["shm"]["emptyDir"]["sizeLimit"])
        host = application["args"]["engine"]["host_bytes"]
        assert quantity(container["resources"]["limits"]["memory"]) > 2 * 2**30 + host + shared
        assert settings(overlay)["DLP_BASE_MODEL"].startswith(f"{mounts['models']}/")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_object_store_fits_in_shared_memory(overlay: str) -> None:
    cluster = ray_cluster(overlay)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        shared = volumes["shm"]["emptyDir"]
        assert shared["medium"] == "Memory"
        assert quantity(shared["sizeLimit"]) > int(group["rayStartParams"]["object-store-memory"])


def test_the_laptop_overlay_fits_a_laptop() -> None:
    """4 CPUs and 8 GiB, with a fifth left to Kubernetes and KubeRay."""
    requests = {
        name: [quantity(container["resources"]["requests"][kind]) for kind in ("cpu", "memory")]
        for name, container, _ in containers("overlays/local")
        if not name.endswith(" base-model")  # ends before the container it shares the pod with begins
    }
    assert sum(cpu for cpu, _ in requests.values()) <= 4 * 0.8
    assert sum(memory for _, memory in requests.values()) <= 8 * 2**30 * 0.8
    assert all(group["maxReplicas"] == 1 for group in ray_cluster("overlays/local")["workerGroupSpecs"])


# drain times

REPLACEMENT_S = 240
"""A pod, its base model, and a replica in it."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_request_ends_before_what_serves_it(overlay: str) -> None:
    [application] = serve_config(overlay)["applications"]
    longest = application["args"]["limits"]["request_timeout_s"]
    graceful = max(deployment.get("graceful_shutdown_timeout_s", 20) for deployment in deployments(overlay).values())
    assert longest < graceful < ray_service(overlay)["spec"]["rayClusterDeletionDelaySeconds"]
    workers = [item for item in ray_containers(overlay) if item[0].endswith("ray-worker")]
    assert len(workers) == 2
    for name, container, spec in workers:
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:4] == ["python", "-m", "deployments.drain", "--seconds"], name
        # Serve stops a replica this long before the node ends at the latest, whether there is another by then or not
        assert graceful + REPLACEMENT_S <= int(command[4]) < spec["terminationGracePeriodSeconds"] - SETTLE_S
    for name, container, _ in ray_containers(overlay):
        reload = next(e["value"] for e in container["env"] if e["name"] == "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S")
        assert int(reload) >= graceful, name


# environment


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_head_and_workers_have_one_environment(overlay: str) -> None:
    """Serve builds the application on any of them, and its flags must be the same wherever it runs."""
    found = list(ray_containers(overlay))
    assert len(found) == 4
    for name, container, _ in found:
        assert (container["env"], container["envFrom"]) == (found[0][1]["env"], found[0][1]["envFrom"]), name
    env = {entry["name"]: entry for entry in found[0][1]["env"]}
    assert env["RAY_SERVE_ENABLE_HA_PROXY"]["value"] == env["RAY_SERVE_THROUGHPUT_OPTIMIZED"]["value"] == "1"
    assert {"DLP_BANK", "DLP_BASE_MODEL", "DLP_BASE_MODEL_URI", "AWS_REGION"} <= settings(overlay).keys()
    assert not settings(overlay).keys() & env.keys(), "env would hide what the settings say"
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DLP_ADMIN_TOKEN"} <= env.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_that_pods_name_exist(overlay: str) -> None:
    names = {o["metadata"]["name"] for o in objects(overlay) if o["kind"] == "ConfigMap"}
    for where, container, _ in containers(overlay):
        for source in container.get("envFrom", []):
            assert source.get("configMapRef", {}).get("name", next(iter(names))) in names, where


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_base_model_is_fetched_by_a_command_there_is(overlay: str) -> None:
    [(container, spec)] = [(c, s) for name, c, s in ray_containers(overlay) if name.endswith(" base-model")]
    program, *words = container["command"]
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None):
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
    assert program == "dlp"
    assert [word for word in words if word.startswith("-")] == ["--wait"]
    assert set(words[::2]) <= options
    for parameter in command.params:
        if parameter.required:
            assert parameter.envvar in settings(overlay)
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "models")
    assert settings(overlay)["DLP_BASE_MODEL"].startswith(f"{mount['mountPath']}/")
    assert not mount.get("readOnly")
    assert any(volume["name"] == "models" for volume in spec["volumes"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_of_ray_pods_are_left_to_kuberay(overlay: str) -> None:
    for name, container, _ in ray_containers(overlay):
        assert not {key for key in container if key.endswith("Probe")}, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_else_scales_the_pods(overlay: str) -> None:
    assert not [o for o in objects(overlay) if o["kind"] == "HorizontalPodAutoscaler"]
    assert ray_cluster(overlay)["enableInTreeAutoscaling"]


# security


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
    labels = one(overlay, "Namespace", "dlp")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_come_by_reference(overlay: str) -> None:
    for name, container, _ in containers(overlay):
        for entry in container.get("env", []):
            if re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY|AUTH|ROOT_USER", entry["name"]):
                assert "secretKeyRef" in entry.get("valueFrom", {}), f"{name} {entry['name']}"
    assert "secretKeyRef" in ray_cluster(overlay)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]
    assert not [key for key in settings(overlay) if re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", key)]


@pytest.mark.parametrize("overlay", ["base", "overlays/gpu"])
def test_no_secret_is_shipped(overlay: str) -> None:
    assert not [o for o in objects(overlay) if o["kind"] == "Secret"]


def test_secrets_of_the_laptop_overlay_are_those_that_pods_name() -> None:
    shipped = {o["metadata"]["name"]: set(o["data"]) for o in objects("overlays/local") if o["kind"] == "Secret"}
    assert shipped == {"dlp-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, "dlp-redis": {"password"}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_accounts_that_pods_name_exist(overlay: str) -> None:
    """KubeRay makes none for a head that names one."""
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
    one_, other = labels_of("overlays/local", source), labels_of("overlays/local", target)
    way_out = allowed("overlays/local", "egress", one_, other, port)
    way_in = allowed("overlays/local", "ingress", other, one_, port)
    assert (way_out and way_in) is open_


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budgets_and_policies_select_pods_there_are(overlay: str) -> None:
    labels = [labels for _, _, labels in pods(overlay)]
    for found in objects(overlay):
        if found["kind"] == "NetworkPolicy":
            assert any(selects(found["spec"]["podSelector"], each) for each in labels), found["metadata"]["name"]
        if found["kind"] == "PodDisruptionBudget":
            chosen = [each for each in labels if selects(found["spec"]["selector"], each)]
            assert len(chosen) == 1, found["metadata"]["name"]
            # pods of a RayCluster have no scale subresource behind them: Kubernetes takes nothing else
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
