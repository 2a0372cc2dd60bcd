"""Quantised checkpoints of the tiny model, as compressed-tensors writes them, and what they say with mixes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlp_core.mix import Mix
from examples.tiny.model import tiny_model, tiny_tokenizer
from tests.support.engines import Reference

GROUP = 32


def save_quantised(folder: Path, scheme: str) -> None:
    """Saves the model with the linear layers of a preset `scheme` of compressed-tensors: W8A8, or W4A16 in groups of
    GROUP. 8-bit weights stay within 63, half of their range: CPUs without VNNI add two products in 16 bits, and vLLM's
    own answers overflow there beyond it."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    model = tiny_model()
    preset = preset_name_to_scheme(scheme, ["Linear"])
    if scheme == "W4A16":
        preset.weights.group_size = GROUP
    apply_quantization_config(
        model,
        QuantizationConfig(
            config_groups={"group_0": preset},
            ignore=["lm_head"],
            quantization_status=QuantizationStatus.INITIALIZED,
        ),
    )
    for layer in _quantised(model):
        groups = layer.weight.detach().unflatten(1, (-1, preset.weights.group_size or layer.in_features))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), preset.weights)
        layer.weight_scale.data.copy_(scale * (2 if scheme == "W8A8" else 1))
        layer.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    tiny_tokenizer().save_pretrained(folder)


class QuantisedReference(Reference):
    """The model with the weights that a checkpoint in `folder`/base stands for. Each mix is added to what a layer puts
    out, from what goes into it before that is quantised."""

    def __init__(self, folder: Path, *, inputs: bool) -> None:
        """`inputs`: those of the layers are quantised too, to 8 bits by the largest of each token, as vLLM does it."""
        super().__init__(folder)
        self._inputs = inputs

    def model(self, mix: Mix) -> Any:
        key = frozenset((part.name, part.weight) for part in mix.adapters)
        if key not in self._models:
            from transformers import AutoModelForCausalLM

            stored = AutoModelForCausalLM.from_pretrained(self._folder / "base", dtype=torch.float32)
            stored(torch.tensor([[0]]))  # unpacks its weights
            self._models[key] = model = tiny_model()
            model.load_state_dict({name: stored.state_dict()[name] for name in model.state_dict()})
            quantised = set(_quantised(stored))
            for path, layer in model.named_modules():
                if stored.get_submodule(path) in quantised:
                    parts = [(weight, self._deltas(name).get(path)) for name, weight in key]
                    deltas = [weight * delta for weight, delta in parts if delta is not None]
                    layer.forward = partial(_forward, layer.weight, deltas, self._inputs)
        return self._models[key]


def _forward(weight: Tensor, deltas: list[Tensor], inputs: bool, x: Tensor) -> Tensor:
    base = x
    if inputs:
        scale = x.abs().amax(-1, keepdim=True) / 127
        base = (x / scale).round() * scale
    return sum((x @ delta.T for delta in deltas), base @ weight.T)


def _quantised(model: nn.Module) -> list[Any]:
    return [layer for layer in model.modules() if getattr(layer, "quantization_scheme", None) is not None]
