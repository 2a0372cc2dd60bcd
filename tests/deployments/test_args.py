"""AppArgs refuses what no replica could run with; serve_config.yaml says only what Ray and AppArgs understand."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from deployments.app import build_app
from deployments.args import AppArgs
from deployments.fleet.autoscaling import BackbonePolicy, RouterPolicy
from dlp_core.errors import InvalidRequest
from dlp_core.fleet.affinity import IMBALANCE, QUEUE_PENALTY
from tests.support.paths import ROOT

CONFIG = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
APPLICATION = CONFIG["applications"][0]
DEPLOYMENTS = {deployment["name"]: deployment for deployment in APPLICATION["deployments"]}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLP_BANK", "s3://bucket/bank/")
    monkeypatch.setenv("DLP_BASE_MODEL", "/models/base")


def test_bank_and_base_model_come_from_the_environment() -> None:
    args = AppArgs()
    assert (args.bank, args.base_model) == ("s3://bucket/bank/", "/models/base")
    assert AppArgs(bank="/other").bank == "/other"


@pytest.mark.parametrize("variable", ["DLP_BANK", "DLP_BASE_MODEL"])
def test_what_is_not_set_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(ValidationError, match=variable):
        AppArgs()


@pytest.mark.parametrize(
    "bad",
    [
        {"bnk": "s3://b/"},
        {"engine": {"slot": 4}},
        {"routing": {"top_p": 1.5}},
        {"routing": {"top_p": float("nan")}},
        {"routing": {"default_max_adapters": 9}},
        {"routing": {"weights": "equal"}},
        {"engine": {"slots": 4}},  # a mix of max_adapters would never be resident
        {"limits": {"request_timeout_s": 0}},
        {"cache": {"max_bytes": 0}},
        {"feedback": {"batch": 65, "most_waiting": 64}},
        {"feedback": {"request_share": 1.1}},
    ],
    ids=str,
)
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AppArgs(**bad)


def test_engine_bounds_hold() -> None:
    with pytest.raises(InvalidRequest, match="slots"):
        AppArgs.model_validate({"engine": {"slots": 0}})


def test_args_travel_between_processes() -> None:
    assert pickle.loads(pickle.dumps(AppArgs())) == AppArgs()


def test_ray_accepts_the_config() -> None:
    assert ServeDeploySchema.model_validate(CONFIG).applications[0].import_path == "deployments.app:build_app"


def test_no_key_of_the_config_is_unknown_to_ray() -> None:
    """Ray's own schema lets typos of nested keys pass."""
    assert set(APPLICATION) <= {"name", "route_prefix", "import_path", "args", "deployments"}
    for deployment in DEPLOYMENTS.values():
        assert set(deployment) <= set(DeploymentSchema.model_fields)
        scaling = deployment["autoscaling_config"]
        assert set(scaling) <= set(AutoscalingConfig.model_fields)
        assert AutoscalingConfig(**scaling).min_replicas >= 1  # a pool that is never empty answers at once
        assert set(deployment["ray_actor_options"]) <= {"num_cpus", "num_gpus", "resources"}
        assert set(deployment["ray_actor_options"]["resources"]) <= {"cpu_router", "gpu_backbone"}


def test_nested_settings_are_spelt_as_serve_knows_them() -> None:
    """The config schema lets typos in nested keys pass."""
    for name, deployment in DEPLOYMENTS.items():
        for key, kind in (("autoscaling_config", AutoscalingConfig), ("request_router_config", RequestRouterConfig)):
            settings = deployment.get(key, {})
            assert set(settings) <= set(kind.model_fields), name
            kind(**settings)
        assert set(deployment["autoscaling_config"].get("policy", {})) <= set(AutoscalingPolicy.model_fields), name
    assert DEPLOYMENTS["FusedBackbone"]["request_router_config"]["request_router_kwargs"] == {
        "queue_penalty": QUEUE_PENALTY,
        "imbalance": IMBALANCE,
    }


@pytest.mark.parametrize(("name", "kind"), [("Router", RouterPolicy), ("FusedBackbone", BackbonePolicy)])
def test_policies_are_classes_that_take_what_the_config_says(name: str, kind: type) -> None:
    """Serve passes policy_kwargs to classes only, and ignores them for functions."""
    policy = AutoscalingConfig(**DEPLOYMENTS[name]["autoscaling_config"]).policy
    assert policy.get_policy().__name__ == kind.__name__
    assert callable(policy.get_policy()(**policy.policy_kwargs))
    with pytest.raises(TypeError):
        kind(**policy.policy_kwargs, typo=1)


def test_the_config_names_the_deployments_of_the_app() -> None:
    app = build_app(AppArgs(**APPLICATION["args"]))
    bound = [app._bound_deployment, *(arg._bound_deployment for arg in app._bound_deployment.init_args[1:])]
    assert {deployment.name for deployment in bound} == set(DEPLOYMENTS)
    assert isinstance(app, serve.Application)


def test_the_builder_is_given_app_args() -> None:
    """A postponed annotation would make Serve hand over a plain dict."""
    assert inspect.signature(build_app).parameters["args"].annotation is AppArgs


def test_limits_that_must_agree() -> None:
    args = AppArgs(**APPLICATION["args"])
    backbone = DEPLOYMENTS["FusedBackbone"]
    links = DEPLOYMENTS["Ingress"]["autoscaling_config"]["max_replicas"]
    assert backbone["max_ongoing_requests"] == args.engine.max_requests + links
    for name in ("Ingress", "FusedBackbone"):
        assert DEPLOYMENTS[name]["graceful_shutdown_timeout_s"] > args.limits.request_timeout_s
    assert backbone["autoscaling_config"]["target_ongoing_requests"] <= args.engine.max_requests
    for name in ("Router", "FusedBackbone"):
        scaling = AutoscalingConfig(**DEPLOYMENTS[name]["autoscaling_config"])
        assert scaling.look_back_period_s <= min(scaling.upscale_delay_s, scaling.downscale_delay_s)


def test_the_smallest_deployment_fits_on_two_cpus_without_a_gpu() -> None:
    needs = [
        deployment["autoscaling_config"]["min_replicas"] * deployment["ray_actor_options"]["num_cpus"]
        for deployment in DEPLOYMENTS.values()
    ]
    assert sum(needs) <= 2
    assert all(not deployment["ray_actor_options"].get("num_gpus") for deployment in DEPLOYMENTS.values())
