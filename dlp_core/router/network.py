"""The router's network at serving time: hashed features -> sums of embeddings -> four linear layers. numpy only.

    x_I  = [sum of the embedding rows of all F features, of the first WINDOW, of the last WINDOW; log F]
           each sum over the square root of its count
    h1 = relu(W1 x + b1)      h2 = relu(W2 h1 + b2)      h3 = relu(W3 h2 + b3)
    z  = W4 [h3, x_D] + b4    N + 1 logits: the bank's adapters in order, then "none of these"

What training knows of a task is in h3, and its columns of W4 for x_D are 0. The hidden layers keep what tells the tasks
of the training apart; an adapter that is added later (growth.py) may differ from them in other words, most of all in
its instruction, so its output also sees x_D, the sum over the first WINDOW.

One prompt is a few small matrix-vector products, where numpy costs half of what torch does.
Shape letters: B texts, F features, V buckets, D embedding, I inputs, H hidden, N adapters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.features import LONGEST, Features

Floats: TypeAlias = NDArray[np.float32]

WINDOW = 96
"""Features of the head and of the tail of a text, 32 tokens each."""

_ONES = np.ones(LONGEST, np.float32)
_WINDOW_MEAN = np.full(WINDOW, WINDOW**-0.5, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Weights in float32. `weights` and `biases` hold four layers, weights as (out, in)."""

    table_VD: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    @property
    def parameters(self) -> int:
        return sum(int(array.size) for array in (self.table_VD, *self.weights, *self.biases))

    def embed(self, features: Features) -> Floats:
        """The network's input, (B, I)."""
        starts = features.starts.tolist()
        width = self.table_VD.shape[1]
        x = np.empty((len(starts), 3 * width + 1), np.float32)
        for row, (start, end) in enumerate(zip(starts, [*starts[1:], len(features.buckets)], strict=True)):
            found = self.table_VD.take(features.buckets[start:end], axis=0, mode="clip")
            count = max(end - start, 1)
            part = _WINDOW_MEAN if count >= WINDOW else _ONES[: end - start] * np.float32(count**-0.5)
            # a product with a vector is the sum over rows in a third of its time
            np.dot(_ONES[: end - start] * np.float32(count**-0.5), found, out=x[row, :width])
            np.dot(part, found[:WINDOW], out=x[row, width : 2 * width])
            np.dot(part, found[-WINDOW:], out=x[row, 2 * width : -1])
            x[row, -1] = math.log(count)
        return x

    def forward(self, x_BI: Floats) -> tuple[Floats, Floats, Floats]:
        """From inputs: second hidden layer (B, H), where texts of one task lie together, what the last layer sees
        (B, H + D), and logits (B, N + 1)."""
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
        """The same hidden layers under another last layer."""
        return replace(self, weights=(*self.weights[:-1], weight), biases=(*self.biases[:-1], bias))


def join_inputs(first_BI: Floats, second_BI: Floats) -> Floats:
    """The inputs of texts that say the one and then the other, without reading them again.

    Exact but for the features at the seam, and for windows that reach into the other text: they count as if its words
    stood in any order.
    """
    width = (first_BI.shape[1] - 1) // 3
    counts = [np.exp(inputs[:, -1:]) for inputs in (first_BI, second_BI)]
    total = counts[0] + counts[1]
    window = np.minimum(total, WINDOW)
    wholes = [inputs[:, :width] * np.sqrt(n) for inputs, n in zip((first_BI, second_BI), counts, strict=True)]

    def ends(near: int, part: slice) -> Floats:
        inputs, other = (first_BI, second_BI)[:: 1 - 2 * near]
        own = np.minimum(counts[near], WINDOW)
        reach = np.minimum(window - own, counts[1 - near])
        full = np.minimum(counts[1 - near], WINDOW)
        found: Floats = inputs[:, part] * np.sqrt(own) + other[:, part] * (reach / np.sqrt(full))
        return found

    joined: Floats = np.concatenate(
        [
            (wholes[0] + wholes[1]) / np.sqrt(total),
            ends(0, slice(width, 2 * width)) / np.sqrt(window),
            ends(1, slice(2 * width, 3 * width)) / np.sqrt(window),
            np.log(total),
        ],
        axis=1,
        dtype=np.float32,
    )
    return joined


def quantise_rows(table_VD: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Symmetric int8 with one float16 scale a row: table is close to values * scale[:, None].

    The scale is rounded first and the values after it, so the rounding of the scale costs nothing.
    """
    scales = (np.abs(table_VD).max(axis=1) / 127.0).astype(np.float16)
    divisor = np.where(scales > 0, scales, 1).astype(np.float32)
    values = np.clip(np.rint(table_VD / divisor[:, None]), -127, 127).astype(np.int8)
    return values, scales


def dequantise_rows(values: NDArray[np.int8], scales: NDArray[np.float16]) -> Floats:
    table_VD: Floats = values.astype(np.float32) * scales.astype(np.float32)[:, None]
    return table_VD


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted
