"""Each model family against PEFT: layers of every kind, whole models, mixes, trained biases, a quantised backbone."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlp_core.adapter.contents import CONFIG_FILE
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused
from dlp_core.fusion.layers import Fusion, install
from dlp_core.fusion.segments import Segment
from examples.tiny.model import peft_model
from tests.support.cpu_implementations import CPU_IMPLEMENTATIONS, cpu_implementation
from tests.support.families import BIASED, FAMILIES, LLAMA_LINEAR, VOCAB, Family
from tests.support.tiny import TOLERANCE, WHOLE_MODEL, relative_error

pytestmark = pytest.mark.model

each_cpu_implementation = pytest.mark.usefixtures("each_cpu_implementation")

MIX = ((0, 0.6), (1, 0.3), (2, 0.1))
IDS = torch.tensor([[5, 17, 3, 80, 44, 9, 61, 2, 33, 70, 12, 90, 7]])


def save(folder: Path, model: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it saves embeddings, and on what base the adapter was made
        model.save_pretrained(folder)
    return folder


def bank(family: Family, root: Path, **lora: Any) -> list[Path]:
    """Three adapters of different ranks, scalings and targets."""
    half = family.targets[: len(family.targets) // 2]
    settings: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8, "target_modules": family.targets},
        {"r": 3, "lora_alpha": 2, "use_rslora": True, "target_modules": family.targets},
        {"r": 2, "lora_alpha": 9, "target_modules": half},
    ]
    return [
        save(root / f"a{seed}", adapted(family.build(), seed, **config | lora)) for seed, config in enumerate(settings)
    ]


def adapted(model: Any, seed: int, **lora: Any) -> Any:
    """The model with a random adapter; other trained parameters have changed too."""
    result = peft_model(model, seed, **lora)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if parameter.requires_grad and name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter))
    return result


def with_peft(family: Family, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(family.build(), folder).eval().base_model.model


def fused(model: Any, folders: list[Path]) -> Fusion:
    fusion = install(model)
    for slot, folder in enumerate(folders):
        fusion.load(slot, read_adapter(folder, name=folder.name))
    return fusion


def recorded(model: Any, paths: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Each layer's input and output in one forward pass of the plain model."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, x, y, path=path: seen.__setitem__(path, (x[0].clone(), y.clone()))
        )
        for path in paths
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_families_with_biases() -> None:
    found = [name for name, family in FAMILIES.items() if any("bias" in key for key in family.build().state_dict())]
    assert found == BIASED


BIASES = [
    (name, bias) for name in FAMILIES for bias in ("none", "lora_only", "all") if bias == "none" or name in BIASED
]


@pytest.mark.parametrize(("name", "bias"), BIASES)
@torch.no_grad()
def test_every_layer_is_the_weighted_sum_of_peft_deltas(name: str, bias: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folders = bank(family, tmp_path, bias=bias)
    model = family.build()
    adapters = [read_adapter(folder, name=folder.name) for folder in folders]
    paths = sorted({path for adapter in adapters for path in (*adapter.modules, *adapter.biases)})
    inputs = recorded(model, paths)
    oracles = [with_peft(family, folder) for folder in folders]
    fusion = fused(model, folders)
    for path in paths:
        x, plain = inputs[path]
        expected = plain.double()
        for slot, weight in MIX:
            expected += weight * (oracles[slot].get_submodule(path)(x).double() - plain.double())
        for implementation in CPU_IMPLEMENTATIONS:
            with cpu_implementation(implementation), fusion.batch((Segment(IDS.shape[1], MIX),)):
                found = model.get_submodule(path)(x)
            assert relative_error(found, expected) <= TOLERANCE[torch.float32], (path, implementation)
        assert torch.equal(model.get_submodule(path)(x), plain), path


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_whole_model_equals_peft(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folders = bank(family, tmp_path, bias="all")
    model = family.build()
    plain = model(IDS).logits
    fusion = fused(model, folders)
    assert torch.equal(model(IDS).logits, plain)
    for slot, folder in enumerate(folders):
        expected = with_peft(family, folder)(IDS).logits
        assert relative_error(plain, expected) > 1e-2, "the adapter matters"
        for implementation in CPU_IMPLEMENTATIONS:
            with cpu_implementation(implementation), fusion.batch((Segment(IDS.shape[1], ((slot, 1.0),)),)):
                found = model(IDS).logits
            assert relative_error(found, expected) <= WHOLE_MODEL, implementation


@each_cpu_implementation
@torch.no_grad()
def test_logits_of_some_tokens_only(tmp_path: Path) -> None:
    """An adapter on the output head, when the model computes logits for the ends of two prompts."""
    family = FAMILIES["llama"]
    folder = save(tmp_path / "a", adapted(family.build(), 1, target_modules=["lm_head", "q_proj"]))
    model = family.build()
    fusion = fused(model, [folder])
    segments = (Segment(4, ((0, 1.0),)), Segment(5, ()), Segment(4, ((0, 0.5),)))
    with fusion.batch(segments):
        every = model(IDS).logits
    kept = [3, 8, 12]
    with fusion.batch(segments, head_rows=kept):
        assert (
            relative_error(model(IDS, logits_to_keep=torch.tensor(kept)).logits, every[:, kept])
            <= TOLERANCE[torch.float32]
        )
    with fusion.batch(segments), pytest.raises(RuntimeError, match="sees 3 tokens"):
        model(IDS, logits_to_keep=torch.tensor(kept))


@each_cpu_implementation
@torch.no_grad()
def test_logits_of_all_tokens_in_another_order(tmp_path: Path) -> None:
    """As many rows as tokens: each keeps the mix of its own token."""
    family = FAMILIES["llama"]
    folder = save(tmp_path / "a", adapted(family.build(), 1, target_modules=["lm_head", "q_proj"]))
    model = family.build()
    fusion = fused(model, [folder])
    segments = tuple(Segment(1, ((0, number / 5),) if number % 3 else ()) for number in range(IDS.shape[1]))
    with fusion.batch(segments):
        every = model(IDS).logits
    reordered = list(reversed(range(IDS.shape[1])))
    with fusion.batch(segments, head_rows=reordered):
        found = model(IDS, logits_to_keep=torch.tensor(reordered)).logits
    assert relative_error(found, every[:, reordered]) <= TOLERANCE[torch.float32]


@each_cpu_implementation
def test_layers_with_the_same_input_are_distinguished(tmp_path: Path) -> None:
    """GPT-J and its like feed one hidden state to attention and to the MLP."""
    from transformers import GPTJConfig

    family = Family(
        lambda: GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
        ["q_proj", "v_proj", "fc_in", "fc_out"],
    )
    folders = bank(family, tmp_path)
    model = family.build()
    fusion = fused(model, folders)
    with torch.no_grad(), fusion.batch((Segment(IDS.shape[1], ((0, 1.0),)),)):
        found = model(IDS).logits
        assert relative_error(found, with_peft(family, folders[0])(IDS).logits) <= WHOLE_MODEL


def test_experts_take_no_adapters() -> None:
    """They see only some of a batch's tokens, in an order of their own."""
    fusion = install(FAMILIES["mixtral"].build())
    assert not [path for path in fusion.shapes if "expert" in path]


