"""Reads and validates one PEFT LoRA adapter folder.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.save_pretrained` writes
them (peft/utils/save_and_load.py). Nothing else is ever opened: a pickle is refused, not loaded. Everything
that cannot be served exactly is refused by name, before any request needs it.

Shape letters: D in, O out, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.peft_config import CONFIG_FILE, PeftConfig, read_config

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "adapter_model.safetensors"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODULE = r"base_model\.model\.(?P<module>.+?)"
_FACTOR = re.compile(_MODULE + r"\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<row>[AB]))")
_BASE = re.compile(_MODULE + r"(?:\.base_layer)?\.(?P<what>bias|weight)")
_FLOAT_DTYPES = frozenset({"torch.float32", "torch.float16", "torch.bfloat16"})


def validate_name(name: str) -> str:
    """Returns `name` if it is a safe adapter name: it becomes a key in the store and a folder on disk.

    Raises InvalidRequest otherwise.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"adapter name {name[:140]!r} is not valid: use 1 to 128 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """The two factors for one module of the base model: delta(x) = scaling * B_OR (A_RD x).

    For an embedding D is the vocabulary and x a token's one-hot vector.
    """

    a_RD: Tensor
    b_OR: Tensor
    scaling: float
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with rank_pattern and alpha_pattern applied."""

    @property
    def rank(self) -> int:
        return int(self.a_RD.shape[0])


class LayerShape(NamedTuple):
    """What a layer of the base model must have in common with what an adapter adds to it."""

    d_in: int
    d_out: int
    lora: bool
    """Whether LoRA is served on it; a LayerNorm takes a bias only."""
    bias: bool
    """Whether it has a bias an adapter may have trained."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One LoRA in host memory, as stored: no dtype is changed and no scaling is folded in."""

    name: str
    base_model: str | None
    """What the adapter says it was trained on (`base_model_name_or_path`), or None if it does not say."""
    modules: Mapping[str, LoRAWeights]
    """Module path in the base model, for instance `model.layers.0.self_attn.q_proj`, to its weights."""
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    """Module path to its whole bias [O] after training (`bias="lora_only"` or `"all"`)."""
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    """Base weights PEFT stored along with LoRA on embeddings. They have to be the base model's own."""

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max((weights.rank for weights in self.modules.values()), default=0)

    @property
    def parameters(self) -> int:
        factors = sum(w.a_RD.numel() + w.b_OR.numel() for w in self.modules.values())
        return factors + sum(bias.numel() for bias in self.biases.values())


def read_adapter(folder: Path, *, name: str) -> Adapter:
    """Reads one adapter folder. `name` is what the bank calls it.

    Raises InvalidRequest for an unsafe name and AdapterRefused, naming the adapter, the reason and the next
    action, for anything that is missing, damaged or cannot be served exactly.
    """
    validate_name(name)
    config = read_config(folder, name)
    factors: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    for key, tensor in _read_tensors(folder, name).items():
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(match["module"], {})[match["side"] or match["row"]] = tensor
            continue
        match = None if "lora_" in key else _BASE.fullmatch(key)
        if match is None or (match["what"] == "bias" and not config.trains_biases):
            raise AdapterRefused(
                f"adapter {name!r}: tensor {key!r} is not a LoRA factor that can be mixed; retrain it as plain LoRA"
            )
        (biases if match["what"] == "bias" else copies)[match["module"]] = tensor
    if not factors:
        raise AdapterRefused(f"adapter {name!r}: {WEIGHTS_FILE} holds no LoRA weights; train it again")
    modules = {module: _weights(name, module, sides, config) for module, sides in sorted(factors.items())}
    return Adapter(name=name, base_model=config.base_model, modules=modules, biases=biases, copies=copies)


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


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        hint = f"; {pickled[0]} is a pickle and is never opened, save it as safetensors" if pickled else ""
        raise AdapterRefused(f"adapter {name!r}: {WEIGHTS_FILE} is missing from its folder{hint}") from None
    except OSError as error:
        raise AdapterRefused(f"adapter {name!r}: {WEIGHTS_FILE} cannot be read: {error}") from None
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterRefused(
            f"adapter {name!r}: {WEIGHTS_FILE} is not a whole safetensors file ({error}); upload it again"
        ) from None
    for key, tensor in tensors.items():
        if str(tensor.dtype) not in _FLOAT_DTYPES:
            raise AdapterRefused(
                f"adapter {name!r}: tensor {key!r} is {tensor.dtype}; use float32, float16 or bfloat16"
            )
        if not _finite(tensor):
            raise AdapterRefused(f"adapter {name!r}: tensor {key!r} holds NaN or infinity; retrain it")
    return tensors


def _finite(tensor: Tensor) -> bool:
    """Whether a sum is finite is known in a seventh of the time, and then all its terms are. One that is not may have
    overflowed, so its terms are looked at."""
    import torch

    return math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(tensor.isfinite().all())


def _weights(name: str, module: str, sides: Mapping[str, Tensor], config: PeftConfig) -> LoRAWeights:
    if set(sides) != {"A", "B"}:
        missing = "B" if "A" in sides else "A"
        raise AdapterRefused(f"adapter {name!r}, {module}: lora_{missing} is missing; upload it again")
    a_RD, b_OR = sides["A"], sides["B"]
    if a_RD.ndim != 2 or b_OR.ndim != 2 or a_RD.shape[0] != b_OR.shape[1] or not a_RD.shape[0]:
        raise AdapterRefused(
            f"adapter {name!r}, {module}: lora_A {tuple(a_RD.shape)} and lora_B {tuple(b_OR.shape)} "
            "are not two factors of one rank"
        )
    rank = int(a_RD.shape[0])
    if config.rank(module) != rank:
        raise AdapterRefused(
            f"adapter {name!r}, {module}: {CONFIG_FILE} says rank {config.rank(module)}, the weights have {rank}; "
            "config and weights are of different trainings"
        )
    try:
        return LoRAWeights(a_RD=a_RD, b_OR=b_OR, scaling=config.scaling(module, rank))
    except ValueError as error:
        raise AdapterRefused(f"adapter {name!r}, {module}: {error}") from None


def _last_component(model: str) -> str:
    return model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
