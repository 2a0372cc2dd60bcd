"""Text to hashed features: the same buckets for the same text on every machine. numpy only.

A token is a run of letters (any byte above 127 counts as a letter), a run of digits (every digit is read as 0), one
punctuation mark or one line break. Only ASCII letters are folded to lower case, so buckets do not depend on the Unicode
tables of a Python version. Each token gives three features: itself, itself with its successor, and its first four bytes
(which a typo at the end of a word leaves intact). A token's hash is the sum of one table word per (position, byte),
which numpy computes for all tokens of all texts at once.

Of a long text only the first HEAD and the last TAIL characters are read: that is where instructions and questions are,
and it bounds the cost of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 16
HEAD, TAIL = 3072, 1024
PER_TOKEN = 3
MAX_FEATURES = PER_TOKEN * (HEAD + TAIL + 1)
"""Upper bound on the features of a text: a character is at most one token."""
VERSION = 1
"""Must change with anything that changes a bucket. A saved router names the version it was trained with."""

_SHIFT = np.uint64(64 - 16)  # the upper bits of a product are the well-mixed ones
_PREFIX_BYTES = 4
_MAX_POSITION = 32  # beyond it, the order of letters does not count
_SPACE, _LETTER, _DIGIT, _MARK = range(4)


class Features(NamedTuple):
    """Features of B texts, one after another."""

    buckets: NDArray[np.int64]  # (F,), each in [0, BUCKETS)
    starts: NDArray[np.int64]  # (B,): where the features of a text begin; it may have none

    def counts(self) -> NDArray[np.int64]:
        """Number of features of each text, (B,)."""
        return _steps(self.starts, len(self.buckets))

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """Concatenate the texts of all parts, in order."""
        offsets = np.cumsum([0, *(len(part.buckets) for part in parts[:-1])])
        starts = [part.starts + offset for part, offset in zip(parts, offsets, strict=True)]
        return cls(np.concatenate([part.buckets for part in parts]), np.concatenate(starts))

    def ends(self, count: int) -> Features:
        """The first `count` features of each text, or the last -`count`; all if a text has fewer."""
        bounds = zip(self.starts, [*self.starts[1:], len(self.buckets)], strict=True)
        pieces = [
            self.buckets[start:end][:count] if count > 0 else self.buckets[start:end][count:] for start, end in bounds
        ]
        return Features(np.concatenate(pieces), np.cumsum([0, *map(len, pieces[:-1])]))


def clip(text: str) -> str:
    """The part of `text` that the router reads: all of it, or its head and tail."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def featurise(texts: Sequence[str]) -> Features:
    """Hash B texts. Text without visible characters has no features."""
    pieces = [clip(text).encode("utf-8", "replace") for text in texts]
    data = b"\0" + b"\0".join(pieces)
    kinds = np.frombuffer(data.translate(_KIND), np.uint8)
    edges = kinds == _MARK
    edges[1:] |= kinds[1:] != kinds[:-1]
    edges &= kinds != _SPACE
    tokens = np.flatnonzero(edges)  # where each token begins
    starts = np.zeros(len(pieces), np.int64)
    if not len(tokens):
        return Features(np.zeros(0, np.int64), starts)

    # between one token and the next there is only space, whose words are 0
    index = _INDEX[: len(data)] if len(data) <= len(_INDEX) else np.arange(len(data))
    positions = index - np.maximum.accumulate(index * edges)
    words = _TABLE.take((np.minimum(positions, _MAX_POSITION - 1) << 8) + np.frombuffer(data, np.uint8))
    token_hashes = np.add.reduceat(words, tokens)
    words[positions >= _PREFIX_BYTES] = 0
    prefix_hashes = np.add.reduceat(words, tokens)
    next_hashes = np.empty_like(token_hashes)
    next_hashes[:-1] = token_hashes[1:]
    next_hashes[-1] = _END
    if len(pieces) > 1:
        ends = tokens.searchsorted([*accumulate(len(piece) + 1 for piece in pieces)])
        next_hashes[ends - 1] = _END  # for a text without tokens: that of the text before it, or of the last text
        starts[1:] = ends[:-1] * PER_TOKEN

    hashes = np.empty((len(token_hashes), PER_TOKEN), np.uint64)
    hashes[:, 0] = token_hashes
    hashes[:, 1] = (token_hashes * _C1 + next_hashes) * _C2
    hashes[:, 2] = (prefix_hashes + _C3) * _C4
    return Features((hashes >> _SHIFT).astype(np.int64).reshape(-1), starts)


def _steps(starts: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Distances between starts, and from the last one to `end`: np.diff with append, in a third of the time."""
    steps = np.empty_like(starts)
    steps[:-1] = starts[1:] - starts[:-1]
    steps[-1:] = end - starts[-1:]
    return steps


def _splitmix64(count: int) -> NDArray[np.uint64]:
    """The first `count` outputs of SplitMix64 (Steele, Lea, Flood 2014) from state 1: uniform 64-bit words."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _kinds() -> bytes:
    kinds = np.full(256, _SPACE, np.uint8)
    kinds[33:127] = _MARK
    kinds[10] = _MARK
    kinds[128:] = _LETTER
    for byte in range(128):
        if chr(byte).isalpha():
            kinds[byte] = _LETTER
        elif chr(byte).isdigit():
            kinds[byte] = _DIGIT
    return kinds.tobytes()


def _canonical_bytes() -> NDArray[np.int64]:
    canonical = np.arange(256)
    canonical[ord("A") : ord("Z") + 1] += 32
    canonical[ord("0") : ord("9") + 1] = ord("0")
    return canonical


def _table() -> NDArray[np.uint64]:
    """One random word per (position, byte), flattened; 0 for space."""
    words = _splitmix64(_MAX_POSITION * 256).reshape(_MAX_POSITION, 256)[:, _canonical_bytes()]
    words[:, np.frombuffer(_KIND, np.uint8) == _SPACE] = 0
    return words.reshape(-1)


_INDEX = np.arange(4 * (HEAD + TAIL + 1) + 1)  # as long as one text can be, in bytes
_KIND = _kinds()
_TABLE = _table()
_END, _C1, _C2, _C3, _C4 = (np.uint64(int(word) | 1) for word in _splitmix64(_MAX_POSITION * 256 + 5)[-5:])
