"""The keys of an adapter's tensors: which module a tensor belongs to, and which part of it.

PEFT writes `base_model.model.<module>.lora_A.weight`. Other ways to save the same tensors leave more in a key, which
PEFT itself would load as nothing:

    ...q_proj.lora_A.default.weight                the adapter's name (torch.save of a whole state dict)
    base_model.model._orig_mod.model.layers...     torch.compile, FSDP, activation checkpointing, DDP
    model.layers.0.self_attn.q_proj.lora_A.weight  no prefix

They are read as PEFT would have written them. Names that depend on the base model's class (`language_model.`) are for
dlp_core.adapter.fitting.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "base_model.model."

_WRAPPER = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)"
"""Attributes that wrap a module and belong to no model. `module.` may be a model's own, unless it wraps PEFT's."""
_INNER = re.compile(rf"(?:(?<=\.)|^){_WRAPPER}\.")
_OUTERMOST = re.compile(rf"(?:\.{_WRAPPER})+$")
_PREFIX = re.compile(rf"(?:module\.|{_WRAPPER}\.)*base_model\.(?:{_WRAPPER}\.)*model\.")
_FACTOR = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<side>[AB])(?:\.(?P<name>[^.]+))?\.weight"
    r"|lora_embedding_(?P<row>[AB])(?:\.(?P<row_name>[^.]+))?)"
)
_BASE = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.(?P<what>bias|weight)")

_VARIANTS: Mapping[str, str] = {
    "lora_magnitude_vector": "it is of DoRA (use_dora); retrain it as plain LoRA or merge it into the base model",
    "modules_to_save": "it is a full copy of a module (modules_to_save); train LoRA on that module instead",
    "trainable_tokens": "it holds token rows, which cannot be mixed; retrain it without trainable tokens",
    "lora_E": "it is of AdaLoRA; retrain it as plain LoRA",
    "lora_diag": "it is of KaSA; retrain it as plain LoRA",
}
_SAVE_AGAIN = "save the adapter again, with save_pretrained of the unwrapped PEFT model"

Part = Literal["A", "B", "bias", "weight"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs."""

    module: str
    part: Part
    written: str
    """The module as the file spells it: PEFT matched its patterns with this name, or with `module`."""
    adapter: str | None
    """The adapter's name in the key; None if it has none, as PEFT saves it."""
    embedding: bool = False
    """Whether it is a factor of an embedding."""


def parse_keys(keys: Collection[str]) -> tuple[dict[str, Place], tuple[str, ...]]:
    """The place of every tensor of a file, by its key, and notes on how the keys had to be read.

    Raises ValueError, naming a key, if one is no part of a plain LoRA, or if they can be read in more than one way.
    """
    prefixed = {key for key in keys if _PREFIX.match(key)}
    if prefixed and len(prefixed) < len(keys):
        raise ValueError(_not_lora(next(key for key in keys if key not in prefixed)))
    places = {key: _place(key) for key in keys}
    adapters = sorted({place.adapter for place in places.values() if place.adapter is not None})
    if len(adapters) > 1:
        raise ValueError(
            f"the file holds several adapters ({', '.join(adapters)[:200]}); save each on its own: "
            f"save_pretrained(folder, selected_adapters=[{adapters[0]!r}])"
        )
    owners: dict[tuple[str, Part], str] = {}
    for key, place in places.items():
        rival = owners.setdefault((place.module, place.part), key)
        if rival != key:
            raise ValueError(f"tensors {rival!r} and {key!r} are both for {place.module!r}; {_SAVE_AGAIN}")
    return places, _notes(places, prefixed)


def _place(key: str) -> Place:
    written = _PREFIX.sub("", key, count=1)
    rest = _INNER.sub("", written)
    part: Part
    embedding = False
    if match := _FACTOR.fullmatch(rest):
        part = "A" if "A" in (match["side"], match["row"]) else "B"
        adapter, embedding = match["name"] or match["row_name"], match["row"] is not None
    elif "lora_" not in rest and (match := _BASE.fullmatch(rest)):
        part, adapter = "bias" if match["what"] == "bias" else "weight", None
    else:
        raise ValueError(_not_lora(key))
    module = match["module"]
    if "experts" in module.split("."):
        raise ValueError(
            f"tensor {key!r} is of an expert of a mixture, which LoRA is not served on; retrain it on attention "
            "and other layers that every token passes"
        )
    if "modules_to_save" in module.split("."):
        raise ValueError(_not_lora(key))
    # wrapped itself, a module was already LoRA's when PEFT named it
    return Place(module, part, _OUTERMOST.sub("", written.partition(".lora_")[0]), adapter, embedding)


def _not_lora(key: str) -> str:
    reason = next((reason for mark, reason in _VARIANTS.items() if mark in key), "retrain it as plain LoRA")
    return f"tensor {key!r} is not a LoRA factor that can be mixed; {reason}"


def _notes(places: Mapping[str, Place], prefixed: Collection[str]) -> tuple[str, ...]:
    left_out = {f".{place.adapter}." for place in places.values() if place.adapter is not None}
    for key in places:
        outside = _PREFIX.match(key)
        left_out.update(re.findall(r"module\.", outside[0]) if outside else [], re.findall(rf"{_WRAPPER}\.", key))
    notes = []
    if left_out:
        notes.append(f"tensor names are read without {', '.join(map(repr, sorted(left_out)))}, as PEFT saves them")
    if places and not prefixed:
        notes.append(f"tensor names are read as if they began with {PREFIX!r}, as PEFT saves them")
    return tuple(notes)
