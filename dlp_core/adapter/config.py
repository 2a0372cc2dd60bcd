"""Reads `adapter_config.json` of a PEFT LoRA folder and refuses, by name, fields that cannot be served exactly.

dlp_core.adapter.fields says which those are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlp_core.adapter.contents import CONFIG_FILE, elsewhere
from dlp_core.adapter.fields import refusal
from dlp_core.adapter.invocation import FIELD, Invocation, read_invocation
from dlp_core.adapter.patterns import Patterns
from dlp_core.errors import AdapterRefused
from dlp_core.store.disk import disk_error
from dlp_core.store.documents import parse_json, read_regular

MAX_ALPHA = 1e6
_BIASES = ("none", "lora_only", "all")

# Initialisations that also change the base weights (peft/tuners/lora/layer.py): without PEFT's conversion
# the adapter is only correct on the changed base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The configuration needed to interpret the weights."""

    base_model: str | None
    trains_biases: bool
    rslora: bool
    invocation: Invocation | None
    """Of an activated LoRA; None for an ordinary one."""
    _ranks: Patterns
    _alphas: Patterns

    def rank(self, module: str) -> Any:
        """The rank of a module's factors as written in the file: any JSON value. Raises ValueError for a pattern that
        takes too long."""
        return self._ranks.value(module)

    def scaling(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA. Raises ValueError if alpha is not a number, or for a pattern that
        takes too long."""
        alpha = self._alphas.value(module)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= MAX_ALPHA:
            raise ValueError(f"lora_alpha is {str(alpha)[:40]}; it must be a number, at most {MAX_ALPHA:g}")
        return float(alpha) / math.sqrt(rank) if self.rslora else float(alpha) / rank


def read_config(folder: Path, name: str, *, inside: Path) -> tuple[PeftConfig, bytes]:
    """The configuration of adapter `name` and the bytes it was read from. A link in its folder must not lead out of
    `inside`.

    Raises AdapterRefused, naming the adapter, the field and the next action.
    """
    path = folder / CONFIG_FILE
    try:
        content = read_regular(path, inside=inside)
        config = parse_json(content)
    except FileNotFoundError:
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} is missing from its folder{elsewhere(folder)}") from None
    except OSError as error:
        raise disk_error(error, f"adapter {name!r}: {CONFIG_FILE} cannot be read", mistake=AdapterRefused) from error
    except ValueError as error:
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} cannot be read as JSON: {error}") from None
    return _interpret(config, name), content


def _interpret(config: Any, name: str) -> PeftConfig:
    if not isinstance(config, dict):
        raise AdapterRefused(f"adapter {name!r}: {CONFIG_FILE} must hold a JSON object")
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise AdapterRefused(f"adapter {name!r} is of PEFT type {peft_type!r}; only LORA is served, retrain it as LoRA")
    bias = config.get("bias", "none")
    if not isinstance(bias, str) or bias not in _BIASES:
        raise AdapterRefused(f"adapter {name!r}: bias is {bias!r}; it must be one of {', '.join(_BIASES)}")
    if (reason := refusal(config)) is not None:
        raise AdapterRefused(f"adapter {name!r} {reason}")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise AdapterRefused(
            f"adapter {name!r} was initialised by {init!r}, which changes the base weights; save it as plain LoRA "
            "with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    base_model = config.get("base_model_name_or_path") or None
    if not isinstance(base_model, str | None):
        raise AdapterRefused(f"adapter {name!r}: base_model_name_or_path is {base_model!r}; it must be a name")
    return PeftConfig(
        base_model=base_model,
        trains_biases=bias != "none",
        rslora=bool(config.get("use_rslora")),
        invocation=_invocation(config, name, bias=bias),
        _ranks=_patterns(name, "rank_pattern", config, "r"),
        _alphas=_patterns(name, "alpha_pattern", config, "lora_alpha"),
    )


def _invocation(config: Mapping[str, Any], name: str, *, bias: str) -> Invocation | None:
    try:
        invocation = read_invocation(config.get(FIELD))
    except ValueError as error:
        raise AdapterRefused(f"adapter {name!r}: {FIELD}: {error}") from None
    if invocation is not None and bias != "none":
        raise AdapterRefused(
            f"adapter {name!r} is activated ({FIELD}) and has bias {bias!r}: PEFT adds its biases to tokens before the "
            "invocation too, which would no longer be the plain model's; train it with bias='none'"
        )
    if invocation is not None and config.get("task_type") != "CAUSAL_LM":
        raise AdapterRefused(
            f"adapter {name!r} is activated ({FIELD}) and its task_type is {config.get('task_type')!r}: PEFT never "
            "activates it, in training neither; train it with task_type='CAUSAL_LM'"
        )
    return invocation


def _patterns(name: str, field: str, config: Mapping[str, Any], default: str) -> Patterns:
    try:
        return Patterns(config.get(field) or {}, config.get(default))
    except ValueError as error:
        raise AdapterRefused(f"adapter {name!r}: {field}: {error}") from None
