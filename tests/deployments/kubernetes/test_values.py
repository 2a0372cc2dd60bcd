"""Mistakes in a file of values: one line each, which names the value and says what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.kubernetes.reading import read_values
from deployments.kubernetes.serve_settings import serve_config
from deployments.kubernetes.values import Values
from deployments.local.app import PACKAGED_CONFIG, load_config
from dlp_core.errors import InvalidRequest

LEAST: dict[str, Any] = {"bank": "s3://b/bank/", "model": {"uri": "s3://b/models/M/"}}


def read(tmp_path: Path, values: dict[str, Any]) -> Values:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(LEAST | values))
    return read_values(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "modle: there is no modle; did you mean model?"),
        ({"model": {"url": "s3://b/m"}}, "model.url: there is no url in model; did you mean uri?"),
        ({"args": {"engine": {"slotz": 3}}}, "there is no slotz in args.engine; did you mean slots?"),
        (
            {"args": {"engine": {"vllm": {"target": []}}}},
            "there is no target in args.engine.vllm; did you mean targets?",
        ),
        ({"args": {"zzz": 1}}, "there is no zzz in args; there are dtype, threads, bank_poll_s"),
        ({"deployments": {"Backbone": {}}}, "did you mean FusedBackbone?"),
        (
            {"deployments": {"Router": {"autoscaling_config": {"target": 3}}}},
            "there is no target in deployments.Router.autoscaling_config; did you mean target_ongoing_requests?",
        ),
        ({"deployments": {"Router": {"ray_actor_options": {"num_cpu": 1}}}}, "did you mean num_cpus?"),
        ({"bank": "my-bucket"}, "bank: 'my-bucket' is not a place such as s3://bucket/prefix/"),
        ({"gpu": {"size": "48gb"}}, "gpu.size: Input should be '24gb', '40gb' or '80gb', not \"48gb\""),
        ({"gpu": {"size": "24gb", "count": 2}}, "gpu.count 2 needs engine vllm"),
        ({"gpu": {"size": "24gb", "count": 0}}, "gpu.count: Input should be greater than or equal to 1, not 0"),
        ({"engine": "vllm"}, "engine vllm needs gpu"),
        ({"engine": "tgi"}, "engine: Input should be 'transformers' or 'vllm', not \"tgi\""),
        ({"replicas": {"backbone": -1}}, "replicas.backbone.min: Input should be greater than or equal to 0, not -1"),
        ({"replicas": {"backbone": "3"}}, "replicas.backbone: a number, or min and max"),
        ({"replicas": {"backbone": True}}, "replicas.backbone: a number, or min and max"),
        ({"replicas": {"backbone": {"min": 4, "max": 2}}}, "replicas.backbone: min 4 is above max 2"),
        ({"keys": {"secret": "a", "open": True}}, "keys: secret has keys and open wants none; leave one out"),
        ({"keys": {"open": "yes"}}, 'keys.open: Input should be a valid boolean, not "yes"'),
        ({"pods": {"backbone": {"memory": "8GB"}}}, "pods.backbone.memory: '8GB' is not an amount such as 16Gi"),
        ({"pods": {"head": {"memory": 8}}}, "pods.head.memory: Input should be a valid string, not 8"),
        ({"pods": {"head": {"cpu": -1}}}, "pods.head.cpu: Input should be greater than 0, not -1"),
        ({"image": {"repository": "dlp-serve:1.0"}}, "image.repository: 'dlp-serve:1.0' is not a repository"),
        ({"environment": {"AWS_SECRET_ACCESS_KEY": "hidden"}}, "looks like a secret"),
        ({"environment": {"DLP_BANK": "s3://c/"}}, "environment: DLP_BANK comes from bank and model"),
        ({"environment": {"a b": "c"}}, "'a b' is not the name of a variable"),
        ({"model": {"uri": "s3://b/m/", "disk": "1Gi", "volume": {"size": "2Gi"}}}, "model: disk and volume both hold"),
        ({"ingress": {}}, "ingress.host: Field required"),
        ({"egress_ports": [99999]}, "egress_ports.0: Input should be less than or equal to 65535, not 99999"),
        ({"monitoring": True}, "monitoring: Input should be an object, not true"),
        ({"ingress": {"host": "a.b"}, "gateway": {"host": "a.b"}}, "ingress and gateway are two ways in"),
        ({"components": ["nothing"]}, "components: there is no nothing to choose"),
        ({"components": ["ingress"]}, "components: there is no ingress to choose"),
        ({"args": None}, "args: Input should be an object, not null"),
        # what another value decides
        ({"args": {"bank": "s3://c/"}}, "args.bank comes from bank: set that instead"),
        ({"args": {"engine": {"kind": "vllm"}}}, "args.engine.kind comes from engine: set that instead"),
        ({"args": {"access": {"keys_file": "/k"}}}, "args.access.keys_file comes from keys: set that instead"),
        ({"deployments": {"Router": {"num_replicas": 2}}}, "deployments.Router.num_replicas comes from replicas"),
        ({"deployments": {"Router": {"autoscaling_config": {"max_replicas": 2}}}}, "max_replicas comes from replicas"),
        ({"deployments": {"Router": {"user_config": {}}}}, "deployments.Router.user_config has no effect here"),
    ],
)
def test_a_mistake_is_named(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as error:
        read(tmp_path, values)
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert "hidden" not in error.value.message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"args": {"engine": {"slots": "many"}}}, "args.engine.slots: Input should be a valid integer"),
        ({"args": {"engine": {"slots": 0}}}, "args: engine setting slots is 0"),
        ({"args": {"engine": {"slots": 4}}}, "args: routing.max_adapters 8 is above engine.slots 4"),
        ({"args": {"engine": None}}, "args.engine has values of its own (kind, slots"),
        ({"args": {"routing": {"top_p": 2}}}, "args.routing.top_p: Input should be less than or equal to 1, not 2"),
        (
            {"args": {"limits": {"request_timeout_s": -5}}},
            "args.limits.request_timeout_s: Input should be greater than 0",
        ),
        ({"args": {"pinned_adapters": "cron"}}, "args.pinned_adapters: Input should be a valid array"),
        (
            {"deployments": {"Ingress": {"max_ongoing_requests": -1}}},
            "deployments.Ingress.max_ongoing_requests: Input should be greater than 0, not -1",
        ),
        (
            {"deployments": {"Ingress": {"health_check_period_s": "often"}}},
            "deployments.Ingress.health_check_period_s: Input should be a valid number",
        ),
        (
            {"deployments": {"Ingress": {"graceful_shutdown_timeout_s": 10}}},
            "deployments.Ingress.graceful_shutdown_timeout_s is 10; requests may take 300 s",
        ),
        (
            {"deployments": {"Router": {"autoscaling_config": None}}},
            "deployments.Router.autoscaling_config has values of its own (min_replicas,",
        ),
        ({"args": {"engine": {"max_requests": 4}}}, "target_ongoing_requests is 16, above the 8 that a replica takes"),
    ],
)
def test_a_setting_that_its_reader_refuses_is_named(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as error:
        serve_config(load_config(PACKAGED_CONFIG), read(tmp_path, values))
    assert message in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no values"),
        ("[1]", "has no values"),
        ("bank: [", "not YAML or JSON at line 1"),
        ("bank: s3://a/b/", "model: Field required"),
    ],
)
def test_a_file_without_values_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        read_values(path)


def test_a_missing_file_is_said_with_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="dlp k8s init"):
        read_values(tmp_path / "values.yaml")


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ({"uri": "s3://b/models/Llama-3.1-8B/"}, "/models/Llama-3.1-8B"),
        ({"uri": "s3://b/models/Llama-3.1-8B"}, "/models/Llama-3.1-8B"),
        ({"uri": "s3://b/models/v2/", "name": "Llama-3.1-8B"}, "/models/Llama-3.1-8B"),
    ],
)
def test_the_models_folder_ends_in_its_name(model: dict[str, str], folder: str, tmp_path: Path) -> None:
    assert read(tmp_path, {"model": model}).model.folder == folder


def test_a_variable_may_name_the_file_of_a_secret(tmp_path: Path) -> None:
    name = "AWS_WEB_IDENTITY_TOKEN_FILE"
    assert read(tmp_path, {"environment": {name: "/t"}}).environment == {name: "/t"}
