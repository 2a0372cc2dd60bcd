"""Whether an adapter belongs to a base model: by the name it gives, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dlp_core.adapter.weights import Adapter
from dlp_core.errors import AdapterRefused


class LayerShape(NamedTuple):
    """What a layer of the base model must have in common with what an adapter adds to it."""

    d_in: int
    d_out: int
    lora: bool
    """Whether LoRA is served on it; a LayerNorm takes a bias only."""
    bias: bool
    """Whether it has a bias an adapter may have trained."""


def check_base(adapter: Adapter, base_id: str) -> None:
    """Refuses an adapter that names another base model. Only the last path component counts, in any case:
    `HuggingFaceTB/SmolLM2-135M-Instruct` and `/models/smollm2-135m-instruct` are the same model. An adapter
    that names none is left to `check_fits`.

    Raises AdapterRefused.
    """
    named = adapter.base_model
    if named is not None and _last_component(named) != _last_component(base_id):
        raise AdapterRefused(
            f"adapter {adapter.name!r} was trained on {named!r}, this bank serves {base_id!r}; "
            "publish it in a bank of its own base model"
        )


def check_fits(adapter: Adapter, layers: Mapping[str, LayerShape]) -> None:
    """Refuses an adapter that changes what is no layer of this base model, or one of another shape.

    `layers` maps module path to shape. Raises AdapterRefused.
    """
    for module, weights in adapter.modules.items():
        if module not in layers or not layers[module].lora:
            raise AdapterRefused(
                f"adapter {adapter.name!r} targets {module!r}, which is no layer of the base model that LoRA is served "
                "on (linear layers and embeddings are, experts of a mixture are not); it belongs to another model, or "
                "has to be trained on other modules"
            )
        found, wanted = (int(weights.a_RD.shape[1]), int(weights.b_OR.shape[0])), layers[module]
        if found != (wanted.d_in, wanted.d_out):
            raise AdapterRefused(
                f"adapter {adapter.name!r}, {module}: it maps {found[0]} -> {found[1]} features, "
                f"the base model has {wanted.d_in} -> {wanted.d_out}; it belongs to another model"
            )
    for module, bias in adapter.biases.items():
        if module not in layers or not layers[module].bias or tuple(bias.shape) != (layers[module].d_out,):
            raise AdapterRefused(
                f"adapter {adapter.name!r} has a bias {tuple(bias.shape)} for {module!r}, where the base model has "
                "none of that shape; it belongs to another model, or has to be trained with bias='none'"
            )
    for module, copy in adapter.copies.items():
        if module not in layers or sorted(copy.shape) != sorted((layers[module].d_in, layers[module].d_out)):
            raise AdapterRefused(
                f"adapter {adapter.name!r} brings a weight {tuple(copy.shape)} for {module!r}, where the base model "
                "has none of that shape; a base model that was resized or changed has to be served as such"
            )


def _last_component(model: str) -> str:
    return model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
