"""Rendered values satisfy all that the shipped overlays do, and each value arrives where it belongs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator as Schema

from deployments.kubernetes.folder import write_folder
from deployments.kubernetes.reading import read_values
from deployments.kubernetes.render import render
from deployments.kubernetes.schema import json_schema
from deployments.kubernetes.starter import blocks, starter
from deployments.kubernetes.values import Values, optional_components
from tests.k8s import test_capacity, test_manifests, test_rules, test_security, test_sizes
from tests.k8s.test_manifests import CUSTOM, flat, rayservice_schema
from tests.support.manifests import (
    composed,
    deployments,
    find_object,
    objects,
    pods,
    quantity,
    ray_cluster,
    ray_service,
    serve_config,
    settings,
)
from tests.support.paths import ROOT

__all__ = ["rayservice_schema"]  # a fixture

EXAMPLES = re.findall(r"```yaml\n(bank: .+?)```", (ROOT / "docs/values.md").read_text(), flags=re.DOTALL)
CPU, ONE_GPU, LARGE = (yaml.safe_load(text) for text in EXAMPLES)
LEAST = {"bank": "s3://dlp/bank/", "model": {"uri": "s3://dlp/models/SmolLM2-135M-Instruct/"}}

Rendered = Callable[[dict[str, Any]], str]


@pytest.fixture
def rendered(tmp_path: Path) -> Rendered:
    """Renders values to a folder, which the functions of tests.support.manifests take."""

    def write(document: dict[str, Any]) -> str:
        objects("base")  # skips where there is no kubectl
        number = len(list(tmp_path.iterdir()))
        values = tmp_path / f"values-{number}.yaml"
        values.write_text(yaml.safe_dump(document))
        folder = tmp_path / f"rendered-{number}"
        write_folder(folder, render(read_values(values)))
        return str(folder)

    return write


@pytest.fixture(params=["least", "cpu", "one gpu", "large"])
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    found = {"least": LEAST, "cpu": CPU, "one gpu": ONE_GPU, "large": LARGE}[request.param]
    return dict(found)


# all of them


def test_the_least_values_give_the_base(rendered: Rendered, tmp_path: Path) -> None:
    """So nothing is lost between the shipped files and what is rendered."""
    folder = rendered(LEAST)
    ours, base = ({(o["kind"], o["metadata"]["name"]): o for o in objects(name)} for name in (folder, "base"))
    assert ours.keys() == base.keys()
    assert serve_config(folder) == serve_config("base")
    for key, item in ours.items():
        if item["kind"] == "RayService":
            assert item | {"spec": None} == base[key] | {"spec": None}
            del (mine := dict(item["spec"]))["serveConfigV2"], (theirs := dict(base[key]["spec"]))["serveConfigV2"]
            assert mine == theirs
        else:
            assert item == base[key]


@pytest.mark.parametrize(("engine", "size"), [("gpu", 24), ("gpu", 40), ("gpu", 80), ("vllm", 24), ("vllm", 80)])
def test_a_size_is_its_overlay_and_component(engine: str, size: int, rendered: Rendered, tmp_path: Path) -> None:
    values = {**LEAST, "gpu": {"size": f"{size}gb"}, "engine": {"gpu": "transformers", "vllm": "vllm"}[engine]}
    folder = rendered(values)
    mine = tmp_path / "composed"
    mine.mkdir()
    theirs = composed(mine, f"overlays/{engine}", f"components/{engine}-{size}gb")
    assert serve_config(folder) == serve_config(theirs)
    assert ray_cluster(folder) == ray_cluster(theirs)


def test_every_object_matches_its_schema(
    example: dict[str, Any], rendered: Rendered, rayservice_schema: Schema
) -> None:
    folder = rendered(example)
    assert list(rayservice_schema.iter_errors(ray_service(folder))) == []
    for found in objects(folder):
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_what_holds_for_overlays_holds_for_values(
    example: dict[str, Any], rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = rendered(example)
    for check in (
        test_manifests.test_requests_end_before_their_replicas_and_pods,
        test_manifests.test_head_and_workers_have_the_same_environment,
        test_manifests.test_the_settings_that_pods_name_exist,
        test_manifests.test_the_base_model_is_fetched_by_an_existing_command,
        test_manifests.test_nothing_else_scales_the_pods,
        test_rules.test_the_operator_accepts_what_we_ship,
        test_security.test_every_container_is_confined,
        test_security.test_secrets_are_referenced,
        test_security.test_no_secret_is_shipped,
        test_security.test_accounts_that_pods_name_exist,
        test_sizes.test_disk_that_pods_may_fill_is_requested,
        test_sizes.test_no_container_requests_more_than_its_limit,
        test_sizes.test_shared_and_pinned_memory_are_part_of_the_pods_memory,
        test_capacity.test_a_backbone_pod_takes_one_replica_and_no_other_deployment,
        test_capacity.test_memory_and_disk_are_large_enough_for_the_config,
        test_capacity.test_the_object_store_fits_in_shared_memory,
    ):
        check(folder)
    for bound, replicas in (("min_replicas", "minReplicas"), ("max_replicas", "maxReplicas")):
        test_capacity.test_every_replica_has_a_pod_to_run_in(folder, bound, replicas)
    test_manifests.test_limits_agree(folder, monkeypatch)


def test_the_schema_for_editors_takes_what_is_rendered(example: dict[str, Any]) -> None:
    Schema.check_schema(json_schema())
    validator = Schema(json_schema())
    assert list(validator.iter_errors(example)) == []
    assert list(validator.iter_errors({**example, "modle": {}}))
    assert list(validator.iter_errors({**example, "args": {"engine": {"slotz": 1}}}))
    assert list(validator.iter_errors({**example, "deployments": {"Router": {"autoscaling_config": {"min": 1}}}}))


def test_every_value_of_ours_is_explained() -> None:
    from ray.serve.schema import DeploymentSchema

    schema = json_schema()
    missing = [
        f"{where}.{name}"
        for where, definition in {"": schema, **schema["$defs"]}.items()
        if where not in {"Deployment", *DeploymentSchema.model_json_schema()["$defs"]}
        for name, value in definition.get("properties", {}).items()
        if not value.get("description") and not schema["$defs"][value["$ref"].rpartition("/")[2]].get("description")
    ]
    assert missing == []


def test_the_file_to_begin_with_is_valid_and_so_is_each_of_its_values(rendered: Rendered) -> None:
    text = starter()
    rendered(yaml.safe_load(text))
    values = list(blocks(Values, hidden=True))
    assert len(values) == len(Values.model_fields)
    for block in values:
        assert all(line.strip().removeprefix("# ") in text for line in block.splitlines())
        value = yaml.safe_load(block)
        assert Schema(json_schema()).is_valid({**LEAST, **value}), value
        if "model" not in value:  # which has two that exclude each other
            Values.model_validate_json(json.dumps({**LEAST, **value}))


# each of them


def test_settings_go_to_their_places(rendered: Rendered) -> None:
    before, after = rendered(LEAST), rendered(LARGE)
    a, b = dict(flat(serve_config(before))), dict(flat(serve_config(after)))
    for place, value in {
        "args.routing.fallback": "Qwen2.5-32B-Instruct",
        "args.routing.timeout_s": 3,
        "args.limits.request_timeout_s": 600,
        "deployments.Router.autoscaling_config.target_ongoing_requests": 16,
        "deployments.Router.autoscaling_config.max_replicas": 12,
        "deployments.FusedBackbone.autoscaling_config.min_replicas": 2,
        "deployments.FusedBackbone.max_ongoing_requests": 70,
        "deployments.FusedBackbone.graceful_shutdown_timeout_s": 610,
    }.items():
        assert b[f"applications.dlp.{place}"] == value != a[f"applications.dlp.{place}"]
    assert a["applications.dlp.args.bank_poll_s"] == b["applications.dlp.args.bank_poll_s"]


def test_pods_have_their_sizes_and_nodes(rendered: Rendered) -> None:
    folder = rendered(LARGE)
    router, backbone = ray_cluster(folder)["workerGroupSpecs"]
    assert (backbone["minReplicas"], backbone["maxReplicas"]) == (2, 10)
    assert router["resources"]["CPU"] == "4"
    requests = router["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert (requests["cpu"], requests["memory"]) == ("4", "8Gi")
    assert router["template"]["spec"]["nodeSelector"] == {"pool": "cpu"}
    keys = [toleration["key"] for toleration in backbone["template"]["spec"]["tolerations"]]
    assert keys == ["nvidia.com/gpu", "reserved"]


def test_several_gpus_are_asked_for_everywhere(rendered: Rendered) -> None:
    folder = rendered({**ONE_GPU, "gpu": {"size": "80gb", "count": 4}})
    [application] = serve_config(folder)["applications"]
    group = ray_cluster(folder)["workerGroupSpecs"][1]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert application["args"]["engine"]["vllm"]["tensor_parallel"] == 4
    assert deployments(folder)["FusedBackbone"]["ray_actor_options"]["num_gpus"] == 4
    assert group["resources"]["GPU"] == resources["requests"]["nvidia.com/gpu"] == "4"
    assert resources["limits"]["nvidia.com/gpu"] == "4"


def test_images_have_their_repository_version_and_secrets(rendered: Rendered) -> None:
    image = {"repository": "registry.example.com:5000/team/dlp", "version": "9.9.9", "pull_secrets": ["pull"]}
    folder = rendered({**LARGE, "image": image})
    found = {c["image"] for _, spec, _ in pods(folder) for c in (*spec.get("initContainers", []), *spec["containers"])}
    ours = {name for name in found if "redis" not in name}
    assert ours == {f"{image['repository']}:9.9.9-cpu", f"{image['repository']}:9.9.9-cuda"}
    for name in ("dlp", "dlp-head"):
        assert find_object(folder, "ServiceAccount", name)["imagePullSecrets"] == [{"name": "pull"}]
    accounts = [(spec.get("serviceAccountName"), spec.get("imagePullSecrets")) for _, spec, _ in pods(folder)]
    assert all(account or secrets == [{"name": "pull"}] for account, secrets in accounts)


def test_volumes_have_their_classes(rendered: Rendered) -> None:
    folder = rendered(LARGE)
    claim = find_object(folder, "PersistentVolumeClaim", "dlp-base-model")["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("efs", "80Gi")
    [data] = find_object(folder, "StatefulSet", "dlp-redis")["spec"]["volumeClaimTemplates"]
    assert data["spec"]["storageClassName"] == "gp3"


def test_a_larger_disk_cache_gets_a_larger_volume(rendered: Rendered) -> None:
    folder = rendered({**LEAST, "args": {"cache": {"max_bytes": 100 * 2**30}}})
    spec = ray_cluster(folder)["workerGroupSpecs"][1]["template"]["spec"]
    [volume] = [volume for volume in spec["volumes"] if volume["name"] == "adapters"]
    assert quantity(volume["emptyDir"]["sizeLimit"]) > 100 * 2**30
    test_sizes.test_disk_that_pods_may_fill_is_requested(folder)


def test_the_store_is_reached_and_named(rendered: Rendered) -> None:
    folder = rendered(CPU)
    assert settings(folder)["AWS_ENDPOINT_URL_S3"] == "http://minio.storage:9000"
    assert settings(folder)["DLP_BASE_MODEL"] == "/models/SmolLM2-135M-Instruct"
    egress = find_object(folder, "NetworkPolicy", "dlp-ray")["spec"]["egress"]
    assert [rule["ports"] for rule in egress if "to" not in rule and len(rule["ports"]) == 1] == [
        [{"port": 9000, "protocol": "TCP"}]
    ]
    annotations = find_object(rendered(ONE_GPU), "ServiceAccount", "dlp")["metadata"]["annotations"]
    assert annotations == ONE_GPU["service_account_annotations"]


def test_an_ingress_waits_as_long_as_requests_may_take(rendered: Rendered) -> None:
    ingress = find_object(rendered(LARGE), "Ingress", "dlp")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "630"
    assert annotations["nginx.org/proxy-read-timeout"] == "630s"
    assert annotations["alb.ingress.kubernetes.io/load-balancer-attributes"] == "idle_timeout.timeout_seconds=630"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "2m"
    assert annotations["cert-manager.io/cluster-issuer"] == "letsencrypt"
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"hosts": ["llm.example.com"], "secretName": "llm-tls"}]
    [rule] = ingress["spec"]["rules"]
    assert rule["host"] == "llm.example.com"


def test_a_gateway_waits_as_long_and_has_its_names(rendered: Rendered) -> None:
    way = {"host": "llm.example.com", "class_name": "eg", "tls_secret": "llm-tls"}
    folder = rendered({**LEAST, "gateway": way, "args": {"limits": {"request_timeout_s": 900}}})
    gateway, route = find_object(folder, "Gateway", "dlp")["spec"], find_object(folder, "HTTPRoute", "dlp")["spec"]
    [listener], [rule] = gateway["listeners"], route["rules"]
    assert (gateway["gatewayClassName"], listener["hostname"], route["hostnames"]) == ("eg", way["host"], [way["host"]])
    assert listener["tls"]["certificateRefs"] == [{"name": "llm-tls"}]
    assert rule["timeouts"] == {"request": "930s"}


@pytest.mark.parametrize("component", optional_components())
def test_a_component_may_be_added(component: str, rendered: Rendered) -> None:
    folder = rendered({**LEAST, "components": [component]})
    shipped = find_object("base", "RayService", "dlp")["spec"]["rayClusterConfig"]["headGroupSpec"]
    head = ray_cluster(folder)["headGroupSpec"]["template"]["spec"]
    names = {container["name"] for container in head["initContainers"]}
    assert {container["name"] for container in shipped["template"]["spec"]["initContainers"]} <= names


def test_monitoring_is_beside_the_service_and_let_in(rendered: Rendered) -> None:
    folder = rendered({**LARGE, "namespace": "serving"})
    monitor = find_object(folder, "PodMonitor", "dlp")
    assert monitor["metadata"]["namespace"] == "observability"
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == ["serving"]
    peers = [
        peer["namespaceSelector"]["matchLabels"]
        for rule in find_object(folder, "NetworkPolicy", "dlp-ray")["spec"]["ingress"]
        for peer in rule.get("from", [])
        if peer.get("namespaceSelector")
    ]
    assert peers == [{"kubernetes.io/metadata.name": "observability"}]


def test_another_namespace_is_everywhere(rendered: Rendered) -> None:
    folder = rendered({**LEAST, "namespace": "team-a", "console": True})
    places = {o["metadata"].get("namespace", o["metadata"]["name"]) for o in objects(folder)}
    assert places == {"team-a"}
    [binding] = [o for o in objects(folder) if o["kind"] == "RoleBinding"]
    assert [subject["namespace"] for subject in binding["subjects"]] == ["team-a"]


@pytest.mark.parametrize("keys", [{"open": True}, {"secret": "team-keys"}])
def test_keys_are_made_only_where_they_are_wanted(keys: dict[str, Any], rendered: Rendered) -> None:
    folder = rendered({**LEAST, "keys": keys})
    [application] = serve_config(folder)["applications"]
    assert (application["args"]["access"]["keys_file"] is None) is ("open" in keys)
    assert "initContainers" not in ray_cluster(folder)["headGroupSpec"]["template"]["spec"]
    assert not [o for o in objects(folder) if o["kind"] in ("Role", "RoleBinding")]
    spec = ray_cluster(folder)["workerGroupSpecs"][0]["template"]["spec"]
    [secret] = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "keys"]
    assert secret.get("optional", False) is ("open" in keys)
    assert secret["secretName"] == keys.get("secret", "dlp-keys")


# Helm


def test_helm_renders_what_kubectl_does(example: dict[str, Any], rendered: Rendered) -> None:
    """By the library of Helm 4, less the namespace. A value given to Helm itself would do nothing, so it is refused."""
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk, Helm as a library, is not installed")
    folder = rendered(example)
    with helm.Chart.load(folder) as chart:
        [text] = chart.render({}, name="dlp", namespace="dlp").values()
        with pytest.raises(helm.HelmError, match="additional properties 'bank' not allowed"):
            chart.render({"bank": "s3://other/bank/"}, name="dlp", namespace="dlp")
    found = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(text)}
    assert found == {(o["kind"], o["metadata"]["name"]): o for o in objects(folder) if o["kind"] != "Namespace"}
