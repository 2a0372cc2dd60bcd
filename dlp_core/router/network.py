"""The router's network at serving time: hashed features -> sums of embeddings -> four linear layers. numpy only.

    x_I  = [sum of the embedding rows of all F features, of the first WINDOW, of the last WINDOW; log F]
           each sum over the square root of its count
    h1 = relu(W1 x + b1)      h2 = relu(W2 h1 + b2)      h3 = relu(W3 h2 + b3)
    z  = W4 [h3, x_D] + b4    N + 1 logits: the bank's adapters in order, then "none of these"

Trained outputs use h3 only: their columns of W4 for x_D are 0. The hidden layers keep what distinguishes the trained
tasks. An adapter that is added later (growth.py) may differ from them in other words, mostly in its instruction, so its
output also uses x_D, the sum over the first WINDOW.

One prompt takes a few small matrix-vector products, for which numpy needs half the time of torch.
Shape letters: B texts, F features, V buckets, D embedding, I inputs, H hidden, N adapters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.features import MAX_FEATURES, Features

Floats: TypeAlias = NDArray[np.float32]

WINDOW = 96
"""Features in the head and in the tail window of a text: 32 tokens each."""

_ONES = np.ones(MAX_FEATURES, np.float32)
_WINDOW_MEAN = np.full(WINDOW, WINDOW**-0.5, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """float32 parameters. `weights` and `biases` hold four layers, weights as (out, in)."""

    table_VD: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    @property
    def parameters(self) -> int:
        return sum(int(array.size) for array in (self.table_VD, *self.weights, *self.biases))

    def embed(self, features: Features) -> Floats:
        """The network's inputs, (B, I)."""
        starts = features.starts.tolist()
        width = self.table_VD.shape[1]
        x = np.empty((len(starts), 3 * width + 1), np.float32)
        for row, (start, end) in enumerate(zip(starts, [*starts[1:], len(features.buckets)], strict=True)):
            rows = self.table_VD.take(features.buckets[start:end], axis=0, mode="clip")
            count = max(end - start, 1)
            part = _WINDOW_MEAN if count >= WINDOW else _ONES[: end - start] * np.float32(count**-0.5)
            # a product with a vector sums rows in a third of the time of sum()
            np.dot(_ONES[: end - start] * np.float32(count**-0.5), rows, out=x[row, :width])
            np.dot(part, rows[:WINDOW], out=x[row, width : 2 * width])
            np.dot(part, rows[-WINDOW:], out=x[row, 2 * width : -1])
            x[row, -1] = math.log(count)
        return x

    def forward(self, x_BI: Floats) -> tuple[Floats, Floats, Floats]:
        """Compute the second hidden layer (B, H), where texts of a task form a cluster, the last layer's input
        (B, H + D), and the logits (B, N + 1)."""
        hidden = [x_BI]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = hidden[-1] @ weight.T
            values += bias
            hidden.append(np.maximum(values, 0.0, out=values))
        width = self.table_VD.shape[1]
        last = np.concatenate([hidden[-1], x_BI[:, width : 2 * width]], axis=1)
        logits: Floats = last @ self.weights[-1].T
        logits += self.biases[-1]
        return hidden[2], last, logits

    def with_outputs(self, weight: Floats, bias: Floats) -> Network:
        """Replace the last layer; the hidden layers are shared."""
        return replace(self, weights=(*self.weights[:-1], weight), biases=(*self.biases[:-1], bias))


def join_inputs(first_BI: Floats, second_BI: Floats) -> Floats:
    """The inputs of first and second texts concatenated, without featurising them again.

    Exact except for the features at the seam, and for windows that reach into the other text, whose features are then
    averaged regardless of their order.
    """
    width = (first_BI.shape[1] - 1) // 3
    counts = [np.exp(inputs[:, -1:]) for inputs in (first_BI, second_BI)]
    total = counts[0] + counts[1]
    window = np.minimum(total, WINDOW)
    sums = [inputs[:, :width] * np.sqrt(n) for inputs, n in zip((first_BI, second_BI), counts, strict=True)]

    def window_sum(near: int, part: slice) -> Floats:
        inputs, other = (first_BI, second_BI)[:: 1 - 2 * near]
        own = np.minimum(counts[near], WINDOW)
        reach = np.minimum(window - own, counts[1 - near])
        full = np.minimum(counts[1 - near], WINDOW)
        summed: Floats = inputs[:, part] * np.sqrt(own) + other[:, part] * (reach / np.sqrt(full))
        return summed

    joined: Floats = np.concatenate(
        [
            (sums[0] + sums[1]) / np.sqrt(total),
            window_sum(0, slice(width, 2 * width)) / np.sqrt(window),
            window_sum(1, slice(2 * width, 3 * width)) / np.sqrt(window),
            np.log(total),
        ],
        axis=1,
        dtype=np.float32,
    )
    return joined


def quantise_rows(table_VD: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Quantise to symmetric int8 with one float16 scale per row: table is close to values * scale[:, None].

    Values are computed from the rounded scale, so rounding the scale adds no error.
    """
    scales = (np.abs(table_VD).max(axis=1) / 127.0).astype(np.float16)
    divisor = np.where(scales > 0, scales, 1).astype(np.float32)
    values = np.clip(np.rint(table_VD / divisor[:, None]), -127, 127).astype(np.int8)
    return values, scales


def dequantise_rows(values: NDArray[np.int8], scales: NDArray[np.float16]) -> Floats:
    table_VD: Floats = values.astype(np.float32) * scales.astype(np.float32)[:, None]
    return table_VD


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    shifted: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted
