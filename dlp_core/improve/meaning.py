"""What prompts mean, as vectors: by the router's teacher where that is installed, else by the router's encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dlp_core.router import Router
from dlp_core.router.encoder import Floats
from dlp_core.router.sentence_encoder import SentenceEncoder

_READ = 256
"""Characters of a prompt that are read: what it is about shows early."""

Meaning = Callable[[Sequence[str]], Floats]
"""Vectors of unit length, (B, D). Of different makers they are not comparable."""


def by_teacher(folder: Path) -> Meaning:
    """Of the encoder in a folder. Raises InvalidRequest if there is none."""
    encoder = SentenceEncoder.load(folder)

    def embed(texts: Sequence[str]) -> Floats:
        return encoder.encode([text[:_READ] for text in texts])

    return embed


def by_router(router: Router) -> Meaning:
    """Of the layer before the router's outputs, which knows little but the words of its rows."""

    def embed(texts: Sequence[str]) -> Floats:
        x_BH = router.network.hidden(router.encoder.encode(list(texts)))
        x_BH = x_BH / np.maximum(np.linalg.norm(x_BH, axis=1, keepdims=True), 1e-9)
        embedded: Floats = x_BH.astype(np.float32)
        return embedded

    return embed
