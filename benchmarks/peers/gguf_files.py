"""Write a Llama model and its LoRA adapters as GGUF files for llama.cpp, the model in bfloat16.

llama.cpp's rotary embedding rotates neighbouring elements where transformers rotates halves, so the rows of q and k are
permuted, in the base weights and in the adapters' B. Shape letters: D in, O out, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from dlp_core.adapter.weights import read_adapter

ARCH = gguf.MODEL_ARCH.LLAMA


def write_model(folder: Path, file: Path) -> None:
    """Write the model in `folder`. Raises ValueError if it is not a Llama model."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama":
        raise ValueError(f"{folder} is a {config['model_type']} model; only llama models can be written as GGUF here")
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[ARCH])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(ARCH, config["num_hidden_layers"])
    for path, weight in load_file(folder / "model.safetensors").items():
        _add(writer, names.get_name(path, (".weight",)), _permuted(path, weight, config), exact=weight.ndim == 1)
    _close(writer)


def write_adapter(folder: Path, base: Path, file: Path) -> None:
    """Write the adapter in `folder`, made for the model in `base`. All its modules must share one scaling and rank."""
    config = json.loads((base / "config.json").read_text())
    names = gguf.get_tensor_name_map(ARCH, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[ARCH])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    modules = read_adapter(folder, name=folder.name).modules
    first = next(iter(modules.values()))
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, first.rank * first.scaling)
    for path, lora in modules.items():
        name = names.get_name(path)
        _add(writer, f"{name}.weight.lora_a", lora.a_RD, exact=True)
        _add(writer, f"{name}.weight.lora_b", _permuted(path, lora.b_OR, config), exact=True)
    _close(writer)


def _permuted(path: str, weight_OX: Tensor, config: Mapping[str, Any]) -> Tensor:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = heads.get(path.removesuffix(".weight").rpartition(".")[2])
    if count is None:
        return weight_OX
    halves = weight_OX.view(count, 2, weight_OX.shape[0] // count // 2, *weight_OX.shape[1:])
    return halves.transpose(1, 2).reshape(weight_OX.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Add the vocabulary: requests carry token ids, but llama.cpp loads no model without it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(size)))
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(size)])
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def _add(writer: gguf.GGUFWriter, name: str, tensor: Tensor, *, exact: bool) -> None:
    kind = gguf.GGMLQuantizationType.F32 if exact else gguf.GGMLQuantizationType.BF16
    data = tensor.to(torch.float32).contiguous().numpy()
    writer.add_tensor(name, data if exact else gguf.quantize(data, kind), raw_dtype=kind)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
