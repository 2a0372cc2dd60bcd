"""Mistakes that `dlp serve` finds before it starts Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli.main import app
from deployments.local.checks import check_base_model, check_memory, free_memory
from dlp_core.engine import model_size
from dlp_core.errors import DLPError, InvalidRequest
from tests.support.model_folders import write_header
from tests.support.paths import ROOT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model's, of 1,000 bytes of weights."""
    folder = tmp_path / "models" / "Base-1B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"dtype": "bfloat16"}')
    write_header(folder / "model.safetensors", {"a": (20, 25)})
    (folder / "tokenizer.json").write_text("{}")
    return folder


def lists_shards(folder: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*.safetensors weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lists_shards, r"lacks model-2.safetensors, which model.safetensors.index.json lists"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "index.json cannot be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}'), "no weight_map"),
    ],
    ids=["config", "weights", "tokenizer", "a shard", "the index", "no map"],
)
def test_what_a_model_folder_lacks_is_named(model: Path, spoil: Callable[[Path], Any], says: str) -> None:
    check_base_model(model)
    spoil(model)
    with pytest.raises(InvalidRequest, match=says):
        check_base_model(model)


def test_memory_is_counted_in_the_dtype_it_is_loaded_in(model: Path) -> None:
    check_memory(model, "bfloat16", free=1000)
    with pytest.raises(InvalidRequest, match="float32"):
        check_memory(model, "float32", free=1999)
    check_memory(model, "float32", free=2000)
    (model / "config.json").write_text('{"dtype": "bfloat16", "quantization_config": {}}')
    check_memory(model, "float32", free=1)
    assert free_memory() > 2**20


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_config_is_one_line(text: str, model: Path) -> None:
    (model / "config.json").write_text(text, "latin-1")
    with pytest.raises(InvalidRequest, match=r"config\.json.*copy the model again"):
        check_memory(model, "float32", free=10**9)


def test_serve_ends_at_once_and_never_imports_ray(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each mistake, in the order in which they are looked for."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    started: list[object] = []
    monkeypatch.setattr("ray.init", lambda **settings: started.append(settings))
    bank, missing = tmp_path / "bank", tmp_path / "none"

    def said(base: Path, **args: Any) -> str:
        settings = config | {"applications": [config["applications"][0] | {"args": {"bank": "x"} | args}]}
        (tmp_path / "serve.yaml").write_text(yaml.safe_dump(settings))
        command = ["serve", "--bank", str(bank), "--base-model", str(base), "--config", "serve.yaml", "--port", "8765"]
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, DLPError), result.output
        assert result.exception.status < 500
        return str(result.exception)

    assert f"there is no folder {missing}" in said(missing)
    assert "the secret cannot be read" in said(model, access={"keys_file": str(missing)})
    assert "wrong" in said(model, wrong=1)
    assert "no bank is published" in said(model)
    monkeypatch.setattr(model_size, "BYTES", {"bfloat16": 2, "float16": 2, "float32": 10**15})
    assert "GB of memory are free" in said(model, dtype="float32")
    assert not started
