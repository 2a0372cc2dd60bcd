"""Pods are as large as what is in them: emptyDirs in requests of disk, /dev/shm and pinned memory in requests of
memory; and the components for GPUs have the sizes that `dlp k8s size` computes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from typer.testing import CliRunner

from deployments.cli.main import app
from dlp_core.engine.sizing import PROCESSES
from tests.support.kuberay_rules import problems
from tests.support.manifests import (
    OVERLAYS,
    composed,
    containers,
    deployments,
    find_object,
    objects,
    pods,
    quantity,
    ray_cluster,
    ray_service,
    serve_config,
)
from tests.support.model_folders import LLAMA_8B, QWEN_32B, write_llama
from tests.support.paths import ROOT

GIB = 2**30
VOLUME = "components/base-model-volume"
MODELS = {24: LLAMA_8B, 40: LLAMA_8B, 80: QWEN_32B}
"""The model that each component's header names, by the GB of its GPU."""
EDGES = ("incremental-upgrade", "router-endpoints", "spot", "logs", "gateway", "ingress", "pull-secret")
COMPOSED = {
    "console": ("base", "console"),
    "gate": ("base", "gate"),
    "volume": ("base", VOLUME),
    **{f"gpu-{gb}": ("overlays/gpu", f"components/gpu-{gb}gb") for gb in MODELS},
    **{f"vllm-{gb}": ("overlays/vllm", f"components/vllm-{gb}gb") for gb in MODELS},
    "gpu-24 with volume": ("overlays/gpu", "components/gpu-24gb", VOLUME),
    **{name: ("overlays/gpu", f"components/{name}") for name in EDGES},
    "all": ("overlays/vllm", "components/vllm-24gb", VOLUME, *(f"components/{name}" for name in EDGES), "console"),
}


