"""A tokenizer with a chat template, a random Llama that speaks its tokens, and random LoRA adapters for any model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 4096


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE like SmolLM2's, 320 tokens: most letters outside ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the user and the assistant speak of the adapter", "système, naïve"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(seed: int = 1) -> LlamaForCausalLM:
    """A random Llama in fp32 that speaks the tokenizer's tokens and never ends an answer on its own."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the narrowest that vLLM's attention for CPUs computes
        vocab_size=len(tiny_tokenizer()),
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight[config.eos_token_id])  # never the likeliest: answers run to their limit
    return model


def tiny_backbone(folder: Path, seed: int = 1) -> LlamaForCausalLM:
    """Saves a `tiny_model` and its tokenizer as a model folder, and returns the model."""
    model = tiny_model(seed)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def peft_model(model: nn.Module, seed: int, **lora: Any) -> Any:
    """The model with a random LoRA adapter in it, B not zero; `lora` goes to PEFT's LoraConfig."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - the tokenizer needs no PEFT

    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | lora
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft and transformers deprecate each other's calls
        return get_peft_model(model, LoraConfig(**{"init_lora_weights": False} | settings)).eval()
