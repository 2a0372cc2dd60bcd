"""Alerts and panels query metrics that exist; every alert names an action and a page with details."""

from __future__ import annotations

import ast
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import ray.serve

from tests.support.manifests import find_object, objects, pods
from tests.support.paths import ROOT

HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
STRICT: dict[str, Any] = {
    "PodMonitor": {
        "selector": {"matchLabels": None, "matchExpressions": None},
        "namespaceSelector": {"matchNames": None, "any": None},
        "podMetricsEndpoints": {
            "port": None,
            "path": None,
            "interval": None,
            "scrapeTimeout": None,
            "honorLabels": None,
            "relabelings": {
                "sourceLabels": None,
                "targetLabel": None,
                "regex": None,
                "replacement": None,
                "action": None,
                "separator": None,
            },
        },
    },
    "PrometheusRule": {
        "groups": {
            "name": None,
            "interval": None,
            "rules": {"alert": None, "record": None, "expr": None, "for": None, "labels": None, "annotations": None},
        },
    },
}
"""The known keys of the Prometheus operator's kinds; None allows anything below."""


@lru_cache
def our_metrics() -> dict[str, str]:
    """Our metrics, from the source of deployments/observe/metrics.py: Prometheus name to kind."""
    tree = ast.parse((ROOT / "deployments/observe/metrics.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return {
        f"ray_{call.args[0].value}": call.func.id
        for call in calls
        if call.func.id in ("Counter", "Gauge", "Histogram") and isinstance(call.args[0], ast.Constant)
    }


@lru_cache
def serve_metrics() -> dict[str, str]:
    """Ray Serve's metrics, from its source: Prometheus name to kind."""
    metrics = {}
    for path in (Path(ray.serve.__file__).parent / "_private").rglob("*.py"):
        for kind, name in re.findall(
            r'(Counter|Gauge|Histogram)\(\s*(?:name=)?f?"(serve_\w[\w{}]*)"', path.read_text()
        ):
            metrics[f"ray_{name.replace('{protocol_name}', 'http')}"] = kind
    return metrics


def exported(name: str, kind: str) -> set[str]:
    """The names under which Ray exports a metric: a counter gets `_total` if missing, a histogram its three parts."""
    if kind == "Counter":
        return {name if name.endswith("_total") else f"{name}_total"}
    return {f"{name}{part}" for part in HISTOGRAM_PARTS} if kind == "Histogram" else {name}


@lru_cache
def known() -> frozenset[str]:
    return frozenset().union(*(exported(name, kind) for name, kind in (our_metrics() | serve_metrics()).items()))


def metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"\bray_[a-z0-9_]+(?=[{\[\s)]|$)", expression)) - {"ray_io_cluster"}


def rules() -> list[dict[str, Any]]:
    [group] = find_object("monitoring", "PrometheusRule", "dlp")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(find_object("monitoring", "ConfigMap", "dlp-dashboard")["data"]["dlp.json"])
    found: list[dict[str, Any]] = dashboard["panels"]
    return found


def test_metrics_are_read_from_the_source() -> None:
    assert our_metrics()["ray_dlp_bank_refused"] == "Gauge"
    assert serve_metrics()["ray_serve_num_http_requests"] == "Counter"
    assert "ray_dlp_time_to_first_token_seconds_bucket" in known()
    assert "ray_dlp_time_to_first_token_seconds" not in known()
    assert "ray_dlp_tokens_total_total" not in known()
    assert metrics_of('sum by (ray_io_cluster) (rate(ray_x_total{a="b"}[5m])) / ray_y') == {"ray_x_total", "ray_y"}


def test_every_alert_queries_existing_metrics() -> None:
    for rule in rules():
        asked = metrics_of(rule["expr"])
        assert asked, rule["alert"]
        assert asked <= known(), rule["alert"]


def test_every_panel_queries_existing_metrics() -> None:
    for panel in panels():
        for target in panel["targets"]:
            asked = metrics_of(target["expr"])
            assert asked, panel["title"]
            assert asked <= known(), panel["title"]


