"""`dlp adapter`: what `train` writes, and `check` on folders and on S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deployments.cli.adapter import app
from dlp_core.adapter.config import CONFIG_FILE
from dlp_core.errors import AdapterRefused, NotFound
from dlp_core.store.opening import open_store
from examples.tiny.model import tiny_backbone
from tests.dlp_core.fusion.test_model_families import adapted, save
from tests.support.families import FAMILIES
from tests.support.tiny import peft_adapter, tiny_llama


def check(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        CliRunner().invoke(app, ["check", *args, "--json"], catch_exceptions=False).stdout
    )
    return found


def upload(folder: Path, uri: str) -> str:
    store = open_store(uri)
    for path in folder.iterdir():
        store.put(path.name, path)
    return uri


def test_a_folder_and_a_uri_are_told_the_same(tmp_path: Path, s3: str) -> None:
    folder = peft_adapter(tmp_path / "sql", 1, r=4, rank_pattern={"v_proj": 2})
    local = check(str(folder))
    assert (local["ranks"], local["targets"], local["served"]) == ([2, 4], ["q_proj", "v_proj"], True)
    assert check(upload(folder, f"{s3}sql/")) == local
    assert check(f"file://{folder}") == local


def test_a_bad_adapter_on_s3_is_refused_as_it_would_be_here(tmp_path: Path, s3: str) -> None:
    folder = peft_adapter(tmp_path / "sql", 1)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterRefused, match=r"adapter_model\.bin is a pickle"):
        check(upload(folder, f"{s3}sql/"))
    with pytest.raises(NotFound, match="there is nothing at s3://"):
        check(f"{s3}nothing/")


def test_what_else_an_adapter_changes_is_said(tmp_path: Path) -> None:
    model = FAMILIES["qwen2"].build()
    folder = save(tmp_path / "a", adapted(model, 1, target_modules=["q_proj", "embed_tokens"], bias="lora_only"))
    found = check(str(folder))
    assert "model.embed_tokens" in found["base_weights"]
    assert (found["targets"], found["biases"]) == (["embed_tokens", "q_proj"], 2)


def test_the_layers_of_a_base_model_are_checked_where_it_is_given(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "tiny-llama")
    folder = peft_adapter(tmp_path / "sql", 1)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "org/tiny-llama"}))
    assert check(str(folder), "--base-model", str(tmp_path / "tiny-llama"))["fits"]
    tiny_llama(layers=1).save_pretrained(tmp_path / "small" / "tiny-llama")
    with pytest.raises(AdapterRefused, match="not a layer of the base model"):
        check(str(folder), "--base-model", str(tmp_path / "small" / "tiny-llama"))
    tiny_llama().save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterRefused, match="this bank serves 'other'"):
        check(str(folder), "--base-model", str(tmp_path / "other"))


def test_train_then_check_from_the_command_line(tmp_path: Path) -> None:
    base, data, out = tmp_path / "tiny-llama", tmp_path / "rows.jsonl", tmp_path / "x"
    tiny_backbone(base)
    rows = ({"task": "x", "input": f"the adapter of {number}", "output": f"of{number}"} for number in range(20))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--base", str(base), "--data", str(data), "--out", str(out), "--rank", "2", "--steps", "2"]
    command = ["train", *options, "--validation-rows", "8", "--json"]
    trained = CliRunner().invoke(app, command, catch_exceptions=False)
    assert json.loads(trained.stdout)["adapter"] == "x"

    checked = check(str(out))
    assert checked["ranks"] == [2]
    assert checked["base_model"] == "tiny-llama"
    assert checked["bytes"] == (out / "adapter_model.safetensors").stat().st_size
    (out / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(AdapterRefused, match="'x'"):
        check(str(out))
