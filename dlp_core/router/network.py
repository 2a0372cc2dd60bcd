"""The router's network at serving time: hashed features -> sum of embeddings -> four linear layers. numpy only.

    x_D  = sum of the embedding rows of the F features / sqrt(F)
    h1_H = relu(W1 [x, log F] + b1)      h2_H = relu(W2 h1 + b2)      h3_H = relu(W3 h2 + b3)
    z    = W4 h3 + b4                    N + 1 logits: the bank's adapters in order, then "none of these"

One prompt is a few small matrix-vector products, where numpy costs half of what torch does.
Shape letters: B texts, F features, V buckets, D embedding, H hidden, N adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.features import Features

Floats: TypeAlias = NDArray[np.float32]

WINDOW = 96
"""Features of the head and of the tail of a text, 32 tokens each."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Weights in float32. `weights` and `biases` hold four layers, weights as (out, in)."""

    table_VD: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    @property
    def parameters(self) -> int:
        return sum(int(array.size) for array in (self.table_VD, *self.weights, *self.biases))

    def forward(self, features: Features) -> tuple[Floats, Floats]:
        """Second hidden layer (B, H), where texts of one task lie together, and logits (B, N + 1)."""
        x = self._embed(features)
        hidden = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden.append(np.maximum(hidden[-1] @ weight.T + bias, 0.0))
        return hidden[2], hidden[-1] @ self.weights[-1].T + self.biases[-1]

    def _embed(self, features: Features) -> Floats:
        counts = np.maximum(features.counts(), 1)
        starts = features.starts.tolist()
        width = self.table_VD.shape[1]
        x = np.empty((len(starts), 3 * width + 1), np.float32)
        for row, (start, end) in enumerate(zip(starts, [*starts[1:], len(features.buckets)], strict=True)):
            found = self.table_VD.take(features.buckets[start:end], axis=0)
            found.sum(axis=0, out=x[row, :width])
            found[:WINDOW].sum(axis=0, out=x[row, width : 2 * width])
            found[-WINDOW:].sum(axis=0, out=x[row, 2 * width : -1])
        x[:, :width] /= np.sqrt(counts)[:, None]
        x[:, width:-1] /= np.sqrt(np.minimum(counts, WINDOW))[:, None]
        x[:, -1] = np.log(counts)
        return x


def quantise_rows(table_VD: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Symmetric int8 with one float16 scale a row: table is close to values * scale[:, None].

    The scale is rounded first and the values after it, so the rounding of the scale costs nothing.
    """
    scales = (np.abs(table_VD).max(axis=1) / 127.0).astype(np.float16)
    divisor = np.where(scales > 0, scales, 1).astype(np.float32)
    values = np.clip(np.rint(table_VD / divisor[:, None]), -127, 127).astype(np.int8)
    return values, scales


def dequantise_rows(values: NDArray[np.int8], scales: NDArray[np.float16]) -> Floats:
    return values.astype(np.float32) * scales.astype(np.float32)[:, None]


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)
