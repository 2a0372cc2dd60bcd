"""Keys that other ways of saving leave: the same tensors as PEFT loads from its own, or a refusal that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.errors import AdapterRefused
from examples.tiny.model import peft_model
from tests.support.tiny import load_peft, peft_adapter, tiny_llama

LORA: dict[str, Any] = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 7}}
INNER = "base_model.model.model.layers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return peft_adapter(tmp_path / "sql", 1, **LORA)


def rename(folder: Path, new: Callable[[str], str]) -> Path:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({new(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    return folder


def assert_equal(found: Adapter, expected: Adapter) -> None:
    assert found.modules.keys() == expected.modules.keys()
    for path, weights in expected.modules.items():
        assert torch.equal(found.modules[path].a_RD, weights.a_RD)
        assert torch.equal(found.modules[path].b_OR, weights.b_OR)
        assert found.modules[path].scaling == weights.scaling


def refusal(folder: Path) -> str:
    with pytest.raises(AdapterRefused, match="adapter 'sql'") as caught:
        read_adapter(folder, name="sql")
    return caught.value.message


SPELLINGS: dict[str, tuple[Callable[[str], str], str]] = {
    "a name": (lambda key: key.replace(".weight", ".default.weight"), "'.default.'"),
    "another name": (lambda key: key.replace(".weight", ".sql_v2.weight"), "'.sql_v2.'"),
    "compiled": (lambda key: f"_orig_mod.{key}", "'_orig_mod.'"),
    "compiled inside": (lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."), "'_orig_mod.'"),
    "compiled by layer": (lambda key: key.replace("self_attn", "_orig_mod.self_attn"), "'_orig_mod.'"),
    "compiled modules": (lambda key: key.replace("_proj", "_proj._orig_mod"), "'_orig_mod.'"),
    "DDP": (lambda key: f"module.{key}", "'module.'"),
    "DDP, compiled": (lambda key: f"module._orig_mod.{key}", "'_orig_mod.', 'module.'"),
    "FSDP": (
        lambda key: f"_fsdp_wrapped_module.{key.replace('self_attn', '_fsdp_wrapped_module.self_attn')}",
        "'_fsdp_wrapped_module.'",
    ),
    "checkpointing": (lambda key: key.replace("self_attn", "_checkpoint_wrapped_module.self_attn"), "checkpoint_wrapp"),
    "no prefix": (lambda key: key.removeprefix("base_model.model."), "'base_model.model.'"),
    "a name, compiled, DDP": (
        lambda key: f"module._orig_mod.{key.replace('.weight', '.default.weight')}",
        "'.default.', '_orig_mod.', 'module.'",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_renamed_keys_are_the_adapter_that_peft_saved(folder: Path, spelling: str) -> None:
    expected = read_adapter(folder, name="sql")
    assert expected.notes == ()
    oracle = load_peft(folder).base_model.model
    new, said = SPELLINGS[spelling]
    found = read_adapter(rename(folder, new), name="sql")
    assert_equal(found, expected)
    for path, weights in found.modules.items():
        layer = oracle.get_submodule(path)
        assert torch.equal(layer.lora_A["default"].weight, weights.a_RD)
        assert layer.scaling["default"] == weights.scaling
    (note,) = found.notes
    assert said in note


def test_an_embedding_saved_with_a_name(tmp_path: Path) -> None:
    model = peft_model(tiny_llama(), 1, target_modules=["embed_tokens", "q_proj"])
    model.save_pretrained(tmp_path / "sql", save_embedding_layers=True)
    folder = tmp_path / "sql"
    expected = read_adapter(folder, name="sql")
    rename(folder, lambda key: f"{key}.default" if "lora_embedding" in key else key.replace("A.w", "A.default.w"))
    found = read_adapter(folder, name="sql")
    assert_equal(found, expected)
    assert found.copies.keys() == expected.copies.keys() == {"model.embed_tokens"}


def test_two_tensors_of_one_module_are_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(tensors | {f"_orig_mod.{key}": tensor + 1 for key, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    assert "are both for 'model.layers." in refusal(folder)
    assert "save the adapter again" in refusal(folder)


def test_two_adapters_in_one_file_are_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    named = {
        key.replace(".weight", f".{name}.weight"): tensor + 1
        for name in ("default", "reference")
        for key, tensor in tensors.items()
    }
    save_file(named, folder / WEIGHTS_FILE)
    assert "several adapters (default, reference)" in refusal(folder)
    assert "selected_adapters=['default']" in refusal(folder)


def test_a_key_without_the_prefix_of_the_others_is_refused(folder: Path) -> None:
    rename(folder, lambda key: key.replace("base_model.model.", "") if "layers.1.self_attn.v" in key else key)
    assert "tensor 'model.layers.1.self_attn.v_proj" in refusal(folder)


def test_a_pattern_that_tells_the_spellings_apart_is_refused(folder: Path) -> None:
    """PEFT matched patterns with the names its model had: before or after it was compiled, nobody knows."""
    rename(folder, SPELLINGS["compiled by layer"][0])
    read_adapter(folder, name="sql")  # 'v_proj' matches both
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"alpha_pattern": {"layers.1.self_attn.v_proj": 7}}))
    assert "alpha_pattern has one value" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (f"{INNER}.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        (f"{INNER}.0.self_attn.q_proj.lora_magnitude_vector.default.weight", "DoRA"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "modules_to_save"),
        (f"{INNER}.0.mlp.experts.3.w1.lora_A.weight", "an expert of a mixture"),
        (f"{INNER}.0.block_sparse_moe.experts.base_layer.lora_A.default.weight", "an expert of a mixture"),
        (f"{INNER}.0.self_attn.q_proj.lora_E", "AdaLoRA"),
        (f"{INNER}.0.self_attn.q_proj.lora_B.bias", "retrain it as plain LoRA"),
        ("base_model.model.x.token_adapter.trainable_tokens_delta", "token rows"),
    ],
)
def test_what_is_no_lora_is_named_with_what_it_is(folder: Path, key: str, says: str) -> None:
    save_file(load_file(folder / WEIGHTS_FILE) | {key: torch.ones(2, 2)}, folder / WEIGHTS_FILE)
    assert key in refusal(folder)
    assert says in refusal(folder)
