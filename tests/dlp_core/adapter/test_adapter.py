"""Reading PEFT folders, and refusing what cannot be served exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlp_core.adapter.base_names import BaseNames
from dlp_core.adapter.checks import LayerShape, check_base, check_fits
from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.adapter.names import qualify, unqualify, validate_name
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.fusion.layers import install
from examples.tiny.model import peft_model
from tests.support.tiny import peft_adapter, tiny_llama

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return peft_adapter(tmp_path / "good", seed=1)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def test_scalings_and_ranks_are_pefts_own(tmp_path: Path) -> None:
    lora = {
        "r": 6,
        "lora_alpha": 3,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 7, "self_attn.v_proj": 9, "v_proj": 11},
    }
    adapter = read_adapter(peft_adapter(tmp_path / "a", 1, **lora), name="a")
    oracle = peft_model(tiny_llama(), 1, **lora)
    assert len(adapter.modules) == 4
    for path, weights in adapter.modules.items():
        layer = oracle.base_model.model.get_submodule(path)
        assert weights.scaling == pytest.approx(layer.scaling["default"])
        assert weights.rank == layer.r["default"]
        assert torch.equal(weights.a_RD, layer.lora_A["default"].weight)
        assert torch.equal(weights.b_OR, layer.lora_B["default"].weight)
    assert adapter.rank == 6


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "-a", ".hidden", "a b", "a\n", "ä", "x" * 129, "a%2fb", "a\x00"]
)
def test_unsafe_names_are_refused(name: str, folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not valid"):
        validate_name(name)
    with pytest.raises(InvalidRequest, match="is not valid"):
        read_adapter(folder, name=name)


@pytest.mark.parametrize("name", ["a", "A-1", "iso_date", "v1.2", "x" * 128])
def test_safe_names_pass(name: str) -> None:
    assert validate_name(name) == name
    assert unqualify(qualify(name, "1f3a9c")) == unqualify(name) == name


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "vera_only"}, "bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"some_future_variant": {"x": 1}}, "some_future_variant"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "PEFT type"),
        ({"r": 5}, "says rank 5, the weights have 4"),
        ({"rank_pattern": {"q_proj": 3}}, "says rank 3"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"alpha_pattern": {"(": 1}}, "bad pattern"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_changes_the_forward_pass_is_refused_by_name(folder: Path, fields: dict[str, Any], reason: str) -> None:
    edit_config(folder, **fields)
    with pytest.raises(AdapterRefused, match=r"'sql'") as caught:
        read_adapter(folder, name="sql")
    assert reason in caught.value.message


def _swap_dtype(tensors: dict[str, torch.Tensor]) -> None:
    key = next(iter(tensors))
    tensors[key] = tensors[key].to(torch.int8)


def _set_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def _set_infinities(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, :2] = torch.tensor([float("inf"), float("-inf")])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(f"base_model.model.{Q0}.lora_B.weight"), "lora_B is missing"),
        (lambda t: t.update({f"base_model.model.{Q0}.lora_A.weight": torch.ones(3, 64)}), "not two factors"),
        (lambda t: t.update({f"base_model.model.{Q0}.lora_A.weight": torch.ones(4)}), "not two factors"),
        (lambda t: t.update({f"base_model.model.{Q0}.base_layer.bias": torch.ones(64)}), "is not a LoRA factor"),
        (lambda t: t.update({f"base_model.model.{Q0}.lora_magnitude_vector": torch.ones(2)}), "is not a LoRA factor"),
        (dict.clear, "holds no LoRA weights"),
        (_swap_dtype, "int8"),
        (_set_nan, "NaN"),
        (_set_infinities, "infinity"),
    ],
)
def test_damaged_weights_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], reason: str
) -> None:
    edit_weights(folder, change)
    with pytest.raises(AdapterRefused, match=r"'sql'") as caught:
        read_adapter(folder, name="sql")
    assert reason in caught.value.message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:keep])
    with pytest.raises(AdapterRefused, match="not a complete safetensors file"):
        read_adapter(folder, name="sql")


def test_a_pickle_is_refused_and_never_opened(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterRefused, match=r"adapter_model\.bin is a pickle and is never opened"):
        read_adapter(folder, name="sql")


def test_a_pickle_under_the_right_name_is_refused(folder: Path) -> None:
    torch.save({"x": torch.ones(1)}, folder / WEIGHTS_FILE)
    with pytest.raises(AdapterRefused, match="not a complete safetensors file"):
        read_adapter(folder, name="sql")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterRefused, match=CONFIG_FILE):
        read_adapter(folder, name="sql")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match=f"{CONFIG_FILE} is missing"):
        read_adapter(tmp_path, name="sql")


def test_an_adapter_of_another_shape_does_not_fit(folder: Path) -> None:
    adapter = read_adapter(folder, name="sql")
    shapes = dict(install(tiny_llama()).shapes)
    check_fits(adapter, shapes)
    with pytest.raises(AdapterRefused, match="the base model has 32 -> 64"):
        check_fits(adapter, shapes | {Q0: LayerShape(32, 64, lora=True, bias=False)})
    del shapes[Q0]
    with pytest.raises(AdapterRefused, match="not a layer of the base model that LoRA is served on"):
        check_fits(adapter, shapes)


def test_the_name_of_another_base_model_warns_and_is_refused_on_request(folder: Path) -> None:
    edit_config(folder, base_model_name_or_path="/models/SmolLM2-135M-Instruct/")
    adapter = read_adapter(folder, name="sql")
    assert check_base(adapter, "HuggingFaceTB/smollm2-135m-instruct", strict=True) is None
    remark = check_base(adapter, "Llama-3-8B")
    assert remark is not None
    assert remark.warning
    assert "'/models/SmolLM2-135M-Instruct/', and 'Llama-3-8B' is served" in remark.text
    with pytest.raises(AdapterRefused, match="adapter 'sql' was trained on '/models/SmolLM2-135M-Instruct/'"):
        check_base(adapter, "Llama-3-8B", strict=True)
    assert check_base(adapter, BaseNames("Llama-3-8B", aliases=("smollm2-135m-instruct",)), strict=True) is None


@pytest.mark.parametrize("name", [None, "", "/opt/ml/input/data/model", "x/tiny-llama-bnb-4bit"])
def test_a_name_that_does_not_contradict_is_a_note(folder: Path, name: str | None) -> None:
    edit_config(folder, base_model_name_or_path=name)
    remark = check_base(read_adapter(folder, name="sql"), "tiny-llama", strict=True)
    assert remark is not None
    assert not remark.warning
    assert "'tiny-llama'" in remark.text
