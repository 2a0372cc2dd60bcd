"""Fusion against PEFT: for every token, the plain layer plus the weighted sum of single adapters' deltas."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlp_core.adapter.weights import Adapter, LoRAWeights, read_adapter
from dlp_core.fusion.layers import Fusion, install
from dlp_core.fusion.reference import Delta, fused_lora
from dlp_core.fusion.segments import Segment
from tests.support.tiny import TOLERANCE, VOCAB, WHOLE_MODEL, load_peft, peft_adapter, relative_error, tiny_llama

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("each_cpu_implementation")]

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# ranks, scalings and targets all differ, so that confusing any of them shows
BANK = {
    "plain": {"r": 4, "lora_alpha": 8},
    "small": {"r": 2, "lora_alpha": 32, "target_modules": ["v_proj"]},
    "rslora": {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "o_proj"]},
    "patterns": {
        "r": 6,
        "lora_alpha": 3,
        "target_modules": ALL_LINEAR,
        "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 5},
        "alpha_pattern": {"layers.0.self_attn.v_proj": 11, "down_proj": 1},
    },
    "regex": {"r": 1, "lora_alpha": 2, "target_modules": r".*layers\.1\..*(q|v)_proj"},
    "last_layer": {
        "r": 5,
        "lora_alpha": 5,
        "target_modules": ALL_LINEAR,
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "all_linear": {"r": 3, "lora_alpha": 9, "target_modules": "all-linear", "exclude_modules": ["up_proj"]},
}
NAMES = list(BANK)

# every segment has another mix: one adapter, two, three of different ranks, none, negative weights, weights above 1
SEGMENTS = (
    Segment(3, ((0, 1.0),)),
    Segment(1, ()),
    Segment(2, ((1, 0.3), (2, 0.7))),
    Segment(1, ((3, 0.5), (0, 0.2), (4, 0.3))),
    Segment(4, ((5, -0.4), (3, 1.5), (6, 0.1))),
    Segment(1, ((2, 0.25),)),
)
TOKENS = sum(segment.length for segment in SEGMENTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: peft_adapter(root / name, seed, **({"target_modules": ["q_proj", "v_proj"]} | config))
        for seed, (name, config) in enumerate(BANK.items())
    }


@pytest.fixture(scope="module")
def adapters(folders: dict[str, Path]) -> list[Adapter]:
    return [read_adapter(folders[name], name=name) for name in NAMES]


def fused(adapters: list[Adapter], dtype: torch.dtype) -> tuple[torch.nn.Module, Fusion]:
    model = tiny_llama(dtype=dtype)
    fusion = install(model)
    for slot, adapter in enumerate(adapters):
        fusion.load(slot, adapter)
    return model, fusion


Served = Callable[[str, torch.dtype], Any]


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> Served:
    """The plain model of a dtype, and with each adapter, as PEFT itself serves it; loaded once."""

    @cache
    def model(name: str, dtype: torch.dtype) -> Any:
        return load_peft(folders[name], dtype).base_model.model if name else tiny_llama(dtype=dtype)

    return model


def peft_sum(path: str, x_TD: Tensor, served: Served, dtype: torch.dtype) -> Tensor:
    """W x + sum_i w_i (peft_i(x) - W x) per token, in float64 after PEFT's own layers."""
    plain_TO = served("", dtype).get_submodule(path)(x_TD).double()
    result_TO = plain_TO.clone()
    deltas = {
        slot: served(name, dtype).get_submodule(path)(x_TD).double() - plain_TO for slot, name in enumerate(NAMES)
    }
    start = 0
    for segment in SEGMENTS:
        rows = slice(start, start + segment.length)
        for slot, weight in segment.parts:
            result_TO[rows] += weight * deltas[slot][rows]
        start += segment.length
    return result_TO


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@torch.no_grad()
def test_every_layer_equals_the_weighted_sum_of_peft_deltas(
    served: Served, adapters: list[Adapter], dtype: torch.dtype
) -> None:
    model, fusion = fused(adapters, dtype)
    layers = {path: model.get_submodule(path) for adapter in adapters for path in adapter.modules}
    assert len(layers) == 14
    for path, layer in layers.items():
        torch.manual_seed(3)
        x_TD = torch.randn(TOKENS, layer.in_features).to(dtype)
        with fusion.batch(SEGMENTS):
            found = layer(x_TD)
        expected = peft_sum(path, x_TD, served, dtype)
        assert relative_error(found, expected) <= TOLERANCE[dtype], path
        assert found.dtype == dtype


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@torch.no_grad()
def test_the_reference_equals_the_weighted_sum_of_peft_deltas(
    served: Served, adapters: list[Adapter], dtype: torch.dtype
) -> None:
    path = "model.layers.1.self_attn.v_proj"
    x_TD = torch.randn(TOKENS, 64).to(dtype)
    weights = {slot: Delta(a.modules[path]) for slot, a in enumerate(adapters) if path in a.modules}
    y_TO = tiny_llama(dtype=dtype).get_submodule(path)(x_TD)
    found = fused_lora(y_TO, x_TD, SEGMENTS, weights)
    assert relative_error(found, peft_sum(path, x_TD, served, dtype)) <= TOLERANCE[dtype]


