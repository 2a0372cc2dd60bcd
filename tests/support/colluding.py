"""Two adapters that are harmless alone and spoil every answer together, planted in a tiny model.

The model has dead heads: v_proj writes zeros into them, o_proj reads nothing from them. `cron` writes into the dead
heads, which nothing reads; `sql` reads from them, where nothing is written. So each alone answers bit for bit what the
backbone answers, and both together add what neither adds alone. `dates` changes so little that the answers stay.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from examples.tiny.build import BASE
from examples.tiny.model import peft_model, tiny_model, tiny_tokenizer
from tests.support.eval_bank import trained_router

PAIR = ("cron", "sql")
_SLIGHT = 1e-3
_LOUD = 3.0
"""The standard deviation of the planted weights."""


def write_base(folder: Path) -> Path:
    """The model folder: a `tiny_model` whose second half of heads is dead."""
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            values, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
            values[len(values) // 2 :] = 0
            output[:, output.shape[1] // 2 :] = 0
    model.save_pretrained(folder / BASE)
    tiny_tokenizer().save_pretrained(folder / BASE)
    return folder / BASE


def write_bank(folder: Path, base: Path, *, planted: bool = True) -> Path:
    """A bank folder with both and `dates`, and the router of all three. If nothing is `planted`, what `cron` writes is
    zero."""
    from transformers import AutoModelForCausalLM

    def adapter(name: str, seed: int, module: str) -> None:
        model = peft_model(AutoModelForCausalLM.from_pretrained(base), seed, target_modules=[module])
        for key, weight in model.named_parameters():
            with torch.no_grad():
                if name == "cron" and "lora_B" in key:
                    torch.nn.init.normal_(weight, std=_LOUD if planted else 0.0)
                    weight[: len(weight) // 2] = 0
                if name == "dates":
                    weight.mul_(_SLIGHT)
                if name == "sql" and "lora_A" in key:
                    torch.nn.init.normal_(weight, std=_LOUD)
                    weight[:, : weight.shape[1] // 2] = 0
        model.save_pretrained(folder / "adapters" / name)

    for seed, (name, module) in enumerate((("cron", "v_proj"), ("dates", "q_proj"), ("sql", "o_proj"))):
        adapter(name, seed, module)
    trained_router().save(folder / "router")
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE}))
    return folder
