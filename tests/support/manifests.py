"""The manifests under k8s/, rendered as `kubectl apply -k` would send them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

OVERLAYS = ("base", "overlays/local", "overlays/gpu", "overlays/vllm")

_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@lru_cache
def _rendered(folder: str) -> tuple[dict[str, Any], ...]:
    out = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / folder)], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    return tuple(yaml.safe_load_all(out.stdout))


def objects(folder: str) -> tuple[dict[str, Any], ...]:
    """All objects of a kustomization under k8s/, or of a folder by its full path. Callers must not change them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the kustomizations, is not installed")
    return _rendered(folder)


def composed(folder: Path, overlay: str, *components: str, patches: Sequence[dict[str, Any]] = ()) -> str:
    """Writes an overlay of one's own to `folder`: a kustomization under k8s/ with components, and patches after them.
    Returns what the other functions here take for it."""
    k8s = os.path.relpath(ROOT / "k8s", folder.resolve())
    mine = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{k8s}/{overlay}"],
        "components": [f"{k8s}/{component}" for component in components],
        "patches": list(patches),
    }
    (folder / "kustomization.yaml").write_text(json.dumps(mine))
    return str(folder)


def find_object(folder: str, kind: str, name: str) -> dict[str, Any]:
    [match] = [o for o in objects(folder) if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return match


def ray_service(folder: str) -> dict[str, Any]:
    return find_object(folder, "RayService", "dlp")


def ray_cluster(folder: str) -> dict[str, Any]:
    cluster: dict[str, Any] = ray_service(folder)["spec"]["rayClusterConfig"]
    return cluster


def serve_config(folder: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(ray_service(folder)["spec"]["serveConfigV2"])
    return config


def deployments(folder: str) -> dict[str, dict[str, Any]]:
    """The deployments of the serve config, by name."""
    [application] = serve_config(folder)["applications"]
    return {deployment["name"]: deployment for deployment in application["deployments"]}


def settings(folder: str) -> dict[str, str]:
    """The settings that every Ray container gets through envFrom."""
    [data] = [
        o["data"]
        for o in objects(folder)
        if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith("dlp-settings")
    ]
    return dict(data)


def pods(folder: str) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Owner, spec and labels of every pod that an object of this kustomization creates."""
    for item in objects(folder):
        owner = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = item["spec"]["template"]
            yield owner, template["spec"], template["metadata"]["labels"]
        elif item["kind"] == "RayService":
            cluster = ray_cluster(folder)
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                template = group["template"]
                name = group.get("groupName", "head")
                yield f"{owner} {name}", template["spec"], template["metadata"]["labels"]


def containers(folder: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, container and pod spec of every container, including the autoscaler that KubeRay adds to the head."""
    for owner, spec, _ in pods(folder):
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            yield f"{owner} {container['name']}", container, spec
        if owner.endswith(" head"):
            yield f"{owner} autoscaler", ray_cluster(folder)["autoscalerOptions"], spec


def ray_containers(folder: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The containers with our image and Ray's environment: head, workers, and the workers' init containers."""
    for name, container, spec in containers(folder):
        if name.startswith("RayService") and not name.endswith((" autoscaler", " first-key")):
            yield name, container, spec


def quantity(value: str | float) -> float:
    """The value of a Kubernetes quantity."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]
