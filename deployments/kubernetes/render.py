"""From values to the objects of an installation: the shipped manifests, with the values in their places."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import yaml

from deployments.kubernetes import manifests
from deployments.kubernetes.folder import dump
from deployments.kubernetes.manifests import Object
from deployments.kubernetes.serve_settings import Config, longer, request_timeout, serve_config
from deployments.kubernetes.values import PodValues, Values
from dlp_core.engine.sizing import PROCESSES
from dlp_core.errors import InvalidRequest

GIB = 2**30
_UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_HARD_STOP = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
_REDIS_CLEANED = "ray.io/gcs-ft-deletion-timeout"


def render(values: Values) -> list[Object]:
    """The objects, ready to be applied. Raises InvalidRequest, which names the value that does not fit."""
    objects = manifests.service(values)
    ray = find(objects, "RayService")
    shipped = yaml.safe_load(ray["spec"]["serveConfigV2"])
    config = serve_config(shipped, values)
    ray["spec"]["serveConfigV2"] = dump(config)
    cluster = ray["spec"]["rayClusterConfig"]
    head, (router, backbone) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for group, pods in ((head, values.pods.head), (router, values.pods.router), (backbone, values.pods.backbone)):
        _set_pod(group["template"]["spec"], pods)
    _set_router_group(router, config, values)
    _set_backbone_group(backbone, config, values)
    _set_times(objects, shipped, config)
    _set_keys(objects, head, router, values)
    _set_images(objects, values)
    _set_accounts(objects, values)
    _set_network(objects, values)
    _set_volumes(objects, values)
    _set_edges(objects, shipped, config, values)
    return [*objects, *_monitoring(values)]


def find(objects: list[Object], kind: str, name: str = "dlp") -> Object:
    """The object of this kind and name."""
    [found] = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


# pods


def _set_pod(spec: dict[str, Any], pods: PodValues) -> None:
    resources = spec["containers"][0]["resources"]
    if pods.cpu is not None:
        limit = max(pods.cpu, quantity(resources["limits"]["cpu"]))
        resources["requests"]["cpu"], resources["limits"]["cpu"] = f"{pods.cpu:g}", f"{limit:g}"
    if pods.memory is not None:
        resources["requests"]["memory"] = resources["limits"]["memory"] = pods.memory
    if pods.node_selector:
        spec["nodeSelector"] = spec.get("nodeSelector", {}) | pods.node_selector
    if pods.tolerations:
        spec["tolerations"] = [*spec.get("tolerations", []), *pods.tolerations]


def _set_router_group(group: dict[str, Any], config: Config, values: Values) -> None:
    """As many pods as the replicas of the ingress and the router need, by Ray's logical CPUs and by how many of one
    deployment a pod may have."""
    if values.pods.router.cpu is not None:
        if values.pods.router.cpu < 1:
            raise InvalidRequest(f"pods.router.cpu is {values.pods.router.cpu:g}; Ray counts whole CPUs: at least 1")
        group["resources"]["CPU"] = str(math.floor(values.pods.router.cpu))
    cpus = float(group["resources"]["CPU"])
    least, most = (_router_pods(config, cpus, bound) for bound in ("min_replicas", "max_replicas"))
    if values.pods.router.max is not None and values.pods.router.max < most:
        raise InvalidRequest(
            f"pods.router.max is {values.pods.router.max}; the replicas of ingress and router (replicas) need {most} "
            f"pods of {cpus:g} CPUs"
        )
    asked = values.replicas.ingress is not None or values.replicas.router is not None
    group["minReplicas"] = least if asked else max(least, group["minReplicas"])
    group["maxReplicas"] = values.pods.router.max or (most if asked else max(most, group["maxReplicas"]))


def _router_pods(config: Config, cpus: float, bound: str) -> int:
    """Pods for so many replicas of the ingress and the router, which share them; at least one."""
    pods, total = 1, 0.0
    for one in _deployments(config)[:2]:
        each, replicas = one["ray_actor_options"]["num_cpus"], one["autoscaling_config"][bound]
        if each > cpus:
            raise InvalidRequest(
                f"deployments.{one['name']}.ray_actor_options.num_cpus is {each:g}, and a router pod has {cpus:g} "
                "(pods.router.cpu): no replica would ever start"
            )
        total += each * replicas
        pods = max(pods, math.ceil(replicas / (one.get("max_replicas_per_node") or replicas or 1)))
    return max(pods, math.ceil(total / cpus))


def _set_backbone_group(group: dict[str, Any], config: Config, values: Values) -> None:
    spec, backbone = group["template"]["spec"], _deployments(config)[2]
    scaling, args = backbone["autoscaling_config"], config["applications"][0]["args"]
    group["minReplicas"], group["maxReplicas"] = scaling["min_replicas"], scaling["max_replicas"]
    container = spec["containers"][0]
    resources = container["resources"]
    if values.gpu is not None:
        group["resources"]["GPU"] = str(values.gpu.count)
        for kind in resources.values():
            kind["nvidia.com/gpu"] = str(values.gpu.count)
    cpus = backbone["ray_actor_options"]["num_cpus"]
    if cpus > quantity(resources["limits"]["cpu"]):
        raise InvalidRequest(
            f"deployments.FusedBackbone.ray_actor_options.num_cpus is {cpus:g}, more than the CPUs of its pod: set "
            "pods.backbone.cpu too"
        )
    group["resources"]["CPU"] = str(max(int(group["resources"]["CPU"]), math.ceil(cpus)))
    _set_disk(spec, args, values)
    _check_memory(spec, args, values)


def _set_disk(spec: dict[str, Any], args: Config, values: Values) -> None:
    """Room for the model and for the disk cache, in their volumes and in what the pod requests."""
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    if values.model.disk is not None:
        volumes["models"]["emptyDir"]["sizeLimit"] = values.model.disk
    cache, room = args["cache"]["max_bytes"], volumes["adapters"]["emptyDir"]
    if cache > quantity(room["sizeLimit"]) / 1.05:  # a pod beyond its limit is evicted
        room["sizeLimit"] = f"{math.ceil(cache * 1.2 / GIB)}Gi"
    used = _scratch(spec, memory=False)
    for container in (*spec["containers"][:1], *spec["initContainers"]):
        for kind in container["resources"].values():
            if quantity(kind["ephemeral-storage"]) < used + GIB or values.model.disk is not None:
                kind["ephemeral-storage"] = f"{math.ceil(used / GIB) + 1}Gi"  # and logs


def _check_memory(spec: dict[str, Any], args: Config, values: Values) -> None:
    """What can be known of a pod's memory: ready adapters, the processes, and /dev/shm."""
    needed = args["engine"]["host_bytes"] + _scratch(spec, memory=True) + (PROCESSES if values.gpu else GIB)
    memory = spec["containers"][0]["resources"]["limits"]["memory"]
    if needed > quantity(memory):
        raise InvalidRequest(
            f"args.engine.host_bytes {args['engine']['host_bytes']} does not fit into a backbone pod of {memory}: set "
            f"pods.backbone.memory to {math.ceil(needed / GIB)}Gi or more, or lower it"
        )


