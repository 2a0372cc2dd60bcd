"""The built-in encoder: a text as the means of its word pieces' vectors and of its n-grams' vectors.

    x_I = [PIECE_SCALE * unit(sum of pieces_VD), GRAM_SCALE * mean of grams_GE, LENGTH_SCALE * length_L]

Both tables are trained. length_L says which of L lengths a text has, in steps of a factor e, and between two of them
how much of each: a prompt of a single word is told by it alone. One text takes a few small products, for which numpy
needs half the time of torch.
Shape letters: B texts, V pieces, D their vectors, G buckets, E their vectors, I = D + E + L inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dlp_core.router.encoder import Floats
from dlp_core.router.features import MAX_GRAMS, Indices
from dlp_core.router.vocabulary import Vocabulary

PIECE_SCALE, GRAM_SCALE, LENGTH_SCALE = 4.0, 8.0, 2.0
"""They give the parts of the input about the same size, as training finds it."""
LENGTHS = np.arange(2, 10, dtype=np.float32)
"""Logarithms of the numbers of n-grams, from a word to a few thousand characters."""

_MOST_PARTS = 16
_ONES = np.ones(MAX_GRAMS, np.float32)
_TINY = np.float32(1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class WordEncoder:
    """float32 tables and their vocabulary."""

    vocabulary: Vocabulary = field(repr=False)
    pieces_VD: Floats
    grams_GE: Floats

    @property
    def width(self) -> int:
        """I, the length of an encoded text."""
        return int(self.pieces_VD.shape[1] + self.grams_GE.shape[1] + len(LENGTHS))

    @property
    def parameters(self) -> int:
        return int(self.pieces_VD.size + self.grams_GE.size)

    def encode(self, texts: Sequence[str]) -> Floats:
        """Encode B texts, (B, I). A text without visible characters is all zeros."""
        width = self.pieces_VD.shape[1]
        x = np.zeros((len(texts), self.width), np.float32)
        for row, (pieces, grams) in enumerate(self.vocabulary.features(texts)):
            if len(pieces):
                total = _sum(self.pieces_VD, pieces)
                x[row, :width] = total * (np.float32(PIECE_SCALE) / (np.sqrt(total @ total) + _TINY))
            if len(grams):
                x[row, width : -len(LENGTHS)] = _sum(self.grams_GE, grams) * np.float32(GRAM_SCALE / len(grams))
                x[row, -len(LENGTHS) :] = LENGTH_SCALE * lengths(math.log(len(grams)))
        return x

    @property
    def most_parts(self) -> int:
        return _MOST_PARTS

    def encode_runs(self, parts: Sequence[str], runs: Sequence[tuple[int, int]]) -> Floats:
        """Encode parts[start:end] for each of B runs, (B, I), from the sums of each part: no part is read twice.
        N-grams and pairs that reach from one part into the next are left out."""
        width, sums = self.pieces_VD.shape[1], np.zeros((len(parts) + 1, self.width - len(LENGTHS) + 1))
        for row, (pieces, grams) in enumerate(self.vocabulary.features(parts), start=1):
            sums[row, :width] = _sum(self.pieces_VD, pieces) if len(pieces) else 0
            sums[row, width:-1] = _sum(self.grams_GE, grams) if len(grams) else 0
            sums[row, -1] = len(grams)
        starts, ends = np.array(runs, np.int64).reshape(-1, 2).T
        total = np.cumsum(sums, axis=0)
        total = (total[ends] - total[starts]).astype(np.float32)
        x = np.zeros((len(runs), self.width), np.float32)
        norms = np.sqrt(np.vecdot(total[:, :width], total[:, :width]))[:, None]
        x[:, :width] = total[:, :width] * (np.float32(PIECE_SCALE) / (norms + _TINY))
        grams = np.maximum(total[:, -1:], np.float32(1))
        x[:, width : -len(LENGTHS)] = total[:, width:-1] * (np.float32(GRAM_SCALE) / grams)
        x[:, -len(LENGTHS) :] = LENGTH_SCALE * lengths(np.log(grams)) * (total[:, -1:] > 0)
        return x


def lengths(logs: Floats | float) -> Floats:
    """How near the logarithms of numbers of n-grams are to each of LENGTHS, 1 to 0: (..., 1) to (..., L)."""
    near: Floats = np.maximum(np.float32(1) - np.abs(LENGTHS - np.float32(logs)), np.float32(0))
    return near


def _sum(table: Floats, rows: Indices) -> Floats:
    """A product with a vector sums rows in a third of the time of sum()."""
    total: Floats = _ONES[: len(rows)] @ table.take(rows, axis=0, mode="clip")
    return total