def test_queried_labels_are_recorded() -> None:
    """Checks our own metrics; Serve adds application and deployment, the monitor adds cluster and component."""
    source = (ROOT / "deployments/observe/metrics.py").read_text()
    everywhere = {"application", "deployment", "le", "ray_io_cluster", "component"}
    for expression in [rule["expr"] for rule in rules()] + [t["expr"] for p in panels() for t in p["targets"]]:
        for name, selector in re.findall(r"(ray_dlp_\w+)\{([^}]*)\}", expression):
            for label in set(re.findall(r"(\w+)\s*[=!]~?", selector)) - everywhere:
                assert f'"{label}"' in source, f"{name} has no label {label}"


def test_every_alert_names_an_action_and_a_page_that_exists() -> None:
    page = (ROOT / "docs/runbook.md").read_text()
    titles = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 8
    for rule in rules():
        notes = rule["annotations"]
        assert notes.keys() == {"summary", "action", "runbook"}, rule["alert"]
        assert len(notes["action"]) > 20, rule["alert"]
        path, _, anchor = notes["runbook"].partition("#")
        assert path == "docs/runbook.md"
        assert anchor in anchors, f"{rule['alert']}: docs/runbook.md has no section #{anchor}"
        assert rule["alert"] in page, "the page names the alert"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert re.fullmatch(r"\d+m", rule["for"])


@pytest.mark.parametrize("kind", STRICT)
def test_no_key_is_unknown_to_the_prometheus_operator(kind: str) -> None:
    found = find_object("monitoring", kind, "dlp")
    assert found["apiVersion"] == "monitoring.coreos.com/v1"
    assert unknown(found["spec"], STRICT[kind]) == []
    assert unknown({**found["spec"], "selectors": {}}, STRICT[kind]) == ["selectors"]


def unknown(value: Any, keys: dict[str, Any] | None, place: str = "") -> list[str]:
    if keys is None:
        return []
    if isinstance(value, list):
        return [problem for item in value for problem in unknown(item, keys, place)]
    problems = [f"{place}.{key}".lstrip(".") for key in value if key not in keys]
    return problems + [p for key in value if key in keys for p in unknown(value[key], keys[key], f"{place}.{key}")]


def test_the_monitor_finds_the_pods_and_their_ports() -> None:
    spec = find_object("monitoring", "PodMonitor", "dlp")["spec"]
    [namespace] = spec["namespaceSelector"]["matchNames"]
    assert all(o["metadata"].get("namespace", namespace) == namespace for o in objects("base"))
    [rule] = spec["selector"]["matchExpressions"]
    asked = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
    offered: set[str] = set()
    chosen = set()
    for _, pod, labels in pods("base"):
        if labels[rule["key"]] in rule["values"] and spec["selector"]["matchLabels"].items() <= labels.items():
            ports = {port["name"] for port in pod["containers"][0]["ports"]}
            assert "metrics" in ports
            offered |= ports
            chosen.add(labels[rule["key"]])
    assert chosen == {"head", "router", "backbone"}
    assert asked <= offered


def test_prometheus_may_come_in() -> None:
    numbers = {p["name"]: p["containerPort"] for _, pod, _ in pods("base") for p in pod["containers"][0]["ports"]}
    asked = {e["port"] for e in find_object("monitoring", "PodMonitor", "dlp")["spec"]["podMetricsEndpoints"]}
    namespace = find_object("monitoring", "PodMonitor", "dlp")["metadata"]["namespace"]
    open_ = {
        port["port"]
        for rule in find_object("base", "NetworkPolicy", "dlp-ray")["spec"]["ingress"]
        for peer in rule.get("from", [])
        if peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name") == namespace
        for port in rule["ports"]
    }
    assert open_ == {numbers[name] for name in asked}


def test_grafana_finds_the_dashboard() -> None:
    labels = find_object("monitoring", "ConfigMap", "dlp-dashboard")["metadata"]["labels"]
    assert labels["grafana_dashboard"] == "1"
    assert len({panel["id"] for panel in panels()}) == len(panels()) >= 10
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels())
    for panel in panels():
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
