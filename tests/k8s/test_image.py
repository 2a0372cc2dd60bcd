"""The Dockerfile agrees with the tested versions and with the manifests. It is not built here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.support.manifests import OVERLAYS, containers, pods, ray_cluster
from tests.support.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE))
BASES = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
NAMES = [name for _, name in BASES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
REDIS, S3 = "redis:7.4.11", yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["store"]["image"]
KERNELS = "/home/dlp/.cache/kernels"


def text_of(stage: str) -> str:
    """A stage's instructions."""
    return dict(zip(NAMES, re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)[1:], strict=True))[stage]


def environment(stage: str) -> dict[str, str]:
    """What ENV sets in a stage and those it builds on."""
    [parent] = [base for base, name in BASES if name == stage]
    inherited = environment(parent) if parent in NAMES else {}
    lines = re.findall(r"^ENV (.+)$", text_of(stage), flags=re.MULTILINE)
    return inherited | dict(word.split("=", 1) for line in lines for word in line.split())


def copied(instructions: str) -> set[str]:
    """What is copied from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", instructions, flags=re.MULTILINE)
    return {source for line in lines for source in line.split()[:-1]}


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
        if (image := container["image"]) in (REDIS, S3):
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
    others = [line for line in installs if "--index-url" in line]
    assert len(others) == 2
    for line in others:
        assert "--no-deps" in line, "its index has old versions of what torch needs"
        assert line.split()[-1] == "torch", "only torch comes from torch's own index"


def test_torchs_index_is_named_in_one_argument() -> None:
    assert set(re.findall(r"^.*https://.*$", DOCKERFILE, flags=re.MULTILINE)) == {
        "ARG TORCH_INDEX=https://download.pytorch.org/whl"
    }


@pytest.mark.parametrize(
    ("arguments", "torch", "extras"),
    [
        ({}, "torch", "eval]"),
        (
            {"TORCH_CUDA": "cu126", "EXTRAS": "quant"},
            "--no-deps --index-url https://download.pytorch.org/whl/cu126 torch",
            "eval,quant]",
        ),
    ],
)
def test_arguments_of_the_cuda_build(tmp_path: Path, arguments: dict[str, str], torch: str, extras: str) -> None:
    """Its RUN lines in a shell, with a `pip` that prints what it is told and an `ls` that finds the wheel."""
    stage = text_of("build-cuda")
    environment = dict(re.findall(r"^ARG (\w+)=(.*)$", stage, flags=re.MULTILINE)) | arguments
    for name, prints in (("pip", '"$@"'), ("ls", "dlp.whl")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {prints}\n")
        (tmp_path / name).chmod(0o755)
    lines = [re.sub(r"^(--mount=\S+\s+)+", "", line) for line in re.findall(r"^RUN (.+)$", stage, flags=re.MULTILINE)]
    first, second = (
        subprocess.run(
            ["/bin/sh", "-c", line],
            env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split(maxsplit=3)[3]
        for line in lines
    )
    assert first.strip() == torch
    assert second.startswith("dlp.whl[serve,")
    assert second.strip().endswith(extras)


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
    for stage in ("cpu", "cuda", "vllm", "demo"):
        while "USER 1000:1000" not in text_of(stage):
            assert stage in parents
            stage = parents[stage]  # noqa: PLW2901


@pytest.mark.parametrize("image", ["cpu", "cuda", "vllm", "demo"])
def test_variables_of_an_image(image: str) -> None:
    values = environment(image)
    assert values["PATH"].startswith("/opt/dlp/venv/bin:")
    caches = {values["NUMBA_CACHE_DIR"], values["TRITON_CACHE_DIR"], values.get("VLLM_CACHE_ROOT", KERNELS)}
    assert all(cache.startswith(KERNELS) for cache in caches), "one volume keeps them all"
    gpu = {name: value for name, value in values.items() if name.startswith("NVIDIA_") or name == "LD_LIBRARY_PATH"}
    if image in ("cpu", "demo"):
        assert gpu == {}
    else:
        assert gpu.pop("LD_LIBRARY_PATH").split("${")[0] == "/usr/local/nvidia/lib64", "where GKE mounts the driver"
        assert gpu == {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def git_files(*folders: str) -> list[str]:
    command = ["git", "ls-files", *folders]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.slow
def test_the_wheel_is_built_from_what_the_dockerfile_copies(tmp_path: Path) -> None:
    context, wheels = tmp_path / "src", tmp_path / "wheels"
    for source in copied(text_of("wheel")):
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, context / source, symlinks=True, ignore=ignored)
        else:
            context.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, context)
    [line] = re.findall(r"^RUN (pip wheel .+)$", text_of("wheel"), flags=re.MULTILINE)
    command = line.replace("/wheels", str(wheels)).split()
    # setuptools is here; fetching it again would test the network
    subprocess.run([sys.executable, "-m", *command, "--no-build-isolation"], cwd=context, check=True)
    [wheel] = wheels.glob("dlp_serve-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = set()
    for tracked in git_files("dlp_core", "deployments"):
        if (ROOT / tracked).is_symlink():  # to the manifests
            folder = (ROOT / tracked).resolve().relative_to(ROOT)
            found = git_files(str(folder))
            assert found
            wanted |= {f"{tracked}/{Path(each).relative_to(folder)}" for each in found}
        else:
            wanted.add(tracked)
    assert wanted - names == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)


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
    sources = copied(DOCKERFILE)
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is ignored"
    assert set(allowed) == sources


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
