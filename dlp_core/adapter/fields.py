"""What each field of `adapter_config.json` means for serving: the fields of PEFT's LoraConfig, old and new.

A field of no list is refused as soon as it is set, so that a new PEFT variant is never served as plain LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SERVED = frozenset(
    "alora_invocation_tokens alpha_pattern base_model_name_or_path bias init_lora_weights lora_alpha peft_type r "
    "rank_pattern use_rslora".split()
)
"""Fields that dlp_core.adapter.config reads."""

HARMLESS = frozenset(
    (
        # Which modules have LoRA: the tensors show it.
        "target_modules exclude_modules layers_to_transform layers_pattern ensure_weight_tying "
        # How the adapter began or was trained, and where it came from.
        "loftq_config eva_config corda_config lora_ga_config velora_config lora_dropout auto_mapping peft_version "
        "revision task_type inference_mode "
        # How PEFT computes or merges: the shape of the stored base weight, where initialisation runs, Megatron's
        # parallel layers (the same sum), merging on model.eval() (2023).
        "fan_in_fan_out runtime_config megatron_config megatron_core merge_weights "
        # Only read with use_qalora.
        "qalora_group_size"
    ).split()
)
"""Fields that cannot change the forward pass s * B(Ax) + bias."""

REFUSED: Mapping[str, str] = {
    "use_dora": "retrain it as plain LoRA or merge it into the base model",
    "use_qalora": "its factors are of a grouped input; retrain it as plain LoRA",
    "use_bdlora": "its factors are block-diagonal; retrain it as plain LoRA",
    "arrow_config": "Arrow routes by itself; publish its experts as single adapters instead",
    "kasa_config": "it changes the base weights and scales between the factors; retrain it as plain LoRA",
    "monteclora_config": "it samples around the factors; retrain it as plain LoRA",
    "trainable_token_indices": "token rows cannot be mixed; retrain it without trainable tokens",
    "target_parameters": "LoRA on parameters such as fused experts is not served; target linear modules instead",
    "layer_replication": "it changes the depth of the base model; use a base model of that depth",
    "lora_bias": "retrain it with lora_bias=False",
    "enable_lora": "its factors are of several outputs in turn; retrain it as plain LoRA",
    "modules_to_save": "full copies of modules cannot be mixed",
}
"""Fields that change the forward pass, with what to do instead."""


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why an adapter with this config is not served, None if no field stands against it."""
    for field, value in sorted(config.items()):
        if field in SERVED or field in HARMLESS:
            continue
        # PEFT enables a variant by an empty config too
        if not value and not (field in REFUSED and isinstance(value, dict)):
            continue
        if field == "modules_to_save":
            return copies_refusal(value)
        return f"uses {field}, which is not served: {REFUSED.get(field, 'retrain it as plain LoRA')}"
    return None


def copies_refusal(modules: Any) -> str:
    """Why full copies of modules are not served. It does not matter whether the file has them: where it has not, what
    training changed is lost, and the base model's own weights would answer instead."""
    names = modules if isinstance(modules, list | tuple) else [modules]
    listed = ", ".join(str(name)[:80] for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"uses modules_to_save ({listed}), which is not served: {REFUSED['modules_to_save']}; train LoRA on "
        "these modules instead (list them in target_modules; embed_tokens and lm_head can be), or merge the adapter "
        "into the base model (merge_and_unload) and serve the result as a base model of its own"
    )
