"""Checks that an adapter belongs to a base model: layer by layer. What it is called only gives a remark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dlp_core.adapter.base_names import BaseNames, Naming
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


class Remark(NamedTuple):
    """Something to say about an adapter that is served all the same."""

    text: str
    warning: bool = False
    """Whether its owner should look at it."""


def check_base(adapter: Adapter, base: BaseNames | str, *, strict: bool = False) -> Remark | None:
    """What is to be said about the base model that an adapter names, where `base` serves. The name does not decide:
    `check_fits` does. With `strict`, a name that contradicts does.

    Raises AdapterRefused.
    """
    base = BaseNames(base) if isinstance(base, str) else base
    told = adapter.base_model
    shown = repr(told if told is None else told[:200])
    match base.naming(told):
        case Naming.SAME:
            return None
        case Naming.EQUIVALENT:
            return Remark(f"its base model {shown} is another form of {base.id!r}")
        case Naming.NOTHING:
            if told is None:
                return Remark(f"it names no base model; whether it belongs to {base.id!r} shows in its layers")
            return Remark(f"from its name, {shown} may be {base.id!r} or not; that shows in its layers")
        case Naming.OTHER:
            if strict:
                raise AdapterRefused(
                    f"adapter {adapter.name!r} was trained on {shown}, and {base.id!r} is served; publish it in a "
                    "bank of its own base model, list the name in bank.json's aliases, or leave out --strict-names"
                )
            return Remark(
                f"it was trained on {shown}, and {base.id!r} is served; if they are one model, list the name in "
                "bank.json's aliases",
                warning=True,
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