# what belongs together


def _set_times(objects: list[Object], shipped: Config, config: Config) -> None:
    """A request that may take longer makes everything that waits for it wait longer. What never waited as long, such as
    a drain within a spot node's notice, stays."""
    more, timeout = longer(shipped, config), request_timeout(shipped)

    def shifted(seconds: int) -> int:
        return seconds + more if seconds > timeout else seconds

    ray = find(objects, "RayService")
    ray["spec"]["rayClusterDeletionDelaySeconds"] = shifted(ray["spec"]["rayClusterDeletionDelaySeconds"])
    annotations = ray["metadata"].get("annotations", {})
    if _REDIS_CLEANED in annotations:
        annotations[_REDIS_CLEANED] = str(shifted(int(annotations[_REDIS_CLEANED])))
    for _, spec in _pods(objects):
        if "terminationGracePeriodSeconds" in spec:
            spec["terminationGracePeriodSeconds"] = shifted(spec["terminationGracePeriodSeconds"])
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            for variable in container.get("env", []):
                if variable["name"] == _HARD_STOP:
                    variable["value"] = str(shifted(int(variable["value"])))
            command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            if "--seconds" in command:
                place = command.index("--seconds") + 1
                command[place] = str(shifted(int(command[place])))


def _set_keys(objects: list[Object], head: dict[str, Any], router: dict[str, Any], values: Values) -> None:
    if not (values.keys.open or values.keys.secret):
        return
    spec = head["template"]["spec"]
    spec["initContainers"] = [one for one in spec["initContainers"] if one["name"] != "first-key"]
    if not spec["initContainers"]:
        del spec["initContainers"]
    objects[:] = [o for o in objects if o["metadata"]["name"] != "dlp-first-key"]
    [volume] = [volume for volume in router["template"]["spec"]["volumes"] if volume["name"] == "keys"]
    if values.keys.secret:
        volume["secret"]["secretName"] = values.keys.secret
    else:
        volume["secret"]["optional"] = True


def _set_images(objects: list[Object], values: Values) -> None:
    version = values.image.version or metadata.version("dlp-serve")
    for _, spec in _pods(objects):
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            repository, _, tag = container["image"].rpartition(":")
            if repository == values.image.repository:
                container["image"] = f"{repository}:{version}-{tag.rpartition('-')[2]}"
            elif values.redis.image and container["name"] == "redis":
                container["image"] = values.redis.image


