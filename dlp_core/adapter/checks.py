"""Checks that an adapter belongs to a base model: by the model's name, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dlp_core.adapter.weights import Adapter
from dlp_core.errors import AdapterRefused


class LayerShape(NamedTuple):
    """The shape of a base model's layer, for comparison with an adapter."""

    d_in: int
    d_out: int
    lora: bool
    """Whether LoRA is served on it; a LayerNorm only takes a bias."""
    bias: bool
    """Whether it has a bias that an adapter may have trained."""


def check_base(adapter: Adapter, base_id: str) -> None:
    """Refuse an adapter that names another base model. Only the last path component counts, ignoring case:
    `HuggingFaceTB/SmolLM2-135M-Instruct` and `/models/smollm2-135m-instruct` are the same model. An adapter
    that names none is left to `check_fits`.

    Raises AdapterRefused.
    """
    base_model = adapter.base_model
    if base_model is not None and _last_component(base_model) != _last_component(base_id):
        raise AdapterRefused(
            f"adapter {adapter.name!r} was trained on {base_model!r}, this bank serves {base_id!r}; "
            "publish it in a bank of its own base model"
        )


def check_fits(adapter: Adapter, layers: Mapping[str, LayerShape]) -> None:
    """Refuse an adapter that targets a layer the base model does not have, or one of another shape.

    `layers` maps module path to shape. Raises AdapterRefused.
    """
    for module, weights in adapter.modules.items():
        if module not in layers or not layers[module].lora:
            raise AdapterRefused(
                f"adapter {adapter.name!r} targets {module!r}, which is not a layer of the base model that LoRA is "
                "served on (linear layers and embeddings, but not experts of a mixture); it belongs to another model, "
                "or must be trained on other modules"
            )
        d_in, d_out, layer = int(weights.a_RD.shape[1]), int(weights.b_OR.shape[0]), layers[module]
        if (d_in, d_out) != (layer.d_in, layer.d_out):
            raise AdapterRefused(
                f"adapter {adapter.name!r}, {module}: it maps {d_in} -> {d_out} features, "
                f"the base model has {layer.d_in} -> {layer.d_out}; it belongs to another model"
            )
    for module, bias in adapter.biases.items():
        if module not in layers or not layers[module].bias or tuple(bias.shape) != (layers[module].d_out,):
            raise AdapterRefused(
                f"adapter {adapter.name!r} has a bias {tuple(bias.shape)} for {module!r}, where the base model has "
                "none of that shape; it belongs to another model, or must be trained with bias='none'"
            )
    for module, copy in adapter.copies.items():
        if module not in layers or sorted(copy.shape) != sorted((layers[module].d_in, layers[module].d_out)):
            raise AdapterRefused(
                f"adapter {adapter.name!r} brings a weight {tuple(copy.shape)} for {module!r}, where the base model "
                "has none of that shape; a base model that was resized or changed must itself be the served base model"
            )


def _last_component(model: str) -> str:
    return model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
