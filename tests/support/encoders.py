"""A tiny sentence encoder of random weights, as Hugging Face and sentence-transformers save one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dlp_core.router.training import vocabulary


def write_encoder(
    folder: Path, texts: Sequence[str], *, pooling: str | None = "pooling_mode_mean_tokens", max_tokens: int = 64
) -> Path:
    """A BERT of two layers of 32, with a vocabulary of these texts."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(vocabulary.learn(texts))
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    index = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]")}
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, index[token]) for token in ("[CLS]", "[SEP]")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(fast),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=128,
            )
        )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, pooling: True}))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    return folder
