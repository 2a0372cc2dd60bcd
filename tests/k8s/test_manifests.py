"""The manifests: their schemas, the one serve config, drain times and environment."""

from __future__ import annotations

import json
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
from deployments.cli.main import app
from deployments.fleet.drain import SETTLE_S, TOGETHER_S
from k8s.embed import MANIFESTS, embed, embedded, with_values
from tests.support.manifests import (
    OVERLAYS,
    containers,
    deployments,
    find_object,
    objects,
    ray_cluster,
    ray_containers,
    ray_service,
    serve_config,
    settings,
)
from tests.support.paths import ROOT

CONFIG = (ROOT / "serve_config.yaml").read_text()
CUSTOM = {"RayService", "PodMonitor", "PrometheusRule"}
"""Kinds without a Kubernetes schema; other tests check them."""

ENGINE = "applications.dlp.args.engine"
BACKBONE = "applications.dlp.deployments.FusedBackbone"
EVERYWHERE = {
    "applications.dlp.args.access.admin_token_file",
    "applications.dlp.args.access.keys_file",
    "applications.dlp.deployments.Ingress.max_replicas_per_node",
    "applications.dlp.deployments.Router.max_replicas_per_node",
}
GPU = {
    *EVERYWHERE,
    f"{ENGINE}.slots",
    f"{ENGINE}.host_bytes",
    f"{ENGINE}.max_requests",
    f"{ENGINE}.slot_bytes",
    f"{ENGINE}.memory_fraction",
    f"{ENGINE}.batch_tokens",
    f"{BACKBONE}.max_ongoing_requests",
    f"{BACKBONE}.max_queued_requests",
    f"{BACKBONE}.autoscaling_config.target_ongoing_requests",
    f"{BACKBONE}.ray_actor_options.num_gpus",
}
MAY_DIFFER = {
    "base": EVERYWHERE,
    "overlays/gpu": GPU,
    "overlays/vllm": {*GPU, f"{ENGINE}.kind", f"{ENGINE}.cache_tokens"} - {f"{ENGINE}.memory_fraction"},
    "overlays/local": {
        *EVERYWHERE,
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


@pytest.mark.parametrize("overlay", [*OVERLAYS, "monitoring"])
def test_every_object_matches_its_kubernetes_schema(overlay: str) -> None:
    for found in objects(overlay):
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_the_strict_schema_detects_a_typo() -> None:
    broken = json.loads(json.dumps(find_object("base", "StatefulSet", "dlp-redis")))
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
def test_the_rayservice_matches_kuberays_schema(overlay: str, rayservice_schema: Schema) -> None:
    problems = [
        f"{list(error.path)}: {error.message[:200]}" for error in rayservice_schema.iter_errors(ray_service(overlay))
    ]
    assert problems == []


def test_the_rayservice_schema_detects_a_typo(rayservice_schema: Schema) -> None:
    broken = json.loads(json.dumps(ray_service("base")))
    broken["spec"]["rayClusterConfig"]["autoscalerOptions"]["idleTimeout"] = 60
    assert list(rayservice_schema.iter_errors(broken))


# the serve config


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_manifests_hold_the_serve_config_word_for_word(path: Path) -> None:
    expected = with_values(CONFIG, MANIFESTS[path])
    assert embedded(path.read_text()) == expected, "run: python -m k8s.embed"
    assert embed(path.read_text(), expected) == path.read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_serve_config_differs_only_where_it_may(overlay: str) -> None:
    ours, theirs = dict(flat(yaml.safe_load(CONFIG))), dict(flat(serve_config(overlay)))
    assert ours.keys() == theirs.keys()
    assert {path for path in ours if ours[path] != theirs[path]} == MAY_DIFFER[overlay]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path; items of lists by their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from flat(item, f"{path}.{item.get('name', number) if isinstance(item, dict) else number}")
    else:
        yield path, value


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
    links = deployments(overlay)["Ingress"]["autoscaling_config"]["max_replicas"]
    assert backbone["max_ongoing_requests"] == args.engine.max_requests + links
    assert backbone["autoscaling_config"]["target_ongoing_requests"] <= backbone["max_ongoing_requests"]
    assert (args.bank, str(args.base_model)) == (settings(overlay)["DLP_BANK"], settings(overlay)["DLP_BASE_MODEL"])


# drain times

REPLACEMENT_S = 240
"""Time to start a pod, fetch its base model, and start a replica in it."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_requests_end_before_their_replicas_and_pods(overlay: str) -> None:
    [application] = serve_config(overlay)["applications"]
    request_timeout_s = application["args"]["limits"]["request_timeout_s"]
    graceful = max(deployment.get("graceful_shutdown_timeout_s", 20) for deployment in deployments(overlay).values())
    assert request_timeout_s < graceful
    workers = [item for item in ray_containers(overlay) if item[0].endswith("ray-worker")]
    assert len(workers) == 2
    for name, container, spec in workers:
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:4] == ["python", "-m", "deployments.fleet.drain", "--seconds"], name
        # Serve stops a replica at the latest this long before its node ends, whether or not a new one is up by then
        assert graceful + REPLACEMENT_S <= int(command[4]) < spec["terminationGracePeriodSeconds"] - SETTLE_S
    for name, container, _ in ray_containers(overlay):
        reload = next(e["value"] for e in container["env"] if e["name"] == "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S")
        assert int(reload) >= graceful, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_cluster_that_is_deleted_keeps_its_head_until_its_requests_have_ended(overlay: str) -> None:
    """Requests end in preStop hooks, so a cluster need not be kept for them, and Redis is cleaned up after its head."""
    graceful = max(deployment.get("graceful_shutdown_timeout_s", 20) for deployment in deployments(overlay).values())
    [head] = [item for item in ray_containers(overlay) if item[0].endswith("ray-head")]
    _, container, spec = head
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:5] == ["python", "-m", "deployments.fleet.drain", "--head", "--seconds"]
    assert graceful + TOGETHER_S < int(command[5]) < spec["terminationGracePeriodSeconds"] - SETTLE_S
    service = ray_service(overlay)
    assert int(service["metadata"]["annotations"]["ray.io/gcs-ft-deletion-timeout"]) > graceful + TOGETHER_S + 60
    assert 0 < service["spec"]["rayClusterDeletionDelaySeconds"] < 60


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_written_that_the_api_server_drops(overlay: str) -> None:
    """It leaves out empty lists, nulls and empty strings, and every later apply would find a difference."""

    def empty(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from empty(item, f"{path}.{key}")
        elif isinstance(value, list) and value:
            for number, item in enumerate(value):
                if item != "":  # the core group, in a role
                    yield from empty(item, f"{path}.{number}")
        elif value in ([], None, ""):
            yield path

    assert [path for found in objects(overlay) for path in empty(found, f"{found['kind']}")] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_changed_setting_starts_another_cluster(overlay: str) -> None:
    """KubeRay compares pods, so the name of the settings must change with them."""
    [name] = [
        o["metadata"]["name"]
        for o in objects(overlay)
        if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith("dlp-settings")
    ]
    assert re.fullmatch(r"dlp-settings-[a-z0-9]{10}", name)
    for where, container, _ in ray_containers(overlay):
        assert {"configMapRef": {"name": name}} in container["envFrom"], where


def test_the_job_of_the_demo_bank_survives_a_changed_setting() -> None:
    """A Job cannot be changed, so it has values of its own, which are those of the settings."""
    [(_, job, _)] = [item for item in containers("overlays/local") if item[0].startswith("Job dlp-demo-bank")]
    assert not [source for source in job["envFrom"] if "configMapRef" in source]
    own = {entry["name"]: entry["value"] for entry in job["env"]}
    shared = settings("overlays/local")
    assert {name: own[name] for name in shared if name != "DLP_BASE_MODEL"} == {
        name: value for name, value in shared.items() if name != "DLP_BASE_MODEL"
    }


# environment


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_head_and_workers_have_the_same_environment(overlay: str) -> None:
    """Serve may build the application on any of them, so its flags must be the same everywhere."""
    found = list(ray_containers(overlay))
    assert len(found) == 4
    for name, container, _ in found:
        assert (container["env"], container["envFrom"]) == (found[0][1]["env"], found[0][1]["envFrom"]), name
    env = {entry["name"]: entry for entry in found[0][1]["env"]}
    assert env["RAY_SERVE_ENABLE_HA_PROXY"]["value"] == env["RAY_SERVE_THROUGHPUT_OPTIMIZED"]["value"] == "1"
    assert {"DLP_BANK", "DLP_BASE_MODEL", "DLP_BASE_MODEL_URI", "AWS_REGION"} <= settings(overlay).keys()
    assert not settings(overlay).keys() & env.keys(), "env would override the settings"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_files_where_the_application_reads_them(overlay: str) -> None:
    """Kubernetes replaces mounted files when a Secret changes; variables and files of a subPath it leaves."""
    access = serve_config(overlay)["applications"][0]["args"]["access"]
    for name, container, spec in ray_containers(overlay):
        secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"] if mount["name"] in secrets}
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        wanted = {env["AWS_ACCESS_KEY_ID_FILE"]: "dlp-s3", env["AWS_SECRET_ACCESS_KEY_FILE"]: "dlp-s3"}
        if " router " in name:
            wanted[access["admin_token_file"]] = "dlp-admin"
        for path, secret in wanted.items():
            mount = mounts[str(Path(path).parent)]
            assert secrets[mount["name"]]["secretName"] == secret, name
            assert secrets[mount["name"]]["optional"], name
            assert mount["readOnly"], name
        assert not [mount for mount in mounts.values() if "subPath" in mount], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_that_pods_name_exist(overlay: str) -> None:
    names = {o["metadata"]["name"] for o in objects(overlay) if o["kind"] == "ConfigMap"}
    for where, container, _ in containers(overlay):
        for source in container.get("envFrom", []):
            assert source.get("configMapRef", {}).get("name", next(iter(names))) in names, where


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_base_model_is_fetched_by_an_existing_command(overlay: str) -> None:
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
def test_workers_have_a_readiness_probe_and_the_others_are_left_to_kuberay(overlay: str) -> None:
    """KubeRay injects those that are missing; its readiness probe of a worker gives up at the first failure."""
    for name, container, _ in ray_containers(overlay):
        probes = {key for key in container if key.endswith("Probe")}
        assert probes == ({"readinessProbe"} if name.endswith("ray-worker") else set()), name
        if probes:
            ready = container["readinessProbe"]
            assert ready["httpGet"] == {"path": "/-/healthz", "port": "serve"}
            assert ready["failureThreshold"] >= 3
            assert "serve" in {port["name"] for port in container["ports"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_are_spread_over_nodes(overlay: str) -> None:
    for group in ray_cluster(overlay)["workerGroupSpecs"]:
        labels, spec = group["template"]["metadata"]["labels"], group["template"]["spec"]
        [spread] = spec["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
        assert spread["matchLabelKeys"] == ["ray.io/cluster"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_else_scales_the_pods(overlay: str) -> None:
    assert not [o for o in objects(overlay) if o["kind"] == "HorizontalPodAutoscaler"]
    assert ray_cluster(overlay)["enableInTreeAutoscaling"]
