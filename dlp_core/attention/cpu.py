"""Attention on CPUs: compiled kernels for requests that compute one token, torch's own attention for prompts.

A token of a decoding request reads its keys and values once, in place: nothing is gathered, repeated or masked. A
prompt is bound by arithmetic; each is a product of its own, in which torch leaves out what comes later than a token.

Shape letters: those of `op`, and N tokens of a prompt, L keys that it sees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dlp_core.attention.batch import Batch, new_rows, rows, visible
from dlp_core.attention.cpu_kernels import compile_for, decode, store
from dlp_core.attention.op import Layer, Scores, States
from dlp_core.compiled import LIKE

_NO_SINKS = np.zeros(0, np.float32)


class _Prompt(NamedTuple):
    """A request that computes several tokens, in the layers that share pages."""

    tokens: slice
    """Where they are in the batch."""
    cached_C: Tensor
    """Rows of the cache that they see."""
    seen_NL: Tensor | None
    """Which of the keys, cached ones first, each of them sees; None if there are none in the cache, and all before it.
    """


class CpuAttention:
    """Attention in one model's dtype: float32, bfloat16 or float16."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._like = LIKE[dtype]
        compile_for(self._like)
        self._overflowed: NDArray[np.bool_] = np.zeros(0, np.bool_)

    def begin(self, batch: Batch) -> None:
        ends: NDArray[np.int64] = np.cumsum([request.tokens for request in batch.requests])
        single = [number for number, request in enumerate(batch.requests) if request.tokens == 1]
        self._batch = batch
        self._numbers_N = np.array(single, np.int64)
        self._tokens_N = ends[single] - 1
        self._past_N = np.array([batch.requests[number].past for number in single], np.int64)
        self._rows_T = [new_rows(batch, kind) for kind in range(len(batch.pages))]
        self._prompts = [_prompts(batch, kind, ends) for kind in range(len(batch.pages))]
        self._overflowed = np.zeros(ends[-1], np.bool_)

    def attend(self, layer: Layer, states: States, scores: Scores) -> Tensor:
        states = States(*(tensor.contiguous() for tensor in states))
        q_THD, k_TKD, v_TKD = states
        y_THD = torch.empty_like(q_THD)
        for prompt in self._prompts[layer.kind]:
            y_THD[prompt.tokens] = _attend_prompt(prompt, layer, states, scores)
        tokens, key_heads, size = k_TKD.shape
        pages, keys, values = self._batch.pages[layer.kind], layer.keys_CKD, layer.values_CKD
        cache = keys.data_ptr(), values.data_ptr(), min(len(keys), len(values))
        if len(self._numbers_N):
            sinks = _NO_SINKS if scores.sinks_H is None else scores.sinks_H.detach().float().numpy()
            decode(
                self._like, q_THD.data_ptr(), k_TKD.data_ptr(), v_TKD.data_ptr(), y_THD.data_ptr(),
                (tokens, q_THD.shape[1], key_heads, size), self._tokens_N, self._numbers_N, self._past_N, *cache,
                pages.table_SB, self._batch.page_tokens, pages.window, np.float32(scores.scale),
                np.float32(scores.softcap or 0), sinks,
            )  # fmt: skip
        store(
            self._like, k_TKD.data_ptr(), v_TKD.data_ptr(), (tokens, key_heads, size), *cache,
            self._rows_T[layer.kind], self._overflowed,
        )  # fmt: skip
        return y_THD

    def overflowed(self) -> Tensor:
        return torch.from_numpy(self._overflowed)


def _prompts(batch: Batch, kind: int, ends: NDArray[np.int64]) -> list[_Prompt]:
    prompts, window = [], batch.pages[kind].window
    for number, (request, end) in enumerate(zip(batch.requests, ends, strict=True)):
        if request.tokens == 1:
            continue
        first = visible(request, window)
        cached_C = rows(batch.pages[kind], batch.page_tokens, number, np.arange(first, request.past))
        keys, seen = request.past - first + request.tokens, None
        if len(cached_C) or (window and keys > window):
            own_N1 = torch.arange(keys - request.tokens, keys)[:, None]
            key_L = torch.arange(keys)
            seen = key_L <= own_N1
            if window:
                seen &= key_L > own_N1 - window
        prompts.append(_Prompt(slice(end - request.tokens, end), torch.from_numpy(cached_C), seen))
    return prompts


def _attend_prompt(prompt: _Prompt, layer: Layer, states: States, scores: Scores) -> Tensor:
    q_THD, k_TKD, v_TKD = states
    q_HND = q_THD[prompt.tokens].transpose(0, 1)
    k_KLD = torch.cat([layer.keys_CKD[prompt.cached_C], k_TKD[prompt.tokens]]).transpose(0, 1)
    v_KLD = torch.cat([layer.values_CKD[prompt.cached_C], v_TKD[prompt.tokens]]).transpose(0, 1)
    if scores.softcap is None and scores.sinks_H is None:
        y_1HND = scaled_dot_product_attention(
            q_HND[None], k_KLD[None], v_KLD[None], attn_mask=prompt.seen_NL, is_causal=prompt.seen_NL is None,
            scale=scores.scale, enable_gqa=True,
        )  # fmt: skip
        return y_1HND[0].transpose(0, 1)
    return _by_definition(q_HND, k_KLD, v_KLD, prompt.seen_NL, scores).transpose(0, 1)


def _by_definition(q_HND: Tensor, k_KLD: Tensor, v_KLD: Tensor, seen_NL: Tensor | None, scores: Scores) -> Tensor:
    """What torch's attention has no arguments for."""
    heads, tokens, _ = q_HND.shape
    if seen_NL is None:
        seen_NL = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    q_KGND = q_HND.float().reshape(len(k_KLD), -1, *q_HND.shape[1:])
    s_HNL = scores.scale * (q_KGND @ k_KLD.float().transpose(1, 2)[:, None]).flatten(0, 1)
    if scores.softcap is not None:
        s_HNL = scores.softcap * torch.tanh(s_HNL / scores.softcap)
    s_HNL = s_HNL.masked_fill(~seen_NL, float("-inf"))
    if scores.sinks_H is not None:
        s_HNL = torch.cat([s_HNL, scores.sinks_H.float()[:, None, None].expand(heads, tokens, 1)], -1)
    weights_KGNL = s_HNL.softmax(-1)[..., : k_KLD.shape[1]].reshape(len(k_KLD), -1, tokens, k_KLD.shape[1])
    y_HND: Tensor = (weights_KGNL @ v_KLD.float()[:, None]).flatten(0, 1).to(q_HND.dtype)
    return y_HND
