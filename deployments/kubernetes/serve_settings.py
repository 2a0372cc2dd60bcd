"""The Serve config of an installation: the one that is shipped for its size, with its values."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from deployments.args import AppArgs
from deployments.kubernetes.reading import problem
from deployments.kubernetes.schema import DEPLOYMENTS
from deployments.kubernetes.values import Values
from dlp_core.errors import InvalidRequest

Config = dict[str, Any]


def serve_config(shipped: Config, values: Values) -> Config:
    """The config with these values, checked by the classes that will read it. Raises InvalidRequest, which names the
    value."""
    [application] = shipped["applications"]
    args = merged(application["args"], values.args, "args")
    by_name = {one["name"]: one for one in application["deployments"]}
    given = values.deployments
    deployments = {name: merged(by_name[name], given.get(name, {}), f"deployments.{name}") for name in DEPLOYMENTS}
    args["engine"]["kind"] = values.engine
    if values.keys.open:
        args["access"]["keys_file"] = None
    if values.gpu is not None:
        args["engine"]["vllm"]["tensor_parallel"] = values.gpu.count
        deployments["FusedBackbone"]["ray_actor_options"]["num_gpus"] = values.gpu.count
    _set_replicas(deployments, values)
    checked = _check_args(args, values)
    _follow(args, application["args"], deployments, values)
    _check_deployments(deployments)
    _check_queues(deployments, checked)
    return {**shipped, "applications": [{**application, "args": args, "deployments": list(deployments.values())}]}


def merged(old: Any, new: Any, place: str) -> Any:
    """`old` with the values of `new`: mappings are merged, everything else is replaced. Raises InvalidRequest for a
    value in the place of a mapping."""
    if isinstance(old, dict) and not isinstance(new, dict):
        raise InvalidRequest(f"{place} has values of its own ({', '.join(old)}): set those, or leave it out")
    if not isinstance(old, dict):
        return new
    names = [*old, *(name for name in new if name not in old)]
    return {key: merged(old.get(key), new[key], f"{place}.{key}") if key in new else old[key] for key in names}


def longer(shipped: Config, config: Config) -> int:
    """Seconds by which requests may take longer than in the shipped config. Negative: shorter."""
    before, after = (math.ceil(request_timeout(one)) for one in (shipped, config))
    return after - before


def request_timeout(config: Config) -> float:
    """Seconds that a request may take."""
    seconds: float = config["applications"][0]["args"]["limits"]["request_timeout_s"]
    return seconds


def _set_replicas(deployments: dict[str, Config], values: Values) -> None:
    for name, deployment in deployments.items():
        if bounds := values.replicas.bounds(name):
            deployment["autoscaling_config"] |= {"min_replicas": bounds.min, "max_replicas": bounds.max}


def _check_args(args: Config, values: Values) -> AppArgs:
    try:
        given = {**args, "bank": values.bank, "base_model": values.model.folder}
        return AppArgs.model_validate_json(to_json(given))
    except ValidationError as error:
        raise InvalidRequest(problem(error, "args")) from None
    except InvalidRequest as error:  # of a setting of the engine
        raise InvalidRequest(f"args: {error.message}") from None


def _follow(args: Config, shipped: Config, deployments: dict[str, Config], values: Values) -> None:
    """What follows from other values, unless it was given itself: places for the links of ingress replicas, and the
    time that a replica waits for its last request."""
    given = values.deployments
    backbone = deployments["FusedBackbone"]
    if "max_ongoing_requests" not in given.get("FusedBackbone", {}):
        links = deployments["Ingress"]["autoscaling_config"]["max_replicas"]
        backbone["max_ongoing_requests"] = args["engine"]["max_requests"] + links
    more = math.ceil(args["limits"]["request_timeout_s"]) - math.ceil(shipped["limits"]["request_timeout_s"])
    for name, deployment in deployments.items():
        if "graceful_shutdown_timeout_s" in deployment and "graceful_shutdown_timeout_s" not in given.get(name, {}):
            deployment["graceful_shutdown_timeout_s"] += more


def _check_queues(deployments: dict[str, Config], args: AppArgs) -> None:
    for name, deployment in deployments.items():
        place, scaling = f"deployments.{name}", deployment.get("autoscaling_config") or {}
        most, target = deployment["max_ongoing_requests"], scaling.get("target_ongoing_requests")
        if isinstance(target, (int, float)) and target > most:
            raise InvalidRequest(
                f"{place}.autoscaling_config.target_ongoing_requests is {target:g}, above the {most} that a replica "
                "takes: lower it, so that Serve adds replicas in time"
            )
        graceful = deployment.get("graceful_shutdown_timeout_s")
        if graceful is not None and graceful <= args.limits.request_timeout_s:
            raise InvalidRequest(
                f"{place}.graceful_shutdown_timeout_s is {graceful:g}; requests may take "
                f"{args.limits.request_timeout_s:g} s (args.limits.request_timeout_s), which it must exceed"
            )


def _check_deployments(deployments: dict[str, Config]) -> None:
    """By Ray's own class, which passes over names that it does not know: `check_names` has been before."""
    from ray.serve.schema import DeploymentSchema

    for name, deployment in deployments.items():
        try:
            DeploymentSchema.model_validate(deployment)
        except ValidationError as error:
            raise InvalidRequest(problem(error, f"deployments.{name}")) from None
