"""Random adapters written as PEFT folders, to publish a bank from or to load from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.measure.synthetic import random_adapter
from dlp_core.adapter.checks import LayerShape
from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE


def write_adapter(
    folder: Path, shapes: Mapping[str, LayerShape], *, targets: Sequence[str], rank: int, seed: int, **more: Any
) -> None:
    """Write a bfloat16 LoRA of rank `rank` on every layer whose name ends in one of `targets`. `more` goes into its
    config."""
    folder.mkdir(parents=True)
    adapter = random_adapter(folder.name, shapes, targets=targets, rank=rank, seed=seed)
    tensors = {}
    for path, weights in adapter.modules.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = weights.a_RD
        tensors[f"base_model.model.{path}.lora_B.weight"] = weights.b_OR
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)} | more
    (folder / CONFIG_FILE).write_text(json.dumps(config))