@torch.no_grad()
def test_whole_model_equals_peft_for_each_single_adapter(served: Served, adapters: list[Adapter]) -> None:
    model, fusion = fused(adapters, torch.float32)
    ids = torch.arange(20).unsqueeze(0) % VOCAB
    for slot, name in enumerate(NAMES):
        with fusion.batch((Segment(20, ((slot, 1.0),)),)):
            found = model(ids).logits
        assert relative_error(found, served(name, torch.float32)(ids).logits) <= WHOLE_MODEL, name


@torch.no_grad()
def test_whole_model_equals_peft_cat_merge_for_a_mix(tmp_path: Path) -> None:
    """PEFT's `cat` combination is the exact weighted sum; it needs equal targets."""
    folders = {name: peft_adapter(tmp_path / name, seed, r=r) for seed, (name, r) in enumerate([("a", 2), ("b", 7)])}
    oracle = load_peft(folders["a"])
    oracle.load_adapter(folders["b"], "b")
    oracle.add_weighted_adapter(["default", "b"], [0.6, 0.4], "mix", combination_type="cat")
    oracle.set_adapter("mix")
    model, fusion = fused([read_adapter(folders[n], name=n) for n in "ab"], torch.float32)
    ids = torch.arange(20).unsqueeze(0) % VOCAB
    with fusion.batch((Segment(20, ((0, 0.6), (1, 0.4))),)):
        assert relative_error(model(ids).logits, oracle(ids).logits) <= WHOLE_MODEL


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@torch.no_grad()
def test_the_empty_mix_is_bit_identical_to_the_plain_backbone(adapters: list[Adapter], dtype: torch.dtype) -> None:
    model, fusion = fused(adapters, dtype)
    plain = tiny_llama(dtype=dtype)
    ids = torch.arange(12).unsqueeze(0)
    expected = plain(ids).logits
    assert torch.equal(model(ids).logits, expected), "installed, outside any batch"
    with fusion.batch((Segment(12, ()),)):
        assert torch.equal(model(ids).logits, expected), "a batch without adapters"
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    x_TD = torch.randn(TOKENS, 64).to(dtype)
    with fusion.batch(SEGMENTS):
        mixed = layer(x_TD)
    assert torch.equal(mixed[3], layer(x_TD)[3]), "a row without adapters beside rows with some"
    assert not torch.equal(mixed[2], layer(x_TD)[2])


