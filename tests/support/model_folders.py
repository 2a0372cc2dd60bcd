"""Folders of base models as Hugging Face has them, for tests of what is moved of them and what they take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOVED = {
    "config.json",
    "tokenizer.json",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}
"""The files that make up the model."""


def write_model(folder: Path, weights: bytes = b"w" * 300_000) -> Path:
    """What a Hugging Face folder looks like, with what must stay at home."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "tokenizer.model"):
        (folder / name).write_text(f"{name}\n")
    (folder / "model-00001-of-00002.safetensors").write_bytes(weights)
    (folder / "model-00002-of-00002.safetensors").write_bytes(weights[::2])
    for name in ("pytorch_model.bin", "modeling.py", ".hidden.json"):
        (folder / name).write_text("stays at home")
    (folder / "onnx").mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}
"""Of Llama 3.1 8B: 16.1 GB in bfloat16."""
LLAMA_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32_000,
}
"""Of Llama 2 13B: 26.0 GB."""
QWEN_32B = {
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152_064,
}
"""Of Qwen2.5 32B, but for its biases: 65.5 GB."""


def write_header(path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str = "BF16", itemsize: int = 2) -> int:
    """A safetensors file whose tensors nobody will read: its header, and a hole of their size, which takes no room on
    the disk. Returns the bytes of the tensors."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        start, count = end, itemsize
        for length in shape:
            count *= length
        end = start + count
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    with path.open("ab") as file:
        file.truncate(8 + len(raw) + end)
    return end


def write_llama(folder: Path, shape: Mapping[str, int], *, shards: int = 2) -> int:
    """The config of a Llama of this shape, and its weights as holes, in bfloat16. Returns the bytes of its weights."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", **shape}
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = shape["num_key_value_heads"] * (hidden // shape["num_attention_heads"])
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(shape["num_hidden_layers"]):
        for name, sides in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = sides
    names = sorted(tensors)
    parts = {f"model-{n + 1:05}-of-{shards:05}.safetensors": names[n::shards] for n in range(shards)}
    size = sum(write_header(folder / file, {name: tensors[name] for name in part}) for file, part in parts.items())
    index = {"metadata": {"total_size": size}, "weight_map": {name: file for file in parts for name in parts[file]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size