def _set_accounts(objects: list[Object], values: Values) -> None:
    secrets = [{"name": name} for name in values.image.pull_secrets]
    for account in (o for o in objects if o["kind"] == "ServiceAccount"):
        if secrets:
            account["imagePullSecrets"] = secrets
        if account["metadata"]["name"] == "dlp" and values.service_account_annotations:
            account["metadata"].setdefault("annotations", {}).update(values.service_account_annotations)
    if secrets:  # the only pod without an account of ours
        find(objects, "StatefulSet", "dlp-redis")["spec"]["template"]["spec"]["imagePullSecrets"] = secrets


def _set_network(objects: list[Object], values: Values) -> None:
    policy = find(objects, "NetworkPolicy", "dlp-ray")["spec"]
    if values.egress_ports:
        policy["egress"].append({"ports": [{"port": port, "protocol": "TCP"} for port in values.egress_ports]})
    if values.monitoring is not None:
        for rule in policy["ingress"]:
            for peer in rule.get("from", []):
                labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
                if labels.get("kubernetes.io/metadata.name") == "monitoring":
                    labels["kubernetes.io/metadata.name"] = values.monitoring.namespace


def _set_volumes(objects: list[Object], values: Values) -> None:
    if values.redis.storage_class:
        [claim] = find(objects, "StatefulSet", "dlp-redis")["spec"]["volumeClaimTemplates"]
        claim["spec"]["storageClassName"] = values.redis.storage_class
    if volume := values.model.volume:
        spec = find(objects, "PersistentVolumeClaim", "dlp-base-model")["spec"]
        spec["accessModes"] = [volume.access_mode]
        spec["resources"]["requests"]["storage"] = volume.size
        if volume.storage_class:
            spec["storageClassName"] = volume.storage_class


def _set_edges(objects: list[Object], shipped: Config, config: Config, values: Values) -> None:
    more, timeout = longer(shipped, config), request_timeout(shipped)

    def shifted(text: str) -> str:
        """With longer times: numbers above the time of a request."""
        return re.sub(r"\d+", lambda found: str(int(found[0]) + more) if int(found[0]) > timeout else found[0], text)

    if edge := values.ingress:
        ingress = find(objects, "Ingress")
        annotations = {name: shifted(text) for name, text in ingress["metadata"]["annotations"].items()}
        size = math.ceil(config["applications"][0]["args"]["limits"]["max_body_bytes"] / 2**20) + 1
        annotations |= {name: f"{size}m" for name in annotations if name.endswith("body-size")}
        ingress["metadata"]["annotations"] = annotations | edge.annotations
        [rule] = ingress["spec"]["rules"]
        rule["host"] = edge.host
        ingress["spec"]["ingressClassName"] = edge.class_name
        ingress["spec"]["tls"] = [{"hosts": [edge.host], "secretName": edge.tls_secret}]
    if way := values.gateway:
        gateway, route = find(objects, "Gateway"), find(objects, "HTTPRoute")
        gateway["spec"]["gatewayClassName"] = way.class_name
        if way.annotations:
            gateway["metadata"].setdefault("annotations", {}).update(way.annotations)
        [listener] = gateway["spec"]["listeners"]
        listener["hostname"] = way.host
        listener["tls"]["certificateRefs"] = [{"name": way.tls_secret}]
        route["spec"]["hostnames"] = [way.host]
        for rule in route["spec"]["rules"]:
            rule["timeouts"] = {name: shifted(text) for name, text in rule["timeouts"].items()}


def _monitoring(values: Values) -> list[Object]:
    objects = manifests.monitoring(values)
    for item in objects:
        if values.monitoring is not None:
            item["metadata"]["labels"]["release"] = values.monitoring.release
        if item["kind"] == "PodMonitor":
            item["spec"]["namespaceSelector"]["matchNames"] = [values.namespace]
    return objects


# helpers


def _deployments(config: Config) -> list[Config]:
    """Ingress, Router, FusedBackbone."""
    found: list[Config] = config["applications"][0]["deployments"]
    return found


def _pods(objects: list[Object]) -> Iterator[tuple[Object, dict[str, Any]]]:
    """Every object that makes pods, with the spec of one."""
    for item in objects:
        if item["kind"] == "RayService":
            cluster = item["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                yield item, group["template"]["spec"]
        elif "template" in item.get("spec", {}):
            yield item, item["spec"]["template"]["spec"]


def _scratch(spec: dict[str, Any], *, memory: bool) -> float:
    """Bytes of a pod's emptyDirs: those in memory, or those on disk."""
    volumes = [volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume]
    return sum(quantity(each["sizeLimit"]) for each in volumes if ("medium" in each) == memory)


def quantity(value: str | float) -> float:
    """The value of a quantity of Kubernetes, as `8Gi` and `500m`."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]
