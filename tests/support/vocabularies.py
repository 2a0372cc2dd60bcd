"""Small tokenizers of the kinds that models have, each with the decoder of its kind."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.decoders import Decoder
from tokenizers.models import Model
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_WORDS = ["the", "a", "user", "é", "日本", "🎉", ".", "'s", "do", "n't"]
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_level() -> tuple[Model, Decoder]:
    letters = bytes_to_unicode()
    words = ["".join(letters[byte] for byte in text.encode()) for text in ["the", " user", "日", "🎉", " \n", "\ufffd"]]
    halves = [letters[0xF0] + letters[0x9F], letters[0x8E] + letters[0x89], letters[0x80] + letters[0x61]]
    return models.BPE(_numbered([*letters.values(), *words, *halves]), []), decoders.ByteLevel()


def _byte_fallback(*, strip: bool) -> tuple[Model, Decoder]:
    words = ["▁", "▁the", *_WORDS, "▁日本", "\ufffd"]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    return models.BPE(_numbered([*_BYTE_TOKENS, *words]), [], byte_fallback=True), decoders.Sequence(steps)


def _unigram() -> tuple[Model, Decoder]:
    pieces = ["<unk>", "▁", "▁the", "▁user", *_WORDS]
    return models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0), decoders.Metaspace()


def _word_piece() -> tuple[Model, Decoder]:
    words = ["[UNK]", *_WORDS, "##ing", "##é", "'", "s", "not"]
    return models.WordPiece(_numbered(words), unk_token="[UNK]"), decoders.WordPiece()


def _suffixed() -> tuple[Model, Decoder]:
    words = [*_WORDS, *(f"{word}</w>" for word in _WORDS)]
    return models.BPE(_numbered(words), [], end_of_word_suffix="</w>"), decoders.BPEDecoder("</w>")


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def _tokenizer(parts: tuple[Model, Decoder]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(parts[0])
    tokenizer.decoder = parts[1]  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<think> of")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


FAMILIES: Mapping[str, PreTrainedTokenizerFast] = {
    "byte level (GPT-2, Llama 3, Qwen)": _tokenizer(_byte_level()),
    "byte fallback (Llama 2, Mistral)": _tokenizer(_byte_fallback(strip=True)),
    "byte fallback, spaces kept (Gemma)": _tokenizer(_byte_fallback(strip=False)),
    "unigram (T5)": _tokenizer(_unigram()),
    "WordPiece (BERT)": _tokenizer(_word_piece()),
    "suffixes (GPT)": _tokenizer(_suffixed()),
}
