"""The application on a cluster of five nodes: a head without CPUs, two for routers, two for one backbone each.

The nodes are processes of this machine (ray.cluster_utils), as their own scheduler sees them: what they offer differs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.measure.replicas import replicas_of
from deployments.client.activity import Activity, Reading
from deployments.fleet import drain
from deployments.local.app import LocalApp
from examples.tiny.build import TASKS
from tests.support.application import START_S, Application, ask, get, running
from tests.support.streams import question, streams
from tests.support.waiting import HANG_S, wait_for

STREAMS = 16
TWO = {"min_replicas": 2}


class Nodes(LocalApp):
    """LocalApp on several nodes."""

    cluster: Cluster

    def __init__(self, config: dict[str, Any], **settings: Any) -> None:
        backbone = config["applications"][0]["deployments"][-1]
        backbone["ray_actor_options"]["resources"] = {"gpu_backbone": 1}  # all that a node of these offers
        super().__init__(config, **settings)

    def start_ray(self) -> None:
        self.cluster = type(self).cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            add_node(self.cluster, "cpu_router")
            add_node(self.cluster, "gpu_backbone")
        ray.init(self.cluster.address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.cluster.shutdown()


def add_node(cluster: Cluster, resource: str) -> Any:
    return cluster.add_node(num_cpus=1, resources={resource: 1}, object_store_memory=80 * 1024**2)


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Application]:
    scaling = dict.fromkeys(("Ingress", "Router", "FusedBackbone"), TWO)
    with running(folder, queue=STREAMS, scaling=scaling, local_app=Nodes) as found:
        wait_for(complete, "replicas", START_S)
        yield found


def places(deployment: str) -> list[str]:
    """The kind of node of each running replica: the resource it offers, or "head"."""
    kinds = {
        node["NodeID"]: next(iter({"cpu_router", "gpu_backbone"} & set(node["Resources"])), "head")
        for node in ray.nodes()
        if node["Alive"]
    }
    return [kinds[one["node_id"]] for one in replicas_of(deployment) if one["node_id"] in kinds]


def complete() -> bool:
    return all(len(places(name)) == 2 for name in ("Ingress", "Router", "FusedBackbone"))


def node_of(deployment: str) -> Any:
    """A node that runs a replica of it."""
    ids = {one["node_id"] for one in replicas_of(deployment)}
    return next(node for node in Nodes.cluster.worker_nodes if node.node_id in ids)


def routers_and_ingresses() -> set[str]:
    return {one["replica_id"] for name in ("Ingress", "Router") for one in replicas_of(name)}


def test_each_deployment_is_on_the_nodes_meant_for_it(app: Application) -> None:
    assert places("Router") == places("Ingress") == ["cpu_router"] * 2
    assert places("FusedBackbone") == ["gpu_backbone"] * 2
    assert ask(app, TASKS["sql"].format(1))["dlp"]["reason"] == "routed"


def test_metrics_of_all_nodes_are_one_text(app: Application) -> None:
    def replicas() -> dict[str, int]:
        return Activity.of(Reading.of(get(app, "/metrics").text, 0.0)).replicas

    wait_for(lambda: replicas() == dict.fromkeys(("FusedBackbone", "Ingress", "Router"), 2), "two of each")


def test_a_lost_backbone_node_is_made_good_by_a_new_one(app: Application) -> None:
    """Meanwhile the other one serves; only the streams of the lost one end, and say so."""
    with streams(app, [question(number, 400) for number in range(STREAMS)]) as heard:
        wait_for(lambda: all(one.text for one in heard), "first tokens")
        Nodes.cluster.remove_node(node_of("FusedBackbone"), allow_graceful=False)
        wait_for(lambda: any(one.error for one in heard), "the loss")
        with streams(app, [question(number, 20) for number in range(4)]) as more:
            pass
    assert [one.error for one in more] == [None] * 4
    failed = [one for one in heard if one.error]
    assert 0 < len(failed) < STREAMS
    assert {one.error["code"] for one in failed if one.error} == {"engine_failed"}
    assert all(one.done for one in heard if not one.error)
    wait_for(lambda: len(places("FusedBackbone")) == 1, "sight of the loss")
    add_node(Nodes.cluster, "gpu_backbone")
    wait_for(complete, "backbone on the new node", START_S)
    with streams(app, [question(number, 20) for number in range(STREAMS)]) as heard:
        pass
    assert all(one.done for one in heard)


def test_a_lost_router_node_is_made_good_by_the_others(app: Application) -> None:
    before = routers_and_ingresses()
    Nodes.cluster.remove_node(node_of("Router"), allow_graceful=False)
    text = {"text": TASKS["cron"].format(5)}
    wait_for(lambda: httpx.post(f"{app.url}/v1/route", json=text, timeout=HANG_S).status_code == 200, "an answer")
    wait_for(
        lambda: complete() and not before <= routers_and_ingresses(),
        "two routers and two ingresses on the node that is left",
        START_S,
    )
    assert ask(app, TASKS["sql"].format(1))["dlp"]["reason"] == "routed"


def drain_for(seconds: float, *nodes: str) -> None:
    for node in nodes:
        drain.drain_node(Nodes.cluster.address, node, seconds)


def test_a_notice_shorter_than_a_drain_ends_only_what_runs_there(app: Application) -> None:
    """A node is taken back before its streams have ended: those end with an error, and nothing new went there."""
    add_node(Nodes.cluster, "cpu_router")  # the one that an earlier test took
    node = node_of("FusedBackbone")
    with streams(app, [question(number, 400) for number in range(STREAMS)]) as heard:
        wait_for(lambda: all(one.text for one in heard), "first tokens")
        drain_for(60.0, node.node_id)  # less than graceful_shutdown_timeout_s, so Serve stops the replica at once
        wait_for(lambda: len(replicas_of("FusedBackbone")) == 1, "one that takes requests")
        with streams(app, [question(number, 100) for number in range(4)]) as more:
            wait_for(lambda: all(one.text for one in more), "first tokens")
            Nodes.cluster.remove_node(node, allow_graceful=False)
    assert all(one.done for one in more), [one.error for one in more]
    cut = [one for one in heard if not one.done]
    assert len(cut) < STREAMS
    assert {one.error["code"] for one in cut if one.error} <= {"engine_failed"}
    assert all(one.error for one in cut)


def test_a_cluster_that_ends_lets_its_streams_finish(app: Application) -> None:
    """As when KubeRay deletes one: all workers drain at once, and none of them can take another's replicas."""
    add_node(Nodes.cluster, "gpu_backbone")
    wait_for(complete, "two backbones", START_S)
    with streams(app, [question(number, 100) for number in range(STREAMS)]) as heard:
        wait_for(lambda: all(one.text for one in heard), "first tokens")
        assert not set(drain.workers()) - {node.node_id for node in Nodes.cluster.worker_nodes}
        drain_for(570.0, *drain.workers())
        assert drain.all_leave(Nodes.cluster.address)
        drain.remove_applications()
    assert all(one.done for one in heard), [one.error for one in heard]
    wait_for(lambda: not drain.workers(), "the last worker to leave", START_S)
