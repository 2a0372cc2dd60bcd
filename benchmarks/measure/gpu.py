"""What the benchmarks for GPUs share: a model without weights to fetch, the machine, a report that is always whole.

Needs torch, triton and transformers only.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]


def random_llama(
    device: torch.device, layers: int, *, small: bool, attention: str | None = None, dtype: torch.dtype = torch.bfloat16
) -> LlamaForCausalLM:
    """Llama 3 8B, or one of a tiny width, with random weights made on the device."""
    width = 64 if small else 4096
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 128 or 2,
        num_key_value_heads=width // 512 or 1,
        vocab_size=256 if small else 128_256,
        max_position_embeddings=8192,
    )
    if attention is not None:
        config._attn_implementation = attention
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def about(device: torch.device) -> dict[str, Any]:
    import transformers  # noqa: PLC0415
    import triton  # noqa: PLC0415

    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, interpreter",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "sources": _sources(),
    }


def _sources() -> str:
    """A digest of the code that ran. There is no commit to name: the code is a copy, on a machine without git."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("benchmarks", "dlp_core") for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write(report: dict[str, Any], out: Path) -> None:
    """Whole at any moment: a time-out may come in the middle of this."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(out)
