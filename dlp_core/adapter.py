"""Reads and validates one PEFT LoRA adapter folder.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.save_pretrained` writes
them (peft/utils/save_and_load.py). Nothing else is ever opened: a pickle is refused, not loaded. Everything
that cannot be served exactly is refused by name, before any request needs it.

Shape letters: D in, O out, R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlp_core.errors import AdapterRefused, InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_FLOAT_DTYPES = frozenset({"torch.float32", "torch.float16", "torch.bfloat16"})

# Fields of peft's LoraConfig that leave the forward pass at s * B(Ax), or that are read below. Any other
# field that is set is refused, so a new PEFT variant is never served as if it were plain LoRA.
_UNDERSTOOD = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform "
    "loftq_config lora_alpha lora_dropout lora_ga_config megatron_core peft_type peft_version qalora_group_size "
    "r rank_pattern revision target_modules task_type use_rslora velora_config".split()
)
_ACTIONS: Mapping[str, str] = {
    "use_dora": "retrain it as plain LoRA or merge it into the base model",
    "alora_invocation_tokens": "activated LoRA changes weights inside a sequence; retrain it as plain LoRA",
    "arrow_config": "Arrow routes by itself; publish its experts as single adapters instead",
    "modules_to_save": "full copies of modules cannot be mixed; retrain it without modules_to_save",
    "trainable_token_indices": "token rows cannot be mixed; retrain it without trainable tokens",
    "target_parameters": "parameter-level LoRA is not served; target modules instead",
    "layer_replication": "it changes the depth of the base model; use a base model of that depth",
    "megatron_config": "convert it to a plain PEFT LoRA first",
    "lora_bias": "retrain it with lora_bias=False",
}

# Initialisations that also change the base weights (peft/tuners/lora/layer.py): without PEFT's conversion
# the adapter is only right on that changed base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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
    """The two factors for one module of the base model: delta(x) = scaling * B_OR (A_RD x)."""

    a_RD: Tensor
    b_OR: Tensor
    scaling: float
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with rank_pattern and alpha_pattern applied."""

    @property
    def rank(self) -> int:
        return int(self.a_RD.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One LoRA in host memory, as stored: no dtype is changed and no scaling is folded in."""

    name: str
    base_model: str | None
    """What the adapter says it was trained on (`base_model_name_or_path`), or None if it does not say."""
    modules: Mapping[str, LoRAWeights]
    """Module path in the base model, for instance `model.layers.0.self_attn.q_proj`, to its weights."""

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(weights.rank for weights in self.modules.values())

    @property
    def parameters(self) -> int:
        return sum(w.a_RD.numel() + w.b_OR.numel() for w in self.modules.values())


def read_adapter(folder: Path, *, name: str) -> Adapter:
    """Reads one adapter folder. `name` is what the bank calls it.

    Raises InvalidRequest for an unsafe name and AdapterRefused, naming the adapter, the reason and the next
    action, for anything that is missing, damaged or cannot be served exactly.
    """
    validate_name(name)
    config = _read_config(folder, name)
    tensors = _read_tensors(folder, name)
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterRefused(
                f"adapter {name!r}: tensor {key!r} is not a LoRA factor of a linear layer; "
                "only lora_A and lora_B weights are served"
            )
        factors.setdefault(match["module"], {})[match["side"]] = tensor
    if not factors:
        raise AdapterRefused(f"adapter {name!r}: {WEIGHTS_FILE} holds no LoRA weights")
    modules = {module: _weights(name, module, sides, config) for module, sides in sorted(factors.items())}
    return Adapter(name=name, base_model=config.get("base_model_name_or_path") or None, modules=modules)


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


def check_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuses an adapter whose modules are not linear layers of this base model, or of another shape.

    `shapes` maps module path to (D in, O out). Raises AdapterRefused.
    """
    for module, weights in adapter.modules.items():
        if module not in shapes:
            raise AdapterRefused(
                f"adapter {adapter.name!r} targets {module!r}, which is no linear layer of the base model; "
                "it belongs to another model or targets an unsupported layer"
            )
        found = (int(weights.a_RD.shape[1]), int(weights.b_OR.shape[0]))
        if found != shapes[module]:
            raise AdapterRefused(
                f"adapter {adapter.name!r}, {module}: it maps {found[0]} -> {found[1]} features, "
                f"the base model has {shapes[module][0]} -> {shapes[module][1]}; it belongs to another model"
            )


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} is missing from its folder") from None
    except (OSError, ValueError) as error:
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} must hold a JSON object")
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise AdapterRefused(f"adapter {name!r} is of PEFT type {peft_type!r}; only LORA is served")
    if config.get("bias", "none") != "none":
        raise AdapterRefused(f"adapter {name!r} trains biases (bias={config['bias']!r}); retrain it with bias='none'")
    for field in sorted(field for field, value in config.items() if value and field not in _UNDERSTOOD):
        action = _ACTIONS.get(field, "retrain it as plain LoRA")
        raise AdapterRefused(f"adapter {name!r} uses {field}, which is not served: {action}")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise AdapterRefused(
            f"adapter {name!r} was initialised by {init!r}, which changes the base weights; save it as plain LoRA "
            "with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    for field in ("rank_pattern", "alpha_pattern"):
        _check_patterns(name, field, config.get(field) or {})
    return config


def _check_patterns(name: str, field: str, patterns: Any) -> None:
    if not isinstance(patterns, dict):
        raise AdapterRefused(f"adapter {name!r}: {field} must be an object of pattern -> number")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterRefused(f"adapter {name!r}: {field} has a bad pattern {pattern!r}: {error}") from None


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
        if not bool(tensor.isfinite().all()):
            raise AdapterRefused(f"adapter {name!r}: tensor {key!r} holds NaN or infinity; retrain it")
    return tensors


def _weights(name: str, module: str, sides: Mapping[str, Tensor], config: Mapping[str, Any]) -> LoRAWeights:
    if set(sides) != {"A", "B"}:
        missing = "B" if "A" in sides else "A"
        raise AdapterRefused(f"adapter {name!r}, {module}: lora_{missing} is missing")
    a_RD, b_OR = sides["A"], sides["B"]
    if a_RD.ndim != 2 or b_OR.ndim != 2 or a_RD.shape[0] != b_OR.shape[1] or not a_RD.shape[0]:
        raise AdapterRefused(
            f"adapter {name!r}, {module}: lora_A {tuple(a_RD.shape)} and lora_B {tuple(b_OR.shape)} "
            "are not two factors of one rank"
        )
    rank = _pattern(config.get("rank_pattern"), module, config.get("r"))
    if rank != a_RD.shape[0]:
        raise AdapterRefused(
            f"adapter {name!r}, {module}: {CONFIG_FILE} says rank {rank}, the weights have {a_RD.shape[0]}; "
            "config and weights are of different trainings"
        )
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterRefused(f"adapter {name!r}, {module}: lora_alpha is {alpha!r}; it must be a number")
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoRAWeights(a_RD=a_RD, b_OR=b_OR, scaling=scaling)


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule (peft/utils/other.py, get_pattern_key): the first key that matches the end of the path wins."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _last_component(model: str) -> str:
    return model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
