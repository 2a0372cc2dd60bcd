"""compose.yaml agrees with the Dockerfile, the command line and the dashboard. It is not started here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.shown_commands import check

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {"bank", "app"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_our_services_run_an_image_of_the_dockerfile() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert {name for name, service in SERVICES.items() if "build" in service} == OURS
    for name in OURS:
        target = SERVICES[name]["build"]["target"]
        assert SERVICES[name]["image"] == f"dlp-serve:{VERSION}-{target}"
        assert f"docker build --target {target} " in dockerfile


def test_every_other_image_is_pinned() -> None:
    for name, service in SERVICES.items():
        if name not in OURS:
            assert re.fullmatch(r"[\w./-]+:\S*\d\S*", service["image"]), name


@pytest.mark.parametrize("name", sorted(OURS))
def test_commands_and_their_variables(name: str) -> None:
    service = SERVICES[name]
    check(shlex.join(service["command"]), "compose.yaml", environment=service["environment"])
    store = SERVICES["store"]["environment"]
    assert service["environment"]["AWS_ACCESS_KEY_ID"] == store["MINIO_ROOT_USER"]
    assert service["environment"]["AWS_SECRET_ACCESS_KEY"] == store["MINIO_ROOT_PASSWORD"]
    [bucket] = re.findall(r"^s3://(\w+)/", service["environment"]["DLP_BANK"])
    assert SERVICES["bucket"]["entrypoint"][-1] == f"store/{bucket}"
    for path in re.findall(r"/opt/dlp/[\w./-]+", json.dumps(service)):
        assert re.match(r"/opt/dlp/(models|examples/bank)", path), f"{path} is not in the image"


def test_ports_are_this_machines_alone() -> None:
    ports = {port for service in SERVICES.values() for port in service.get("ports", [])}
    assert "127.0.0.1:8000:8000" in ports, "the README's curl"
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)


def test_a_service_waits_for_one_that_says_when_it_is_ready() -> None:
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            healthy = "healthcheck" in SERVICES[other]
            assert wanted["condition"] == ("service_healthy" if healthy else "service_completed_successfully"), name


def test_every_config_and_volume_is_used_and_exists() -> None:
    for kind in ("configs", "volumes"):
        used = {
            entry["source"] if isinstance(entry, dict) else entry.split(":")[0]
            for service in SERVICES.values()
            for entry in service.get(kind, [])
        }
        assert used == set(COMPOSE[kind])
    assert (ROOT / COMPOSE["configs"]["dashboard"]["file"]).is_file()


def test_compiled_kernels_are_kept() -> None:
    [folder] = [volume.split(":")[1] for volume in SERVICES["app"]["volumes"] if volume.startswith("kernels:")]
    assert f"NUMBA_CACHE_DIR={folder}/numba" in (ROOT / "Dockerfile").read_text()


def test_prometheus_gives_our_metrics_the_names_and_the_label_that_the_dashboard_reads() -> None:
    config = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"].replace("$$", "$"))
    [job] = config["scrape_configs"]
    [target] = job["static_configs"]
    assert target["targets"] == ["app:8000"]
    [rule] = job["metric_relabel_configs"]
    assert (rule["source_labels"], rule["target_label"]) == (["__name__"], "__name__")
    [wanted] = target["labels"].items()
    dashboard = json.loads((ROOT / "k8s/monitoring/dashboard.json").read_text())
    expressions = [query["expr"] for panel in dashboard["panels"] for query in panel.get("targets", [])]
    ours = {name for expression in expressions for name in re.findall(r"\bray_dlp_\w+", expression)}
    assert len(ours) > 10
    for name in ours:
        match = re.fullmatch(rule["regex"], name.removeprefix("ray_"))
        assert match
        assert match.expand(rule["replacement"].replace("$", "\\")) == name
    assert all('{}="{}"'.format(*wanted) in expression for expression in expressions)


def test_compose_reads_the_file() -> None:
    plugin = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    command = ["docker", "compose"] if plugin and plugin.returncode == 0 else [shutil.which("docker-compose") or ""]
    if command == [""]:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    said = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=True).stdout
    if tuple(int(part) for part in re.findall(r"\d+", said)[:3]) < (2, 23, 1):
        pytest.skip(f"Compose {said.strip()} is older than the 2.23.1 that the file asks for")
    done = subprocess.run(
        [*command, "--file", ROOT / "compose.yaml", "--profile", "monitoring", "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["services"]) == set(SERVICES)
