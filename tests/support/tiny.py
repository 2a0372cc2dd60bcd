"""Tiny real models and PEFT adapters, built in memory: the same classes as production, a thousandth of the size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.tiny.model import peft_model

VOCAB = 128
BASE_ID = "tiny-llama"

# relative error allowed of a layer, by dtype of the backbone
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# and of a float32 model's logits, where the errors of its layers add up
WHOLE_MODEL = 1e-4


def tiny_llama(seed: int = 1, dtype: torch.dtype = torch.float32, layers: int = 2) -> LlamaForCausalLM:
    """A random Llama whose greedy output is not constant."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.config.name_or_path = BASE_ID
    return model


def peft_adapter(folder: Path, seed: int, **lora: Any) -> Path:
    """Writes a random PEFT adapter of `tiny_llama` (B is not zero) and returns its folder."""
    peft_model(tiny_llama(), seed, **lora).save_pretrained(folder)
    for other in folder.glob("*.md"):
        other.unlink()
    return folder


def load_peft(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The adapter as PEFT itself serves it, on a fresh copy of the backbone."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(tiny_llama(dtype=dtype), folder).eval()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation relative to the largest expected value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
