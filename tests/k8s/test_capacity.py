"""Every replica of the serve config has a pod to run in, with enough memory and disk for the config's limits."""

from __future__ import annotations

import math

import pytest

from tests.support.manifests import (
    OVERLAYS,
    containers,
    deployments,
    quantity,
    ray_cluster,
    ray_containers,
    serve_config,
    settings,
)

SHARE = "share of "

Capacity = dict[str, dict[str, float]]
"""By group: the resources that Ray may allocate in one of its pods."""


def capacity(overlay: str) -> Capacity:
    """Capacity as KubeRay passes it to Ray: the group's own `resources`, and the rest from the container's limits."""
    found: Capacity = {}
    for group in ray_cluster(overlay)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        offers = {"CPU": math.ceil(quantity(limits["cpu"])), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        found[group["groupName"]] = offers | {name: quantity(value) for name, value in group["resources"].items()}
    return found


def needs(overlay: str, bound: str) -> list[dict[str, float]]:
    """Resources of each replica if every deployment has `bound` replicas, largest first. `max_replicas_per_node` is a
    share of a pod, as Ray counts it."""
    replicas = []
    for name, deployment in deployments(overlay).items():
        options = deployment["ray_actor_options"]
        need = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), **options["resources"]}
        if "max_replicas_per_node" in deployment:
            need[f"{SHARE}{name}"] = 1 / deployment["max_replicas_per_node"]
        replicas += [need] * deployment["autoscaling_config"][bound]
    return sorted(replicas, key=lambda need: need["CPU"], reverse=True)


def pods_needed(replicas: list[dict[str, float]], offers: Capacity) -> dict[str, int]:
    """Pods needed in each group if every replica goes to the first pod with room (first fit). Raises LookupError for a
    replica that no pod can hold."""
    opened: list[tuple[str, dict[str, float]]] = []

    def fits(need: dict[str, float], free: dict[str, float]) -> bool:
        return all(amount <= free.get(name, 0) + 1e-9 for name, amount in need.items())

    shares = {name: 1.0 for need in replicas for name in need if name.startswith(SHARE)}
    offers = {group: offer | shares for group, offer in offers.items()}
    for need in replicas:
        free = next((free for _, free in opened if fits(need, free)), None)
        if free is None:
            group = next((group for group, offer in offers.items() if fits(need, offer)), None)
            if group is None:
                raise LookupError(f"no group offers {need}")
            free = dict(offers[group])
            opened.append((group, free))
        for name, amount in need.items():
            free[name] = free.get(name, 0) - amount
    return {group: sum(name == group for name, _ in opened) for group in offers}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_autoscaler_reads_the_same_capacity(overlay: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec

    for group in ray_cluster(overlay)["workerGroupSpecs"]:
        read = _get_ray_resources_from_group_spec(group, False)
        read.pop("memory")
        assert {"GPU": 0, **read} == capacity(overlay)[group["groupName"]]
    assert _get_ray_resources_from_group_spec(ray_cluster(overlay)["headGroupSpec"], True)["CPU"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("bound", "replicas"), [("min_replicas", "minReplicas"), ("max_replicas", "maxReplicas")])
def test_every_replica_has_a_pod_to_run_in(overlay: str, bound: str, replicas: str) -> None:
    needed = pods_needed(needs(overlay, bound), capacity(overlay))
    for group in ray_cluster(overlay)["workerGroupSpecs"]:
        assert 1 <= needed[group["groupName"]] <= group[replicas]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_backbone_pod_takes_one_replica_and_no_other_deployment(overlay: str) -> None:
    """Two would share the CPUs and the memory that are sized for one."""
    offers = capacity(overlay)
    backbone = deployments(overlay)["FusedBackbone"]["autoscaling_config"]["max_replicas"]
    assert pods_needed(needs(overlay, "max_replicas"), offers)["backbone"] == backbone
    assert "cpu_router" not in offers["backbone"]
    assert "gpu_backbone" not in offers["router"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_lost_pod_does_not_take_all_ingress_replicas_along(overlay: str) -> None:
    found = deployments(overlay)
    assert found["Ingress"]["max_replicas_per_node"] == 1
    two = [need for need in needs(overlay, "max_replicas") if f"{SHARE}Ingress" in need][:1] * 2
    assert pods_needed(two, capacity(overlay))["router"] == 2


def test_a_resource_that_no_group_offers_is_detected() -> None:
    offers = capacity("base")
    del offers["router"]["cpu_router"]
    with pytest.raises(LookupError, match="cpu_router"):
        pods_needed(needs("base", "min_replicas"), offers)


def test_gpus_are_requested_where_they_are_offered() -> None:
    for overlay in ("overlays/gpu", "overlays/vllm"):
        assert capacity(overlay)["backbone"]["GPU"] == 1
        assert deployments(overlay)["FusedBackbone"]["ray_actor_options"]["num_gpus"] == 1
    assert all(offer["GPU"] == 0 for overlay in ("base", "overlays/local") for offer in capacity(overlay).values())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_memory_and_disk_are_large_enough_for_the_config(overlay: str) -> None:
    [application] = serve_config(overlay)["applications"]
    for name, container, spec in ray_containers(overlay):
        if not name.endswith("backbone ray-worker"):
            continue
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        home = next(entry["value"] for entry in container["env"] if entry["name"] == "HOME")
        cache = application["args"]["cache"]
        assert cache["path"].replace("~", home).startswith(f"{mounts['adapters']}/")
        assert quantity(volumes["adapters"]["emptyDir"]["sizeLimit"]) > cache["max_bytes"]
        shared = quantity(volumes["shm"]["emptyDir"]["sizeLimit"])
        host = application["args"]["engine"]["host_bytes"]
        assert quantity(container["resources"]["limits"]["memory"]) > 2 * 2**30 + host + shared
        assert settings(overlay)["DLP_BASE_MODEL"].startswith(f"{mounts['models']}/")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_object_store_fits_in_shared_memory(overlay: str) -> None:
    cluster = ray_cluster(overlay)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        shared = volumes["shm"]["emptyDir"]
        assert shared["medium"] == "Memory"
        assert quantity(shared["sizeLimit"]) > int(group["rayStartParams"]["object-store-memory"])


def test_the_laptop_overlay_fits_a_laptop() -> None:
    """4 CPUs and 8 GiB, of which a fifth is left for Kubernetes and KubeRay."""
    requests = {
        name: [quantity(container["resources"]["requests"][kind]) for kind in ("cpu", "memory")]
        for name, container, _ in containers("overlays/local")
        if not name.endswith(" base-model")  # an init container, which ends before its pod's main container starts
    }
    assert sum(cpu for cpu, _ in requests.values()) <= 4 * 0.8
    assert sum(memory for _, memory in requests.values()) <= 8 * 2**30 * 0.8
    assert all(group["maxReplicas"] == 1 for group in ray_cluster("overlays/local")["workerGroupSpecs"])
