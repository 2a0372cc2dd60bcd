"""The gate as a team would deploy it: the Job under k8s/ and the GitHub Actions workflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.shown_commands import check

WORKFLOW = ROOT / "examples/github/gate.yml"
SETTINGS = {"DLP_BANK", "DLP_BASE_MODEL", "DLP_BASE_MODEL_URI"}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The component in an overlay on top of the base, as its header comment shows."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the kustomizations, is not installed")
    folder = tmp_path_factory.mktemp("mine-gate")
    k8s = os.path.relpath(ROOT / "k8s", folder.resolve())
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{k8s}/base"],
        "components": [f"{k8s}/gate"],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(overlay))
    out = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(out.stdout))


@pytest.fixture(scope="module")
def job(rendered: list[dict[str, Any]]) -> dict[str, Any]:
    [gate_job] = [o for o in rendered if o["kind"] == "Job"]
    return gate_job


def test_the_job_is_selected_by_its_label_and_finds_the_settings_of_the_overlay(
    rendered: list[dict[str, Any]], job: dict[str, Any]
) -> None:
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    own = [o for o in rendered if o["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "gate"]
    assert {o["kind"] for o in own} == {"Job", "ConfigMap"}
    names = {o["metadata"]["name"] for o in rendered if o["kind"] == "ConfigMap"}
    [container] = job["spec"]["template"]["spec"]["containers"]
    sources = [source["configMapRef"]["name"] for source in container["envFrom"]]
    assert set(sources) <= names
    assert any(name.startswith("dlp-settings-") for name in sources)
    assert job["spec"]["template"]["spec"]["serviceAccountName"] in {
        o["metadata"]["name"] for o in rendered if o["kind"] == "ServiceAccount"
    }


def test_the_job_is_confined_like_all_pods(job: dict[str, Any]) -> None:
    spec = job["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert job["spec"]["backoffLimit"] == 0, "a bank that failed the gate must not be retried until it passes by chance"
    written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert {"/tmp", "/models", next(e["value"] for e in container["env"] if e["name"] == "HOME")} <= written


def test_the_job_judges_before_it_publishes(job: dict[str, Any]) -> None:
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/bash", "-ec"], "the script must stop at the first command that fails"
    [script] = container["args"]
    assert [check(line, "k8s/gate", environment=SETTINGS) for line in script.splitlines()] == [
        "model pull",
        "eval gate",
        "bank publish",
    ]


def test_the_workflow_judges_before_it_publishes() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    [steps] = [job["steps"] for job in workflow["jobs"].values()]
    commands = [
        check(step["run"], WORKFLOW.name, environment=workflow["env"])
        for step in steps
        if step.get("run", "").startswith("dlp ")
    ]
    assert commands == ["model pull", "eval gate", "bank publish"]
    assert [step["if"] for step in steps if "if" in step] == ["github.event_name == 'push'"]
    assert workflow["env"].keys() >= SETTINGS


def test_images_of_the_gate_can_evaluate() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    extras = [found.split(",") for found in re.findall(r"\.whl\)\[([a-z,]+)", dockerfile)]
    assert [{"serve", "eval"} <= set(found) for found in extras if "vllm" not in found] == [True, True]
    job = yaml.safe_load((ROOT / "k8s/gate/job.yaml").read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] in WORKFLOW.read_text()
