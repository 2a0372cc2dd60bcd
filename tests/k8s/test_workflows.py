"""The project's own workflows for GitHub Actions. They are read here, and their checks of a tag are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FOLDER = ROOT / ".github/workflows"
WORKFLOWS: dict[str, Any] = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_well_formed(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}, "a job says what else it needs"
    assert True in workflow, "YAML 1.1 reads the key `on` so"
    for job in workflow["jobs"].values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
            continue
        assert job["timeout-minutes"] <= 120
        needs = job.get("needs", [])
        assert {needs} <= set(workflow["jobs"]) if isinstance(needs, str) else set(needs) <= set(workflow["jobs"])
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_to_commits_that_say_their_version(name: str) -> None:
    lines = re.findall(r"uses: (?!\./)(.+)", (FOLDER / name).read_text())
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_one_commit_for_each_action() -> None:
    pins = {line for name in WORKFLOWS for line in re.findall(r"uses: (\S+@\S+)", (FOLDER / name).read_text())}
    assert len(pins) == len({pin.split("@")[0] for pin in pins})


def test_the_targets_of_make_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = [step["run"].split()[1] for step in steps("ci.yml") if "run" in step]
    assert used == ["check", "test"]
    assert set(used) <= set(targets)


def test_every_image_is_published_for_both_architectures() -> None:
    jobs = WORKFLOWS["images.yml"]["jobs"]
    targets = re.findall(r"^#   docker build --target (\w+) ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for job in ("build", "name"):
        assert sorted(jobs[job]["strategy"]["matrix"]["target"]) == sorted(targets)
    [build] = [step for step in jobs["build"]["steps"] if "build-push-action" in step.get("uses", "")]
    assert (build["with"]["sbom"], build["with"]["provenance"]) == (True, "mode=max")


def test_the_wheel_is_published_without_a_token() -> None:
    publish = WORKFLOWS["release.yml"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert set(publish["needs"]) == {"ci", "wheel"}
    assert "secrets." not in (FOLDER / "release.yml").read_text()


@pytest.mark.parametrize("name", ["release.yml", "images.yml"])
@pytest.mark.parametrize("tag", [f"v{VERSION}", "v99.0.0"])
def test_a_tag_must_be_the_version(tmp_path: Path, name: str, tag: str) -> None:
    [script] = [step["run"] for step in steps(name) if "pyproject.toml" in step.get("run", "")]
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "GITHUB_REF_NAME": tag,
            "GITHUB_REPOSITORY": "Team/dlp-serve",
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            "TARGET": "cpu",
        },
        check=False,
    )
    assert (done.returncode == 0) == (tag == f"v{VERSION}")
    if name == "images.yml":
        said = (tmp_path / "output").read_text() if done.returncode == 0 else ""
        assert said == ("" if done.returncode else f"name=ghcr.io/team/dlp-serve:{VERSION}-cpu\n")


def test_actionlint_has_no_complaint() -> None:
    if not (actionlint := shutil.which("actionlint")):
        pytest.skip("actionlint is not installed")
    done = subprocess.run([actionlint, *FOLDER.glob("*.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
