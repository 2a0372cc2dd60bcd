"""What turns texts into vectors, in front of the router's layers.

Two encoders: `words.WordEncoder`, which every router has unless its owner brings another, and
`sentence_encoder.SentenceEncoder`, any encoder folder of Hugging Face or sentence-transformers. Everything behind them
is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


class Encoder(Protocol):
    """May be used from several threads."""

    @property
    def width(self) -> int:
        """I, the length of an encoded text."""
        ...

    @property
    def parameters(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Floats:
        """Encode B texts, (B, I). A text without visible characters is all zeros; nothing else is."""
        ...

    @property
    def most_parts(self) -> int:
        """Into how many parts a text may be cut for `encode_runs` to stay cheap."""
        ...

    def encode_runs(self, parts: Sequence[str], runs: Sequence[tuple[int, int]]) -> Floats:
        """Encode texts that share parts: parts[start:end], joined, for each of B runs (start, end), (B, I). As `encode`
        does, but for features that reach from one part into the next, which may be left out."""
        ...
