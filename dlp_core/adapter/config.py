"""Reads `adapter_config.json` of a PEFT LoRA folder and refuses, by name, fields that cannot be served exactly.

The rules follow PEFT: a field is accepted if its effect on the forward pass is supported. An unknown field is refused
as soon as it is set, so a new PEFT variant is never served as plain LoRA.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlp_core.errors import AdapterRefused
from dlp_core.store.disk import disk_error

CONFIG_FILE = "adapter_config.json"

# Fields that keep the forward pass at s * B(Ax) + bias, or that are read below. The tensors show which modules have
# LoRA (target_modules, exclude_modules, layers_to_transform, layers_pattern); the initialisation does not matter.
_SUPPORTED = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform "
    "loftq_config lora_alpha lora_dropout lora_ga_config megatron_core peft_type peft_version qalora_group_size "
    "r rank_pattern revision target_modules task_type use_rslora velora_config".split()
)
_ACTIONS: Mapping[str, str] = {
    "use_dora": "retrain it as plain LoRA or merge it into the base model",
    "use_qalora": "its factors are of a grouped input; retrain it as plain LoRA",
    "alora_invocation_tokens": "activated LoRA changes weights inside a sequence; retrain it as plain LoRA",
    "arrow_config": "Arrow routes by itself; publish its experts as single adapters instead",
    "modules_to_save": "full copies of modules cannot be mixed; retrain it without modules_to_save",
    "trainable_token_indices": "token rows cannot be mixed; retrain it without trainable tokens",
    "target_parameters": "LoRA on parameters such as fused experts is not served; target linear modules instead",
    "layer_replication": "it changes the depth of the base model; use a base model of that depth",
    "megatron_config": "convert it to a plain PEFT LoRA first",
    "lora_bias": "retrain it with lora_bias=False",
}
_BIASES = ("none", "lora_only", "all")

# Initialisations that also change the base weights (peft/tuners/lora/layer.py): without PEFT's conversion
# the adapter is only correct on the changed base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The configuration needed to interpret the weights."""

    base_model: str | None
    trains_biases: bool
    _fields: Mapping[str, Any]

    def rank(self, module: str) -> Any:
        """The rank of a module's factors as written in the file: any JSON value."""
        return _matching(self._fields.get("rank_pattern"), module, self._fields.get("r"))

    def scaling(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA. Raises ValueError if alpha is not a number."""
        alpha = _matching(self._fields.get("alpha_pattern"), module, self._fields.get("lora_alpha"))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ValueError(f"lora_alpha is {alpha!r}; it must be a number")
        return alpha / math.sqrt(rank) if self._fields.get("use_rslora") else alpha / rank


def read_config(folder: Path, name: str) -> PeftConfig:
    """Read the configuration of adapter `name`.

    Raises AdapterRefused, naming the adapter, the field and the next action.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} is missing from its folder") from None
    except OSError as error:
        raise disk_error(error, f"adapter {name!r}: {CONFIG_FILE} cannot be read", mistake=AdapterRefused) from error
    except ValueError as error:
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} must hold a JSON object")
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise AdapterRefused(f"adapter {name!r} is of PEFT type {peft_type!r}; only LORA is served, retrain it as LoRA")
    bias = config.get("bias", "none")
    if bias not in _BIASES:
        raise AdapterRefused(f"adapter {name!r}: bias is {bias!r}; it must be one of {', '.join(_BIASES)}")
    for field in sorted(field for field, value in config.items() if value and field not in _SUPPORTED):
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
    return PeftConfig(
        base_model=config.get("base_model_name_or_path") or None, trains_biases=bias != "none", _fields=config
    )


def _check_patterns(name: str, field: str, patterns: Any) -> None:
    if not isinstance(patterns, dict):
        raise AdapterRefused(f"adapter {name!r}: {field} must be an object of pattern -> number")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterRefused(f"adapter {name!r}: {field} has a bad pattern {pattern!r}: {error}") from None


def _matching(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule (peft/utils/other.py, get_pattern_key): the first key that matches the end of the path wins."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
