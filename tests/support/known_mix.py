"""Rows whose answers a tiny model draws under a mix that is known: what a fit should find again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dlp_core.adapter.weights import read_adapter
from dlp_core.text.chat import Message
from dlp_core.text.codec import TextCodec
from dlp_core.train.rows import Row
from examples.tiny.build import write_adapter
from examples.tiny.model import CHAT_TEMPLATE, tiny_model

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "\n")
ADAPTERS = ("bass", "alto", "tenor", "treble")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token is a word: what is drawn from the model is read again as the same tokens."""
    size = tiny_model().config.vocab_size
    words = [*SPECIAL, *(f"w{number}" for number in range(size - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def write_choir(folder: Path) -> None:
    """A model in `folder / "base"`, and ADAPTERS beside it in `folder / "adapters"`."""
    tiny_model().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    for seed, name in enumerate(ADAPTERS, start=1):
        write_adapter(folder / "adapters" / name, tiny_model(), seed, r=4, lora_alpha=4)


def answered_under(folder: Path, weights: Mapping[str, float], rows: int, *, tokens: int = 24) -> list[Row]:
    """Rows of which the model in `folder` draws the answers, with its weights changed by exactly this mix."""
    model, tokenizer = tiny_model(), word_tokenizer()
    modules = dict(model.named_modules())
    codec = TextCodec(tokenizer, context=4096)
    questions = [" ".join(f"w{(31 * row + 7 * place) % 200}" for place in range(6)) for row in range(rows)]
    prompts = torch.tensor([codec.encode_chat((Message("user", question),)).ids for question in questions])
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in weights.items():
            for path, lora in read_adapter(folder / "adapters" / name, name=name).modules.items():
                modules[path].weight += weight * lora.scaling * (lora.b_OR.float() @ lora.a_RD.float())
        drawn = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            suppress_tokens=list(range(len(SPECIAL))),
        )
    answers = [tokenizer.convert_ids_to_tokens(ids) for ids in drawn[:, prompts.shape[1] :]]
    return [Row(question, " ".join(answer)) for question, answer in zip(questions, answers, strict=True)]
