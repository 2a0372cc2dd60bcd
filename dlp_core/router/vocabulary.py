"""Word pieces: how a router reads words, correctly spelt or not.

Most words are pieces of the vocabulary as they are. Others are corrected (spelling.py), or else split as `tokenizers`
does it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dlp_core.router.features import Indices, clip, ngrams, readable
from dlp_core.router.spelling import MAX_CORRECTIONS, Speller

_TOKEN = re.compile(r"\w+|[^\w\s]")
_REMEMBERED = 1 << 14  # unknown words and what they are read as


class TextFeatures(NamedTuple):
    """What a text consists of."""

    pieces: Indices
    grams: Indices


class _Reading(NamedTuple):
    """What an unknown word is read as."""

    correction: str | None
    pieces: tuple[int, ...]


class Vocabulary:
    """Turns texts into features. May be used from several threads."""

    def __init__(self, tokenizer: str, words: NDArray[np.int32]) -> None:
        """`tokenizer` is a tokenizer.json; `words` the pieces that are words of the training texts, frequent first."""
        self.tokenizer, self.words = tokenizer, words
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._index = self._tokenizer.get_vocab()
        self.size = max(self._index.values()) + 1
        piece_at = {index: piece for piece, index in self._index.items()}
        self._speller = Speller([piece_at[index] for index in words.tolist()])
        self._read = lru_cache(_REMEMBERED)(self._read_unknown)

    def features(self, texts: Sequence[str]) -> list[TextFeatures]:
        """The features of each text; a text without visible characters has none."""
        features = []
        for text in texts:
            corrected, pieces = self._split(readable(clip(text)).lower())
            indices = np.array(pieces, np.int64)
            features.append(TextFeatures(indices, ngrams(corrected, indices)))
        return features

    def _split(self, text: str) -> tuple[str, list[int]]:
        """The text with at most MAX_CORRECTIONS corrections, and its pieces."""
        pieces = list(map(self._index.get, _TOKEN.findall(text)))
        known = [piece for piece in pieces if piece is not None]
        if len(known) == len(pieces):
            return text, known
        pieces, kept, end, corrections = [], [], 0, 0
        for match in _TOKEN.finditer(text):
            index = self._index.get(match.group())
            if index is not None:
                pieces.append(index)
                continue
            reading = self._read(match.group(), corrections < MAX_CORRECTIONS)
            pieces += reading.pieces
            if reading.correction is not None:
                kept += [text[end : match.start()], reading.correction]
                end = match.end()
                corrections += 1
        return "".join([*kept, text[end:]]), [piece for piece in pieces if piece is not None]

    def _read_unknown(self, word: str, correct: bool) -> _Reading:
        correction = self._speller.correct(word) if correct else None
        if correction is not None:
            return _Reading(correction, tuple(self._index[part] for part in correction.split()))
        return _Reading(None, tuple(self._tokenizer.encode(word, add_special_tokens=False).ids))
