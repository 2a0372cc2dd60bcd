"""Text to features: the word pieces of a vocabulary (vocabulary.py), and hashed n-grams. numpy only.

Word pieces carry meaning: their vectors come from a teacher (training/teacher.py). Character n-grams carry spelling: a
typo breaks a word into pieces that mean nothing, and leaves many of its n-grams intact. Pairs of pieces carry order.
The bucket of a character n-gram depends on its bytes alone, with only ASCII letters folded to lower case and every
digit read as 0.

Of a long text only the first HEAD and the last TAIL characters are read: that is where instructions and questions are,
and it bounds the cost of a prompt.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.int64]

BUCKETS = 1 << 15
HEAD, TAIL = 1536, 512
MAX_GRAMS = 16 * (HEAD + TAIL + 3)
"""Upper bound on the n-grams of a text: three sizes at each byte, four bytes a character, and one pair a piece."""
VERSION = 3
"""Must change with anything that changes a feature. A saved router names the version it was trained with."""

_SIZES = (3, 4, 5)  # bytes of UTF-8
_PRIME, _MIX = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)
_FOLD = np.uint64(29)
_SHIFT = np.uint64(64 - 15)  # the upper bits of a product are the well-mixed ones
_EDGE = np.uint64(1 << 32)  # beside the first and the last piece; no vocabulary is as large


def _canonical() -> bytes:
    table = bytearray(range(256))
    for byte in range(128):
        if chr(byte).isdigit():
            table[byte] = ord("0")
        elif chr(byte).isspace():
            table[byte] = ord(" ")
    for byte in range(ord("A"), ord("Z") + 1):
        table[byte] = byte + 32
    return bytes(table)


_CANONICAL = _canonical()


def clip(text: str) -> str:
    """The part of `text` that the router reads: all of it, or its head and tail."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def readable(text: str) -> str:
    """`text` with a ? for each lone surrogate, such as half of an emoji that was cut in two: no tokenizer takes one."""
    return text.encode("utf-8", "replace").decode()


def ngrams(text: str, pieces: Indices) -> Indices:
    """The buckets of a text's character n-grams and of its pairs of pieces; none without visible characters."""
    words = b" ".join(text.encode("utf-8", "replace").translate(_CANONICAL).split())
    if not words:
        return np.zeros(0, np.int64)
    data = np.frombuffer(b" " + words + b" ", np.uint8).astype(np.uint64)
    hashes, buckets = data, []
    for size in range(2, _SIZES[-1] + 1):
        if len(data) < size:
            break
        hashes = _combined(hashes[:-1], data[size - 1 :])
        if size in _SIZES:
            buckets.append(hashes)
    edged = np.empty(len(pieces) + 2, np.uint64)
    edged[0] = edged[-1] = _EDGE
    edged[1:-1] = pieces
    buckets.append(_combined(edged[:-1], edged[1:]))
    return (np.concatenate(buckets) * _MIX >> _SHIFT).astype(np.int64)


def _combined(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    hashes = (first * _PRIME + second) * _MIX
    hashes ^= hashes >> _FOLD
    return hashes
