"""The Dockerfile agrees with the tested versions and with the manifests. It is not built here."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch

import pytest

from tests.support.manifests import OVERLAYS, containers, pods, ray_cluster
from tests.support.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE))
BASES = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
NAMES = [name for _, name in BASES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
REDIS, MINIO = "redis:7.4.0", "quay.io/minio/minio:RELEASE.2025-05-24T17-08-30Z"


def test_the_python_version_is_the_tested_one() -> None:
    used = {re.fullmatch(r"python:(\d+\.\d+)-slim-bookworm", base)[1] for base, _ in BASES if ":" in base}  # type: ignore[index]
    [default] = re.findall(r"^PYTHONS := python(\S+) ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert used == {default, PROJECT["tool"]["mypy"]["python_version"]}


def test_every_stage_builds_on_an_existing_one() -> None:
    for number, (base, name) in enumerate(BASES):
        assert ":" in base or base in NAMES[:number], name
    for source in re.findall(r"(?:--from=|from=)(\w[\w-]*)", DOCKERFILE):
        assert source in NAMES
    assert NAMES[-1] == "cpu", "the target of a build without --target"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_name_existing_targets_and_versions(overlay: str) -> None:
    seen = set()
    for name, container, _ in containers(overlay):
        if name.endswith(" autoscaler"):  # uses the head's image
            continue
        if (image := container["image"]) in (REDIS, MINIO):
            continue
        repository, tag = image.split(":")
        version, target = tag.rsplit("-", 1)
        assert (repository, version) == ("dlp-serve", PROJECT["project"]["version"]), name
        assert target in NAMES, name
        assert f"docker build --target {target} " in DOCKERFILE
        assert container["imagePullPolicy"] == "IfNotPresent", "kind and minikube load the image beforehand"
        seen.add(target)
    backbones = {"base": "cpu", "overlays/gpu": "cuda", "overlays/vllm": "vllm", "overlays/local": "demo"}
    assert seen == {"cpu", backbones[overlay]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_name_the_ray_version_of_the_image(overlay: str) -> None:
    assert ray_cluster(overlay)["rayVersion"] == PINS["ray"]


def test_every_pip_install_is_constrained() -> None:
    installs = re.findall(r"pip install [^&\n]*", DOCKERFILE)
    assert len(installs) == 8
    assert all("--constraint constraints" in line for line in installs)
    assert {line.split()[3] for line in installs if "vllm" in line} == {"constraints-vllm.txt"}
    cpu = [line for line in installs if "/whl/cpu" in line]
    assert len(cpu) == 1
    assert cpu[0].split()[-1] == "torch", "only torch comes from torch's own index"


def test_the_user_matches_the_manifests() -> None:
    [user] = set(re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, flags=re.MULTILINE))
    assert user == ("1000", "1000")
    for where, spec, _ in pods("base"):
        if where.startswith("RayService"):
            context = spec["securityContext"]
            assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    system = DOCKERFILE.split(" AS system\n")[1]
    assert "USER root" not in system
    assert "wget" in system.split("\nFROM ")[0], "KubeRay's readiness probe of a worker is a wget"


def test_no_image_runs_as_root() -> None:
    parents = {name: base for base, name in BASES}
    texts = dict(zip(NAMES, re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)[1:], strict=True))
    for stage in ("cpu", "cuda", "vllm", "demo"):
        while "USER 1000:1000" not in texts[stage]:
            assert stage in parents
            stage = parents[stage]  # noqa: PLW2901


@pytest.mark.parametrize("image", ["cuda", "vllm"])
def test_the_gpu_images_have_a_compiler_for_kernel_launchers(image: str) -> None:
    stage = DOCKERFILE.split(f" AS {image}\n")[1].split("\nFROM ")[0]
    assert re.search(r"apt-get install .* gcc libc6-dev", stage)


def test_both_environments_have_the_same_ray() -> None:
    others = dict(line.split("==") for line in (ROOT / "constraints-vllm.txt").read_text().splitlines() if "==" in line)
    assert others["ray"] == PINS["ray"]


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    assert "*" in ignore
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is ignored"
    assert set(allowed) == copied


def test_the_demo_image_contains_what_the_demo_job_publishes() -> None:
    [container] = [c for name, c, _ in containers("overlays/local") if name.endswith(" publish")]
    [script] = container["args"]
    for path in re.findall(r"/opt/dlp/[\w./-]+", script):
        assert any(path.startswith(place) for place in re.findall(r"/opt/dlp/(?:models|examples/bank)", DOCKERFILE))
    assert "ensure_backbone(Path('/opt/dlp/models'))" in DOCKERFILE
    assert f"/opt/dlp/models/{_demo_model()}" in script


def _demo_model() -> str:
    from deployments.local.demo_backbone import NAME

    return NAME
