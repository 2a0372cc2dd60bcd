"""The manifests that come with the package, the same files as k8s/ of the repository, rendered by kubectl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from deployments.kubernetes.values import MANIFESTS, Values
from dlp_core.errors import DLPError, InvalidRequest

Object = dict[str, Any]


class KustomizeFailed(DLPError):
    """kubectl could not render the manifests; the message is its own."""

    code = "kustomize_failed"


def service(values: Values) -> list[Object]:
    """The objects of the service: base, overlay and components that the values choose, with their settings."""
    kustomization: dict[str, Any] = {
        "namespace": values.namespace,
        "resources": ["base" if values.gpu is None else f"overlays/{overlay(values)}"],
        "components": components(values),
        "configMapGenerator": [
            {
                "name": "dlp-settings",
                "behavior": "merge",
                "literals": [f"{name}={value}" for name, value in settings(values).items()],
            }
        ],
        "images": [{"name": "dlp-serve", "newName": values.image.repository}],
    }
    return kustomize(kustomization)


def monitoring(values: Values) -> list[Object]:
    """The objects of monitoring, none without it."""
    if values.monitoring is None:
        return []
    return kustomize({"namespace": values.monitoring.namespace, "resources": ["monitoring"]})


def overlay(values: Values) -> str:
    """The overlay for GPUs, whose name begins those of its components."""
    return "vllm" if values.engine == "vllm" else "gpu"


def components(values: Values) -> list[str]:
    """In their order: the volume's disk is that of the size before it."""
    chosen = {
        f"components/{overlay(values)}-{values.gpu.size if values.gpu else ''}": values.gpu,
        "components/base-model-volume": values.model.volume,
        "components/ingress": values.ingress,
        "components/gateway": values.gateway,
        "console": values.console,
    }
    return [
        *(component for component, wanted in chosen.items() if wanted),
        *(f"components/{name}" for name in values.components),
    ]


def settings(values: Values) -> dict[str, str]:
    """The variables of every Ray pod."""
    return {
        "DLP_BANK": values.bank,
        "DLP_BASE_MODEL": values.model.folder,
        "DLP_BASE_MODEL_URI": values.model.uri,
        **values.environment,
    }


def kustomize(kustomization: dict[str, Any]) -> list[Object]:
    """The objects of a kustomization whose resources and components are places in the package. Raises InvalidRequest
    without kubectl, and KustomizeFailed."""
    if shutil.which("kubectl") is None:
        raise InvalidRequest("kubectl, whose kustomize renders the manifests, is not installed; it needs no cluster")
    with tempfile.TemporaryDirectory(prefix="dlp-k8s-") as temporary:
        here = Path(temporary).resolve()
        for place in ("resources", "components"):
            paths = [MANIFESTS.resolve() / name for name in kustomization.get(place, [])]
            # resolved, because kustomize compares the real folders
            kustomization[place] = [os.path.relpath(path.resolve(), here) for path in paths]
        (here / "kustomization.yaml").write_text(json.dumps(kustomization))
        result = subprocess.run(["kubectl", "kustomize", here], capture_output=True, text=True, check=False)
    if result.returncode:
        raise KustomizeFailed(f"kubectl kustomize: {result.stderr.strip()}")
    return list(yaml.load_all(result.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
