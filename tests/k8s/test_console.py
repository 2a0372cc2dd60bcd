"""The console's component, added to the base as its header says."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import typer

from deployments.cli.main import app
from deployments.console.app import create_console
from deployments.console.guard import OPEN
from deployments.console.settings import ConsoleSettings
from tests.k8s.test_security import selects
from tests.support.manifests import composed, objects


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return list(objects(composed(tmp_path_factory.mktemp("mine"), "base", "console")))


def one(rendered: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [o for o in rendered if (o["kind"], o["metadata"]["name"]) == (kind, "dlp-console")]
    return found


@pytest.fixture(scope="module")
def pod(rendered: list[dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = one(rendered, "Deployment")["spec"]["template"]
    return template


@pytest.mark.parametrize("kind", ["Deployment", "Service", "NetworkPolicy"])
def test_each_object_matches_its_schema_and_the_pod(
    rendered: list[dict[str, Any]], pod: dict[str, Any], kind: str
) -> None:
    found = one(rendered, kind)
    kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
    spec, labels = found["spec"], pod["metadata"]["labels"]
    selector = {"matchLabels": spec["selector"]} if kind == "Service" else spec.get("podSelector", spec.get("selector"))
    assert selects(selector, labels)
    assert found["metadata"]["namespace"] == "dlp"


def test_it_is_confined(pod: dict[str, Any]) -> None:
    [container] = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    own = container["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"].keys() == {"requests", "limits"}


def test_secrets_are_referenced_and_the_password_is_needed(pod: dict[str, Any]) -> None:
    [container] = pod["spec"]["containers"]
    secrets = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry}
    assert {name for name, secret in secrets.items() if not secret.get("optional")} == {"DLP_CONSOLE_PASSWORD"}
    [command] = [c for c in typer.main.get_command(app).commands.values() if c.name == "console"]  # type: ignore[attr-defined]
    variables = {parameter.envvar for parameter in command.params}
    assert set(secrets) <= variables
    words = container["command"]
    assert words[:2] == ["dlp", "console"]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_its_probes_and_ports_are_those_of_the_console(rendered: list[dict[str, Any]], pod: dict[str, Any]) -> None:
    [container] = pod["spec"]["containers"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths == {OPEN}
    console = create_console(ConsoleSettings("http://127.0.0.1:8000"))
    assert OPEN in {getattr(route, "path", None) for route in console.routes}
    [port] = container["ports"]
    assert one(rendered, "Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert one(rendered, "NetworkPolicy")["spec"]["ingress"] == [{"ports": [{"port": port["containerPort"]}]}]


def test_it_reaches_the_api_and_nothing_else(rendered: list[dict[str, Any]]) -> None:
    dns, api = one(rendered, "NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [port["port"] for port in api["ports"]] == [8000]
    [peer] = api["to"]
    component = {"app.kubernetes.io/part-of": "dlp", "app.kubernetes.io/component": "redis"}
    assert not selects(peer["podSelector"], component)
    assert selects(peer["podSelector"], component | {"app.kubernetes.io/component": "router"})
