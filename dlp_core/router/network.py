"""The router's layers at serving time, behind an encoder. numpy only.

    h = gelu(W h + b)              for each hidden layer, from the encoded text x
    z = W_out h + b_out            N logits: the bank's adapters, in order; of unit(h) for adapters added later

One prompt takes a few small products of matrices and vectors, for which numpy needs half the time of torch.
Shape letters: B texts, I inputs, H hidden, N adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.encoder import Floats

_CUBIC, _SCALE, _HALF = np.float32(0.044715), np.float32(np.sqrt(2 / np.pi)), np.float32(0.5)
_TINY = np.float32(1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """float32 parameters, weights as (out, in)."""

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    output_NH: Floats
    output_N: Floats
    grown_N: NDArray[np.bool_]
    """Which adapters were added after the training (growth.py)."""

    @property
    def parameters(self) -> int:
        arrays = (*self.weights, *self.biases, self.output_NH, self.output_N)
        return sum(int(array.size) for array in arrays)

    def hidden(self, x_BI: Floats) -> Floats:
        """The last hidden layer, (B, H)."""
        h = x_BI
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = _gelu(h @ weight.T + bias)
        return h

    def logits(self, hidden_BH: Floats) -> Floats:
        """(B, N)"""
        logits: Floats = hidden_BH @ self.output_NH.T
        if self.grown_N.any():
            logits[:, self.grown_N] /= np.linalg.norm(hidden_BH, axis=1, keepdims=True) + _TINY
        logits += self.output_N
        return logits

    def with_output(self, index: int, weight_H: Floats, bias: float) -> Network:
        """Insert the output of an adapter that is added now. The other layers are shared."""
        return replace(
            self,
            output_NH=np.insert(self.output_NH, index, weight_H, axis=0),
            output_N=np.insert(self.output_N, index, bias),
            grown_N=np.insert(self.grown_N, index, True),
        )

    def only(self, kept: Sequence[int]) -> Network:
        """The outputs of these adapters, in this order. The other layers are shared."""
        rows = list(kept)
        return replace(self, output_NH=self.output_NH[rows], output_N=self.output_N[rows], grown_N=self.grown_N[rows])


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    shifted: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


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


def _gelu(x: Floats) -> Floats:
    """The approximation with a tanh, as torch computes it (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    y: Floats = x * (_HALF + _HALF * np.tanh(_SCALE * (x + _CUBIC * x * x * x)))
    return y