@pytest.fixture(params=[*OVERLAYS, *COMPOSED])
def overlay(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Every overlay, and every component over an overlay."""
    return composed(tmp_path, *COMPOSED[request.param]) if request.param in COMPOSED else str(request.param)


def volumes(spec: dict[str, Any], *, memory: bool) -> float:
    """Bytes of a pod's emptyDirs: those in memory, or those on disk."""
    return sum(
        quantity(volume["emptyDir"]["sizeLimit"])
        for volume in spec["volumes"]
        if "emptyDir" in volume and (volume["emptyDir"].get("medium") == "Memory") == memory
    )


def main_containers(overlay: str, owner: str, spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The containers of a pod that run together, with the autoscaler that KubeRay adds to the head."""
    yield from spec["containers"]
    yield from (container for container in spec.get("initContainers", []) if is_sidecar(container))
    if owner.endswith(" head"):
        yield ray_cluster(overlay)["autoscalerOptions"]


def is_sidecar(container: dict[str, Any]) -> bool:
    return container.get("restartPolicy") == "Always"


def test_disk_that_pods_may_fill_is_requested(overlay: str) -> None:
    found = list(pods(overlay))
    assert len(found) >= 4
    for owner, spec, _ in found:
        requested = sum(
            quantity(container["resources"]["requests"]["ephemeral-storage"])
            for container in main_containers(overlay, owner, spec)
        )
        used = volumes(spec, memory=False)
        assert 0 < used < requested, owner  # logs count too
        assert requested <= used + 2 * GIB or owner.endswith(" backbone"), f"{owner} requests what it cannot use"
        for container in spec.get("initContainers", []):
            if is_sidecar(container):
                continue
            assert quantity(container["resources"]["requests"]["ephemeral-storage"]) > used, owner


def test_no_container_requests_more_than_its_limit(overlay: str) -> None:
    for name, container, _ in containers(overlay):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= requests.keys() <= limits.keys(), name
        assert all(quantity(requests[kind]) <= quantity(limits[kind]) for kind in requests), name


def test_shared_and_pinned_memory_are_part_of_the_pods_memory(overlay: str) -> None:
    """/dev/shm counts as memory of the pod. Pinned memory cannot be reclaimed, so it is requested too."""
    [application] = serve_config(overlay)["applications"]
    gpu = deployments(overlay)["FusedBackbone"]["ray_actor_options"]["num_gpus"]
    for owner, spec, _ in pods(overlay):
        if not owner.startswith("RayService"):
            continue
        [container] = spec["containers"]
        requested, limit = (quantity(container["resources"][kind]["memory"]) for kind in ("requests", "limits"))
        needed = volumes(spec, memory=True) + GIB  # of Ray
        if owner.endswith(" backbone"):
            needed += application["args"]["engine"]["host_bytes"] + (PROCESSES if gpu else GIB) - GIB
            assert not gpu or requested == limit, owner
        assert needed <= limit, owner


def test_every_object_of_a_component_matches_its_schema(overlay: str) -> None:
    for found in objects(overlay):
        if found["apiVersion"].partition("/")[0] not in ("ray.io", "gateway.networking.k8s.io"):
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_kuberay_accepts_it(overlay: str) -> None:
    assert problems(ray_service(overlay)) == []


# components


def header(component: str) -> str:
    text = (ROOT / "k8s" / component / "kustomization.yaml").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))


@pytest.fixture(scope="module", params=MODELS)
def sized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """A component's GB, and what the command in its header says for its model."""
    gb = request.param
    folder = tmp_path_factory.mktemp("models") / "model"
    write_llama(folder, MODELS[gb])
    [line] = re.findall(r"^# +dlp (k8s size .*)$", header(f"components/gpu-{gb}gb"), flags=re.MULTILINE)
    words = [str(folder) if word == "MODEL" else word for word in shlex.split(line)]
    result = CliRunner().invoke(app, [*words, "--json"], env={"DLP_BANK": None})
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return gb, found


@pytest.mark.parametrize("engine", ["gpu", "vllm"])
def test_a_components_sizes_are_computed(sized: tuple[int, dict[str, Any]], engine: str, tmp_path: Path) -> None:
    gb, found = sized
    assert found["warnings"] == []
    mine = composed(tmp_path, f"overlays/{engine}", f"components/{engine}-{gb}gb")
    [application] = serve_config(mine)["applications"]
    settings, device, pod = application["args"]["engine"], found["device"], found["pod"]
    assert settings["kind"] == {"gpu": "transformers", "vllm": "vllm"}[engine]
    assert (settings["slots"], settings["slot_bytes"]) == (device["slots"], device["slot_bytes"])
    assert settings["host_bytes"] == pod["pinned"]
    if engine == "gpu":
        left = 1 - device["left_alone"] / device["total"]
        assert settings["memory_fraction"] == pytest.approx(left)
    else:
        assert settings["cache_tokens"] == device["cache_tokens"] // 1024 * 1024
    assert settings["slots"] >= application["args"]["routing"]["max_adapters"]
    links = deployments(mine)["Ingress"]["autoscaling_config"]["max_replicas"]
    assert deployments(mine)["FusedBackbone"]["max_ongoing_requests"] == settings["max_requests"] + links
    group = ray_cluster(mine)["workerGroupSpecs"][1]["template"]["spec"]
    limits = group["containers"][0]["resources"]["limits"]
    assert quantity(limits["memory"]) == pod["memory"]
    assert quantity(limits["ephemeral-storage"]) >= pod["ephemeral_storage"]
    models = next(volume for volume in group["volumes"] if volume["name"] == "models")
    assert quantity(models["emptyDir"]["sizeLimit"]) >= pod["model"]


def test_what_a_header_and_the_manual_say_is_computed(sized: tuple[int, dict[str, Any]]) -> None:
    gb, found = sized
    device, pod = found["device"], found["pod"]
    text = header(f"components/gpu-{gb}gb")
    gib = {name: f"{device[name] / GIB:.1f}" for name in ("weights", "workspace", "slot_bytes", "left_alone")}
    memory, adapter = pod["memory"] // GIB, f"{device['adapter'] / 1e6:.0f} MB"
    for said in (
        f"weights {gib['weights']} GiB, workspace {gib['workspace']}, {device['slots']} slots of rank-16 adapters",
        f"({adapter}) {gib['slot_bytes']}, {gib['left_alone']} left alone",
        f"cache {device['cache_tokens']:,} tokens: {device['requests']} requests of {device['context']:,} tokens",
        f"pod: {memory} GiB of memory, {pod['pinned'] // GIB} of them pinned",
        f"{pod['ephemeral_storage'] // GIB} GiB of disk",
    ):
        assert said in text
    row = (
        f"| `gpu-{gb}gb` | {gib['weights']} | {device['slots']}; {gib['slot_bytes']} | {device['cache_tokens']:,} | "
        f"{device['requests']} | {memory} |"
    )
    manual = (ROOT / "docs/operations.md").read_text()
    assert row in manual
    rows = [line for line in manual.splitlines() if f"| `gpu-{gb}gb` |" in line and line.endswith(" |") and "$" in line]
    assert rows
    for line in rows:
        _, gpu, bandwidth, component, *computed, _ = (cell.strip() for cell in line.split("|"))
        per_second = float(bandwidth.replace(",", "")) * 1e9
        cached = device["requests"] * device["context"] * device["bytes_per_token"]
        step = device["weights"] + device["slot_bytes"] + cached
        tokens = device["requests"] * per_second / step
        assert computed == [
            f"{step / 1e9:.1f}",
            f"{tokens:,.0f}",
            f"{per_second / device['weights']:.0f}",
            f"${1e6 / (tokens * 3600):.2f}",
        ], f"{gpu} {component}"


# the base model's volume


def test_the_base_model_may_be_on_a_volume_of_any_class(tmp_path: Path) -> None:
    """As its header shows it."""
    text = header(VOLUME)
    patch = "\n".join(line.strip("# ") for line in text.splitlines() if "{op: " in line)
    assert patch.count("op:") == 2
    target = {"kind": "PersistentVolumeClaim", "name": "dlp-base-model"}
    mine = composed(
        tmp_path, "overlays/gpu", "components/gpu-24gb", VOLUME, patches=[{"target": target, "patch": patch}]
    )
    claim = find_object(mine, "PersistentVolumeClaim", "dlp-base-model")["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("efs", "20Gi")
    spec = ray_cluster(mine)["workerGroupSpecs"][1]["template"]["spec"]
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "models")
    assert volume == {"name": "models", "persistentVolumeClaim": {"claimName": "dlp-base-model"}}
    assert [mount["mountPath"] for mount in spec["initContainers"][0]["volumeMounts"] if mount["name"] == "models"] == [
        "/models"
    ], "the volume holds the folder around the model: a mount point cannot be renamed into"
    assert spec["containers"][0]["resources"]["limits"]["ephemeral-storage"] == "30Gi"
