"""The engine's environment is checked before anything starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.local.app import load_config
from deployments.local.engine import set_engine
from dlp_core.errors import InvalidRequest
from tests.support.paths import ROOT


@pytest.fixture
def config() -> dict[str, Any]:
    return load_config(ROOT / "serve_config.yaml")


def python_that_says(folder: Path, **changed: str | None) -> Path:
    """A program that answers as the Python of an environment would, which is this one's but for what is `changed`."""
    from importlib.metadata import version

    said = {"Python": "{}.{}".format(*sys.version_info), "Ray": version("ray"), "vLLM": "0.32.0"}
    said |= {"dlp-serve": version("dlp-serve")} | changed
    path = folder / "a python"
    path.write_text(f"#!/bin/sh\nprintf '%s' '{json.dumps(said)}'\n")
    path.chmod(0o755)
    return path


def backbone_of(config: dict[str, Any]) -> dict[str, Any]:
    [found] = [each for each in config["applications"][0]["deployments"] if each["name"] == "FusedBackbone"]
    return found["ray_actor_options"]  # type: ignore[no-any-return]


def kind_of(config: dict[str, Any]) -> str:
    return str(config["applications"][0]["args"]["engine"]["kind"])


def test_without_a_choice_the_config_decides(config: dict[str, Any]) -> None:
    set_engine(config, None, None)
    assert kind_of(config) == "transformers"
    assert "runtime_env" not in backbone_of(config)


def test_backbones_alone_run_in_the_environment_of_vllm(config: dict[str, Any], tmp_path: Path) -> None:
    python = python_that_says(tmp_path)
    set_engine(config, "vllm", python)
    assert kind_of(config) == "vllm"
    assert backbone_of(config)["runtime_env"] == {"py_executable": f"'{python}'"}
    others = [each for each in config["applications"][0]["deployments"] if each["name"] != "FusedBackbone"]
    assert not any("runtime_env" in each["ray_actor_options"] for each in others)


def test_a_config_may_name_vllm_itself(config: dict[str, Any], tmp_path: Path) -> None:
    config["applications"][0]["args"]["engine"]["kind"] = "vllm"
    set_engine(config, None, python_that_says(tmp_path))
    assert "runtime_env" in backbone_of(config)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vLLM": None}, "has no vLLM; make vllm builds"),
        ({"Ray": "2.59.0"}, r"has Ray 2\.59\.0; it must be 2\."),
        ({"Python": "3.9"}, r"has Python 3\.9; it must be 3\."),
        ({"dlp-serve": None}, "has dlp-serve missing; it must be"),
    ],
)
def test_an_environment_that_does_not_go_with_this_one_is_refused(
    config: dict[str, Any], tmp_path: Path, changed: dict[str, str | None], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        set_engine(config, "vllm", python_that_says(tmp_path, **changed))


def test_what_is_not_a_python_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not a Python that runs"):
        set_engine(config, "vllm", tmp_path / "nothing")
    (tmp_path / "prints").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "prints").chmod(0o755)
    with pytest.raises(InvalidRequest, match="is not a Python that runs"):
        set_engine(config, "vllm", tmp_path / "prints")


def test_vllm_without_its_environment_says_how_to_get_one(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="--vllm-python"):
        set_engine(config, "vllm", None)


def test_a_python_for_another_engine_is_a_mistake(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="add --engine vllm"):
        set_engine(config, "transformers", python_that_says(tmp_path))
