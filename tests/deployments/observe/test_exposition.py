"""What Ray's agents export becomes one text with the names and labels that the documentation has."""

from __future__ import annotations

import pytest

from deployments.observe.exposition import Merged, application_families

SCOPE = 'otel_scope_name="ray._private",otel_scope_schema_url="",otel_scope_version=""'
AGENT = f"""\
# HELP ray_dlp_adapter_hits_total Requests an adapter took part in.
# TYPE ray_dlp_adapter_hits_total counter
ray_dlp_adapter_hits_total{{Component="core_worker",NodeAddress="127.0.0.1",SessionName="s",Version="2.60.0",\
WorkerId="w1",adapter="cron",application="dlp",deployment="Ingress",{SCOPE},replica="r1"}} 3.0
ray_dlp_adapter_hits_total{{WorkerId="w2",adapter="secret",application="other",deployment="Ingress",replica="r9"}} 8.0
# HELP ray_dlp_inter_token_seconds Time between tokens.
# TYPE ray_dlp_inter_token_seconds histogram
ray_dlp_inter_token_seconds_bucket{{application="dlp",le="0.5",replica="b1"}} 1.0
ray_dlp_inter_token_seconds_bucket{{application="dlp",le="+Inf",replica="b1"}} 2.0
ray_dlp_inter_token_seconds_count{{application="dlp",replica="b1"}} 2.0
ray_dlp_inter_token_seconds_sum{{application="dlp",replica="b1"}} 1.5
# HELP ray_dlp_requests_running Requests in the batch.
# TYPE ray_dlp_requests_running gauge
ray_dlp_requests_running{{WorkerId="w3",application="dlp",replica="b1"}} 4.0
# HELP ray_serve_deployment_replica_healthy Healthy replicas.
# TYPE ray_serve_deployment_replica_healthy gauge
ray_serve_deployment_replica_healthy{{application="dlp",deployment="Ingress",replica="r1"}} 1.0
# HELP ray_node_cpu_count CPUs.
# TYPE ray_node_cpu_count gauge
ray_node_cpu_count{{ip="127.0.0.1"}} 2.0
"""


def merged(*agents: str) -> list[str]:
    return Merged(application_families(agent, "dlp") for agent in agents).text().decode().splitlines()


def test_one_application_is_left_under_documented_names_without_rays_labels() -> None:
    assert merged(AGENT) == [
        "# HELP dlp_adapter_hits_total Requests an adapter took part in.",
        "# TYPE dlp_adapter_hits_total counter",
        'dlp_adapter_hits_total{adapter="cron",deployment="Ingress",replica="r1"} 3.0',
        "# HELP dlp_inter_token_seconds Time between tokens.",
        "# TYPE dlp_inter_token_seconds histogram",
        'dlp_inter_token_seconds_bucket{le="0.5",replica="b1"} 1.0',
        'dlp_inter_token_seconds_bucket{le="+Inf",replica="b1"} 2.0',
        'dlp_inter_token_seconds_count{replica="b1"} 2.0',
        'dlp_inter_token_seconds_sum{replica="b1"} 1.5',
        "# HELP dlp_requests_running Requests in the batch.",
        "# TYPE dlp_requests_running gauge",
        'dlp_requests_running{replica="b1"} 4.0',
    ]


def test_replicas_of_several_nodes_stay_apart() -> None:
    lines = merged(AGENT, AGENT.replace('replica="r1"', 'replica="r2"').replace("} 3.0", "} 5.0"))
    assert 'dlp_adapter_hits_total{adapter="cron",deployment="Ingress",replica="r1"} 3.0' in lines
    assert 'dlp_adapter_hits_total{adapter="cron",deployment="Ingress",replica="r2"} 5.0' in lines
    assert lines.count("# TYPE dlp_adapter_hits_total counter") == 1


def test_of_the_same_series_counts_are_added_and_the_larger_gauge_is_taken() -> None:
    lines = merged(AGENT, AGENT.replace("} 4.0", "} 3.0"))
    assert 'dlp_adapter_hits_total{adapter="cron",deployment="Ingress",replica="r1"} 6.0' in lines
    assert 'dlp_inter_token_seconds_bucket{le="+Inf",replica="b1"} 4.0' in lines
    assert 'dlp_requests_running{replica="b1"} 4.0' in lines


def test_what_is_not_prometheus_text_is_refused() -> None:
    with pytest.raises(ValueError):
        list(application_families('ray_dlp_tokens_total{application="dlp"} many\n', "dlp"))


def test_a_node_without_replicas_adds_nothing() -> None:
    assert merged(
        "# HELP ray_node_cpu_count CPUs.\n# TYPE ray_node_cpu_count gauge\nray_node_cpu_count 2.0\n", AGENT
    ) == (merged(AGENT))
