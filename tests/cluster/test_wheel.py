"""The wheel, installed where there is no checkout, serves a bank from any folder.

What it depends on is lent by this environment: the project itself comes from the wheel alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import pytest
import yaml

from dlp_core.ports import free_port
from examples.tiny.build import BASE, write_bank
from tests.cluster.test_command import is_healthy
from tests.support.application import PATIENCE, ROOT, START_S
from tests.support.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def dlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # built in place, a wheel would have whatever was built there before
    for package in ("dlp_core", "deployments"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, "."], check=True, cwd=ROOT
    )
    [wheel] = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    subprocess.run([*pip, "--python", environment / "bin" / "python", "install", "--no-deps", wheel], check=True)
    # as a line, and not by their own .pth files: one of those would lead to the checkout
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin" / "dlp"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_is_the_wheels(dlp: Path, elsewhere: Path) -> None:
    said = subprocess.run([dlp, "--version"], check=True, capture_output=True, text=True).stdout
    assert said.startswith("dlp-serve ")
    code = "import deployments, dlp_core, pathlib as p; print(p.Path(dlp_core.__file__).parent / 'py.typed')"
    where = subprocess.run([dlp.with_name("python"), "-c", code], check=True, capture_output=True, text=True).stdout
    assert str(dlp.parents[1]) in where
    assert Path(where.strip()).is_file()
    subprocess.run([dlp, "config", "init"], check=True)
    assert Path("serve_config.yaml").read_bytes() == (ROOT / "serve_config.yaml").read_bytes()


def test_it_brings_the_manifests_along(dlp: Path, elsewhere: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the kustomizations, is not installed")
    Path("values.yaml").write_text("{bank: 's3://dlp/bank/', model: {uri: 's3://dlp/model/'}, monitoring: {}}")
    subprocess.run([dlp, "k8s", "render", "--values", "values.yaml", "--out", "out"], check=True)
    kinds = [item["kind"] for item in yaml.safe_load_all(Path("out/objects.yaml").read_text())]
    assert {"RayService", "PodMonitor"} <= set(kinds)


def test_it_serves_with_the_settings_that_come_with_it(dlp: Path, elsewhere: Path) -> None:
    write_bank(elsewhere)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | PATIENCE | {"HOME": str(elsewhere), "OMP_NUM_THREADS": "1"}
    options = ["--bank", "bank", "--base-model", str(elsewhere / BASE), "--port", str(port)]
    with subprocess.Popen([dlp, "serve", *options], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: process.poll() is not None or is_healthy(f"{url}/health"), "health", START_S)
            assert process.poll() is None, "it ended: its own words are above"
            body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=HANG_S)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 4
        finally:
            process.terminate()
            process.wait(HANG_S)


def test_a_mistake_is_told_before_ray_starts(dlp: Path, elsewhere: Path) -> None:
    said = subprocess.run(
        [dlp, "serve", "--bank", "store", "--base-model", "nonexistent"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert said.stderr.startswith("dlp: there is no folder nonexistent; a base model is")


def test_settings_that_were_edited_are_read(dlp: Path, elsewhere: Path) -> None:
    subprocess.run([dlp, "config", "init"], check=True, stdout=subprocess.DEVNULL)
    config = yaml.safe_load(Path("serve_config.yaml").read_text())
    config["applications"][0]["args"]["nonsense"] = 1
    Path("serve_config.yaml").write_text(yaml.safe_dump(config))
    said = subprocess.run(
        [dlp, "serve", "--bank", "store", "--base-model", "."], capture_output=True, text=True, check=False
    )
    assert said.returncode == 2
    assert "nonsense" in said.stderr
