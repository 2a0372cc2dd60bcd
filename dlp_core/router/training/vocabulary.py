"""The vocabulary of a router that is trained: a teacher's, or one that is learnt from the rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from dlp_core.router.vocabulary import Vocabulary

_WORD = re.compile(r"[^\W\d_]+")
_LEARNT = 8000  # words at most
_UNKNOWN = "[UNK]"


def learn(texts: Sequence[str]) -> str:
    """A vocabulary of the most frequent words of these texts, and of single letters for all others; a tokenizer.json.

    The trainers of `tokenizers` are not used: their pieces differ from run to run.
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    words = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
    letters = sorted({letter for text in texts for letter in text.lower() if not letter.isspace()})
    pieces = dict.fromkeys([_UNKNOWN, *words[:_LEARNT], *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    content: str = tokenizer.to_str()
    return content


def with_words(tokenizer: str, texts: Sequence[str]) -> Vocabulary:
    """The vocabulary, which corrects spelling towards the words of these texts."""
    index_of = Tokenizer.from_str(tokenizer).get_vocab()
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()) if word in index_of)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary(tokenizer, np.array([index_of[word] for word in frequent], np.int32))


def whole_words(tokenizer: str) -> list[str]:
    """The pieces that are words of three letters or more, sorted."""
    return sorted(piece for piece in Tokenizer.from_str(tokenizer).get_vocab() if len(piece) > 2 and piece.isalpha())
