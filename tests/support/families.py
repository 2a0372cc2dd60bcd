"""Tiny random models of the supported families, each built from its own configuration class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

VOCAB = 96

_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.3,
    "bos_token_id": 2,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    """How to build the model, and which modules LoRA targets."""

    config: Callable[[], Any]
    targets: list[str]

    def build(self, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(self.config()).to(dtype).eval()
        with torch.no_grad():  # biases start at zero, so that dropping one would not show
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        return model


QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
LLAMA_LINEAR = [*QKVO, "gate_proj", "up_proj", "down_proj"]

FAMILIES = {
    "llama": Family(lambda: hf.LlamaConfig(**_LLAMA), LLAMA_LINEAR),
    "llama_tied": Family(lambda: hf.LlamaConfig(**_LLAMA, tie_word_embeddings=True), [*QKVO, "embed_tokens"]),
    "mistral": Family(lambda: hf.MistralConfig(**_LLAMA, sliding_window=16), LLAMA_LINEAR),
    "qwen2": Family(lambda: hf.Qwen2Config(**_LLAMA), LLAMA_LINEAR),
    "qwen3": Family(lambda: hf.Qwen3Config(**_LLAMA, head_dim=8), LLAMA_LINEAR),
    "gemma2": Family(
        lambda: hf.Gemma2Config(**_LLAMA, head_dim=8, query_pre_attn_scalar=8, sliding_window=16), LLAMA_LINEAR
    ),
    "gemma3": Family(
        lambda: hf.Gemma3TextConfig(**_LLAMA, head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
        [*LLAMA_LINEAR, "embed_tokens"],
    ),
    "phi3": Family(lambda: hf.Phi3Config(**_LLAMA), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "gpt2": Family(lambda: hf.GPT2Config(**_GPT2), ["c_attn", "c_proj", "c_fc", "wte", "lm_head"]),
    "gpt_neox": Family(
        lambda: hf.GPTNeoXConfig(**{k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}),
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "embed_in", "embed_out"],
    ),
    "mixtral": Family(
        lambda: hf.MixtralConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2, sliding_window=None), QKVO
    ),
}

BIASED = ["qwen2", "gpt2", "gpt_neox"]
"""The families whose layers have biases."""
