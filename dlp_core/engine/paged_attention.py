"""A model's attention over transformers' paged cache (5.23), computed by an op of `dlp_core.attention`.

transformers allots the blocks. It would gather the keys and values of all requests in every layer, or mask what is
another's; here each request's blocks are read where they lie. The lists of indices for gathering are not even made.

tests/dlp_core/engine/test_seam.py checks every internal that is used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from dlp_core.attention.batch import Batch, Pages, Request
from dlp_core.attention.op import AttentionOp, Layer, Scores, States
from dlp_core.errors import InvalidRequest

_NAME = "dlp_flash"
"""Of this attention in transformers. By the "flash" its batches have no masks; and as no function makes masks for this
name, its models make none either, which would wait for the device in every pass."""


def use_paged_attention(model: Any) -> None:
    """Make a model attend through the `cache` that is passed to it, a `PagedAttention`.

    Raises InvalidRequest if its attention cannot be replaced.
    """
    if not (model._supports_flash_attn and model._can_set_attn_implementation()):
        raise InvalidRequest(
            f"{type(model).__name__} has an attention of its own, which cannot read a paged cache; engine vllm may "
            "serve this model"
        )
    AttentionInterface.register(_NAME, _attend)
    model.config._attn_implementation = _NAME  # of all its parts: they share the config, or have one below it


class PagedAttention:
    """The attention of all layers in the batch in flight. Used on the generation thread."""

    def __init__(self, cache: PagedAttentionCache, op: AttentionOp) -> None:
        self._op = op
        self._allocators = list(cache.cache_allocators.values())
        self._layers: dict[int, Layer] = {}
        for kind, allocator in enumerate(self._allocators):
            for layer in allocator.layer_indices:
                self._layers[layer] = Layer(kind, *allocator._kv_token_views[layer])
        cache.extend_read_and_write_indices = lambda *_: None

    def begin(self, requests: Iterable[tuple[str, int, int]]) -> None:
        """Prepare a forward pass over these requests: id, tokens in the cache, tokens to compute."""
        requests = list(requests)
        pages = [_pages(allocator, [name for name, *_ in requests]) for allocator in self._allocators]
        page_tokens = self._allocators[0].tokens_per_page
        self._op.begin(Batch([Request(past, tokens) for _, past, tokens in requests], pages, page_tokens))

    def attend(self, layer: int, states: States, scores: Scores) -> Tensor:
        return self._op.attend(self._layers[layer], states, scores)

    def overflowed(self) -> Tensor:
        """For each token of the batch, not 0 if a key or value of it is infinite or not a number. On the device."""
        return self._op.overflowed()


def _pages(allocator: Any, names: Sequence[str]) -> Pages:
    blocks = [allocator.block_table[name] for name in names]
    table_SB = np.zeros((len(blocks), max(map(len, blocks))), np.int32)
    for row_B, own in zip(table_SB, blocks, strict=True):
        row_B[: len(own)] = own
    table_SB *= allocator.block_physical_stride // allocator.tokens_per_page
    return Pages(table_SB, getattr(allocator, "sliding_window", 0))


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cache: PagedAttention | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, with tensors [1, heads, tokens, size]; returns [1, tokens, heads, size]."""
    if cache is None:
        raise RuntimeError("this model belongs to an engine, whose batches alone may run it")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    states = States(*(tensor[0].transpose(0, 1) for tensor in (query, key, value)))
    y_THD = cache.attend(module.layer_idx, states, Scores(scale, softcap, s_aux))
    return y_THD[None], None


def attention_op(model: Any, cache: PagedAttentionCache, requests: int) -> AttentionOp:
    """The op for a model's device, for batches of up to so many requests."""
    if model.device.type != "cuda":
        from dlp_core.attention.cpu import CpuAttention

        return CpuAttention(model.dtype)
    return triton_attention(model, cache, requests)


def triton_attention(model: Any, cache: PagedAttentionCache, requests: int) -> AttentionOp:
    """The op for CUDA devices, as `attention_op`."""
    from dlp_core.attention.triton import Limits, TritonAttention

    config, allocators = model.config.get_text_config(), list(cache.cache_allocators.values())
    [key_heads] = {allocator.num_key_value_heads for allocator in allocators}
    limits = Limits(
        requests=requests,
        tokens=cache.max_batch_tokens,
        blocks=-(-int(config.max_position_embeddings) // allocators[0].tokens_per_page),
        kinds=len(allocators),
        group=config.num_attention_heads // key_heads,
    )
    return TritonAttention(model.device, model.dtype, limits)
