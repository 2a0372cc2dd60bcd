"""The interface between the engine and an attention op. `cpu` implements it for CPUs, `triton` for CUDA devices.

Shape letters: T tokens, H query heads, K key heads, D head size, C rows of the cache.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from dlp_core.attention.batch import Batch


class Layer(NamedTuple):
    """A layer's part of the cache."""

    kind: int
    """Index of its pages in a batch."""
    keys_CKD: Tensor
    values_CKD: Tensor


class States(NamedTuple):
    """What a layer computes from the batch's tokens."""

    q_THD: Tensor
    k_TKD: Tensor
    v_TKD: Tensor


class Scores(NamedTuple):
    """How a layer turns the products of queries and keys into weights: softmax(cap(scale * q k))."""

    scale: float
    softcap: float | None = None
    """c * tanh(score / c), which Gemma 2 applies."""
    sinks_H: Tensor | None = None
    """Scores of a key without a value in each head, which GPT-OSS has."""


class AttentionOp(Protocol):
    """Computes attention on one kind of device. Used on the thread that runs the model."""

    def begin(self, batch: Batch) -> None:
        """Prepare a forward pass; `attend` is then called once for each layer."""

    def attend(self, layer: Layer, states: States, scores: Scores) -> Tensor:
        """Return what each token reads from the keys and values of its request up to itself, [T, H, D], and store the
        new keys and values in the cache."""

    def overflowed(self) -> Tensor:
        """For each token of the pass, not 0 if a key or value of it was infinite or not a number in any layer, on the
        device. Such a token never reaches another request."""
