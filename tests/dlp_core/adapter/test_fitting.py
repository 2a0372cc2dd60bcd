"""Adapters of another class of the same model: named as the served one, with the sums that PEFT computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.fitting import fit
from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.errors import AdapterRefused
from dlp_core.fusion.layers import install
from dlp_core.fusion.segments import Segment
from examples.tiny.model import peft_model
from tests.support.families import FAMILIES, VOCAB
from tests.support.tiny import WHOLE_MODEL, peft_adapter, relative_error, tiny_llama

LAYERS = dict(install(tiny_llama()).shapes)
Q0 = "model.layers.0.self_attn.q_proj"
IDS = torch.arange(3, 12)[None]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return read_adapter(peft_adapter(tmp_path_factory.mktemp("a") / "sql", 1), name="sql")


def renamed(adapter: Adapter, new: Callable[[str], str]) -> Adapter:
    return replace(adapter, modules={new(path): weights for path, weights in adapter.modules.items()})


def multimodal(path: str) -> str:
    return path.replace("model.layers", "model.language_model.layers")


NAMES: dict[str, Callable[[str], str]] = {
    "the multimodal class": multimodal,
    "the multimodal class, before": lambda path: f"language_model.{path}",
    "DDP": lambda path: f"module.{path}",
    "without a head": lambda path: path.removeprefix("model."),
    "a text model inside": lambda path: path.replace("model.layers", "model.text_model.layers"),
}


@pytest.mark.parametrize("name", NAMES)
def test_another_class_of_the_same_model(adapter: Adapter, name: str) -> None:
    fitted = fit(renamed(adapter, NAMES[name]), LAYERS)
    assert fitted.modules == adapter.modules
    (note,) = fitted.notes
    assert note.startswith("4 modules have other names in the base model")
    assert repr(NAMES[name](Q0)) in note
    assert repr(Q0) in note


@pytest.mark.parametrize("name", NAMES)
def test_and_the_other_way_around(adapter: Adapter, name: str) -> None:
    layers = {NAMES[name](path): shape for path, shape in LAYERS.items()}
    fitted = fit(adapter, layers)
    assert fitted.modules == renamed(adapter, NAMES[name]).modules
    assert renamed(adapter, NAMES[name]).modules == fit(fitted, layers).modules


def test_biases_and_copies_have_the_same_names(adapter: Adapter) -> None:
    head = "model.layers.0.mlp.down_proj"
    layers = LAYERS | {Q0: LayerShape(64, 64, lora=True, bias=True)}
    bias, copy = torch.zeros(64), torch.zeros(96, 64)
    other = renamed(adapter, multimodal)
    found = fit(replace(other, biases={multimodal(Q0): bias}, copies={multimodal(head): copy}), layers)
    assert found.biases == {Q0: bias}
    assert found.copies == {head: copy}
    assert found.modules == adapter.modules


def test_an_adapter_of_this_class_is_left_as_it_is(adapter: Adapter) -> None:
    assert fit(adapter, LAYERS) is adapter


def test_the_names_are_the_only_thing_that_is_forgiven(adapter: Adapter) -> None:
    with pytest.raises(AdapterRefused, match=rf"'sql', {Q0}: it maps 64 -> 64 features, the base model has 64 -> 32"):
        fit(renamed(adapter, multimodal), LAYERS | {Q0: LayerShape(64, 32, lora=True, bias=False)})
    vision = renamed(adapter, lambda path: path.replace("model.layers", "model.vision_tower.encoder.layers"))
    with pytest.raises(AdapterRefused, match=r"'model\.vision_tower\.encoder.*' is not a layer|targets 'model\.vision"):
        fit(vision, LAYERS)


def test_one_layer_by_two_names_is_refused(adapter: Adapter) -> None:
    both = replace(adapter, modules={**adapter.modules, multimodal(Q0): adapter.modules[Q0]})
    with pytest.raises(AdapterRefused, match=r"are one layer of the base model \('model\.layers\.0"):
        fit(both, LAYERS)
    old_and_new = renamed(adapter, multimodal).modules | {f"language_model.{Q0}": adapter.modules[Q0]}
    with pytest.raises(AdapterRefused, match="are one layer of the base model"):
        fit(replace(adapter, modules=old_and_new), LAYERS)


def test_a_name_that_may_be_two_layers_is_refused(adapter: Adapter) -> None:
    layers = LAYERS | {f"module.{path}": shape for path, shape in LAYERS.items()}
    assert fit(adapter, layers) is adapter
    with pytest.raises(AdapterRefused, match=r"which may be 'model\.layers\.0.*' or 'module\.model\.layers\.0"):
        fit(renamed(adapter, multimodal), layers)


TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.mark.model
@torch.no_grad()
def test_a_text_adapter_on_a_multimodal_base_computes_what_peft_does(tmp_path: Path) -> None:
    """Gemma 3, as a text model and as the class that also sees, with the same weights."""
    torch.manual_seed(1)
    text = AutoModelForCausalLM.from_config(Gemma3TextConfig(**TEXT)).eval()
    both = AutoModelForCausalLM.from_config(
        Gemma3Config(text_config=TEXT, vision_config=SiglipVisionConfig(**VISION), mm_tokens_per_image=4)
    ).eval()
    both.model.language_model.load_state_dict(text.model.state_dict())
    both.lm_head.load_state_dict(text.lm_head.state_dict())
    trained = peft_model(text, 1, target_modules=["q_proj", "down_proj", "lm_head"])
    trained.save_pretrained(tmp_path / "sql", save_embedding_layers=True)
    fusion = install(both)
    fusion.load(0, read_adapter(tmp_path / "sql", name="sql"))
    with fusion.batch((Segment(IDS.shape[1], ((0, 1.0),)),)):
        found = both(IDS).logits
    expected = trained(IDS).logits
    assert relative_error(found, expected) <= WHOLE_MODEL
    assert relative_error(both(IDS).logits, expected) > 1e-2, "the adapter must matter"


def test_shapes_that_do_not_fit_are_refused_where_weights_are_loaded(adapter: Adapter) -> None:
    with pytest.raises(AdapterRefused, match=rf"adapter 'sql', {Q0}: it maps 64 -> 64 features"):
        install(FAMILIES["llama"].build()).load(0, adapter)