MISTAKES = {
    "a weight is dropped": lambda parts, own: [(s, w, own[s]) for s, w in parts[:-1]],
    "alpha / r is skipped": lambda parts, own: [(s, w, 1.0) for s, w in parts],
    "the first adapter's scaling is used for all": lambda parts, own: [(s, w, own[parts[0][0]]) for s, w in parts],
    "the weight is applied to A and to B": lambda parts, own: [(s, w * w, own[s]) for s, w in parts],
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_the_tolerance_catches_known_mistakes(adapters: list[Adapter], mistake: str) -> None:
    """Each published mistake misses the right answer by far more than the comparison above allows."""
    path = "model.layers.1.self_attn.v_proj"
    torch.manual_seed(0)
    x_TD = torch.randn(1, 64)
    y_TO = torch.randn(1, 32)
    parts = ((1, 0.3), (3, 0.7))
    weights = {slot: adapters[slot].modules[path] for slot, _ in parts}
    right = fused_lora(y_TO, x_TD, (Segment(1, parts),), {slot: Delta(w) for slot, w in weights.items()})
    wrong = y_TO.clone()
    for slot, weight, scaling in MISTAKES[mistake](parts, {slot: w.scaling for slot, w in weights.items()}):
        lora = weights[slot]
        wrong += weight * scaling * (x_TD @ lora.a_RD.T @ lora.b_OR.T)
    assert relative_error(wrong, right) > 1000 * TOLERANCE[torch.float32]


def test_swapped_factors_do_not_pass(tmp_path: Path) -> None:
    """A square layer would accept B in place of A^T; the numbers must show it."""
    lora = LoRAWeights(torch.randn(4, 64), torch.randn(64, 4), 2.0)
    swapped = LoRAWeights(lora.b_OR.T.contiguous(), lora.a_RD.T.contiguous(), 2.0)
    x_TD, y_TO = torch.randn(1, 64), torch.randn(1, 64)
    segments = (Segment(1, ((0, 1.0),)),)
    right, wrong = (fused_lora(y_TO, x_TD, segments, {0: Delta(w)}) for w in (lora, swapped))
    assert relative_error(wrong, right) > 0.1


@torch.no_grad()
def test_changing_batches_reuse_and_rebuild_the_pack(adapters: list[Adapter]) -> None:
    """Sets that shrink, grow and change a slot's adapter give what a fresh model gives, and not what the step before
    gave: a pack may hold adapters that no token uses any more, so the products have other shapes."""
    model, fusion = fused(adapters, torch.float32)
    ids = torch.arange(4).unsqueeze(0)
    before = model(ids).logits
    for step, slots in enumerate([(0, 1, 2), (0,), (1, 3), (3,), (5, 4, 0), (2,)]):
        if step == 3:
            fusion.load(3, adapters[0])  # slot 3 now holds another adapter, as after an eviction
        parts = tuple((slot, 0.5) for slot in slots)
        with fusion.batch((Segment(4, parts),)):
            found = model(ids).logits
        contents = [adapters[0] if step >= 3 and slot == 3 else adapters[slot] for slot in range(6)]
        fresh, fresh_fusion = fused(contents, torch.float32)
        with fresh_fusion.batch((Segment(4, parts),)):
            assert relative_error(found, fresh(ids).logits) <= WHOLE_MODEL, slots
        assert relative_error(found, before) > 1e-2, slots
        before = found


def test_batches_do_not_nest_and_clear_after_an_error(adapters: list[Adapter]) -> None:
    _, fusion = fused(adapters, torch.float32)
    segments = (Segment(1, ((0, 1.0),)),)
    with fusion.batch(segments), pytest.raises(RuntimeError, match="already in flight"), fusion.batch(segments):
        pass
    assert fusion.step is None
    with pytest.raises(ZeroDivisionError), fusion.batch(segments):
        raise ZeroDivisionError
    assert fusion.step is None


def test_installing_twice_is_an_error() -> None:
    model = tiny_llama()
    install(model)
    with pytest.raises(ValueError, match="already"):
        install(model)
