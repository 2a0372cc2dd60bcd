"""A tiny Llama whose heads are as wide as vLLM's attention on CPUs needs them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.tiny.model import CONTEXT, tiny_tokenizer


@cache
def wide_tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def wide_model(seed: int = 1) -> LlamaForCausalLM:
    """A random Llama in float32 that never ends an answer on its own."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=len(wide_tokenizer()),
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight[config.eos_token_id])
    return model


def wide_backbone(folder: Path) -> None:
    """Saves the model and its tokenizer."""
    wide_model().save_pretrained(folder)
    wide_tokenizer().save_pretrained(folder)