def test_lora_on_fused_experts_is_refused_by_name(tmp_path: Path) -> None:
    family = FAMILIES["mixtral"]
    lora = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    folder = save(tmp_path / "a", peft_model(family.build(), 1, **lora))
    with pytest.raises(AdapterRefused, match="target_parameters"):
        read_adapter(folder, name="a")


@pytest.mark.parametrize("name", ["llama_tied", "gemma3"])
def test_an_adapter_that_changed_the_embeddings_themselves_is_refused(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = save(tmp_path / "a", adapted(family.build(), 1, target_modules=["embed_tokens"]))
    adapter = read_adapter(folder, name="a")
    assert adapter.copies, "PEFT stores the base embeddings beside LoRA on them"
    install(family.build()).load(0, adapter)
    with pytest.raises(AdapterRefused, match="differs from the base model's"):
        install(family.build(seed=2)).load(0, adapter)
    resized = replace(adapter, copies={path: torch.ones(VOCAB + 1, 32) for path in adapter.copies})
    with pytest.raises(AdapterRefused, match="resized"):
        install(family.build()).load(0, resized)


def test_a_bias_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", adapted(FAMILIES["qwen2"].build(), 1, target_modules=["q_proj"], bias="lora_only"))
    adapter = read_adapter(folder, name="a")
    assert len(adapter.biases) == 2
    with pytest.raises(AdapterRefused, match="has a bias"):
        install(FAMILIES["llama"].build()).load(0, adapter)


@each_cpu_implementation
@torch.no_grad()
def test_a_quantised_backbone(tmp_path: Path) -> None:
    """int8 weights: fusion adds to the quantised layer's output, however that layer is implemented."""
    torchao = pytest.importorskip("torchao.quantization")
    family = FAMILIES["llama"]
    folders = bank(family, tmp_path)
    model = family.build(dtype=torch.bfloat16)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    plain = model(IDS).logits
    inputs = recorded(model, [f"model.layers.1.{part}" for part in ("self_attn.v_proj", "mlp.down_proj")])
    fusion = fused(model, folders)
    assert torch.equal(model(IDS).logits, plain)
    for path, (x, y) in inputs.items():
        adapters = [read_adapter(folder, name=folder.name) for folder in folders]
        expected = y.double()
        for slot, weight in MIX:
            if (lora := adapters[slot].modules.get(path)) is not None:
                expected += weight * lora.scaling * (x.double() @ lora.a_RD.T.double() @ lora.b_OR.T.double())
        with fusion.batch((Segment(IDS.shape[1], MIX),)):
            assert relative_error(model.get_submodule(path)(x), expected) <= 2e-2, path


@each_cpu_implementation
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@torch.no_grad()
def test_adapters_initialised_by_changing_the_base_are_served_once_saved_as_plain_lora(
    init: str, tmp_path: Path
) -> None:
    family = FAMILIES["llama"]
    trained = peft_model(family.build(), 1, target_modules=LLAMA_LINEAR, init_lora_weights=init)
    save(tmp_path / "initial", trained)
    with pytest.raises(AdapterRefused, match="path_initial_model_for_weight_conversion"):
        read_adapter(tmp_path / "initial", name="initial")
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.add_(0.05 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "initial")
    model = family.build()
    fusion = fused(model, [tmp_path / "plain"])
    with fusion.batch((Segment(IDS.shape[1], ((0, 1.0),)),)):
        assert relative_error(model(IDS).logits, trained(IDS).logits) <= 1e-3


def test_the_initialisation_does_not_matter_if_the_base_is_unchanged(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", adapted(FAMILIES["llama"].build(), 1, target_modules=["q_proj"]))
    config = json.loads((folder / CONFIG_FILE).read_text())
    for init in ("eva", "gaussian", "orthogonal", True):
        (folder / CONFIG_FILE).write_text(json.dumps(config | {"init_lora_weights": init}))
        assert read_adapter(folder, name="a").modules


def test_llama_linear_is_all_linear() -> None:
    linear = {
        path.rpartition(".")[2] for path, shape in install(FAMILIES["llama"].build()).shapes.items() if shape.lora
    }
    assert linear == {*LLAMA_LINEAR, "lm_head", "embed_tokens"}
