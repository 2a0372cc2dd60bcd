"""The CPU attention op's kernels, compiled by numba. Numbers are float32, whatever they are stored as (`compiled`).

Shape letters: T tokens, H query heads, K key heads, G query heads of a key head, D head size, C rows of the cache,
L keys that a token sees, S requests, B blocks, N requests that compute one token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from dlp_core.compiled import compiled, exp_below, narrow, pointer, widen


@compiled
def _score(q_HD, first, group, k_CKD, row, head, scores_HL, at, count):
    """scores_HL[h, at : at + count] = q_HD[h] k_LD^T for the `group` heads from `first` on, with the keys of `head`
    from `row` on: four at once, so that each number of q is read once for them."""
    for g in range(first, first + group):
        q_D, s_L = q_HD[g], scores_HL[g]
        i = 0
        while i + 4 <= count:
            k_0, k_1 = k_CKD[row + i, head], k_CKD[row + i + 1, head]
            k_2, k_3 = k_CKD[row + i + 2, head], k_CKD[row + i + 3, head]
            s_0 = s_1 = s_2 = s_3 = np.float32(0)
            for d in range(q_D.shape[0]):
                s_0 += q_D[d] * widen(k_0[d])
                s_1 += q_D[d] * widen(k_1[d])
                s_2 += q_D[d] * widen(k_2[d])
                s_3 += q_D[d] * widen(k_3[d])
            s_L[at + i], s_L[at + i + 1], s_L[at + i + 2], s_L[at + i + 3] = s_0, s_1, s_2, s_3
            i += 4
        while i < count:
            k_D, s = k_CKD[row + i, head], np.float32(0)
            for d in range(q_D.shape[0]):
                s += q_D[d] * widen(k_D[d])
            s_L[at + i] = s
            i += 1


@compiled
def _read(weights_HL, first, group, v_CKD, row, head, at, count, y_HD):
    """y_HD[h] += weights_HL[h, at : at + count] v_LD, for the `group` heads from `first` on, with the values of `head`
    from `row` on, four at once."""
    for g in range(first, first + group):
        y_D, w_L = y_HD[g], weights_HL[g]
        i = 0
        while i + 4 <= count:
            w_0, w_1, w_2, w_3 = w_L[at + i], w_L[at + i + 1], w_L[at + i + 2], w_L[at + i + 3]
            v_0, v_1 = v_CKD[row + i, head], v_CKD[row + i + 1, head]
            v_2, v_3 = v_CKD[row + i + 2, head], v_CKD[row + i + 3, head]
            for d in range(y_D.shape[0]):
                y_D[d] += (w_0 * widen(v_0[d]) + w_1 * widen(v_1[d])) + (w_2 * widen(v_2[d]) + w_3 * widen(v_3[d]))
            i += 4
        while i < count:
            w, v_D = w_L[at + i], v_CKD[row + i, head]
            for d in range(y_D.shape[0]):
                y_D[d] += w * widen(v_D[d])
            i += 1


@compiled
def _softmax(s_L, length, softcap, has_sink, sink):
    """Turn the first `length` scores into weights, in place."""
    if softcap > 0:
        for i in range(length):
            s_L[i] = softcap * np.tanh(s_L[i] / softcap)
    largest = sink if has_sink else s_L[0]
    for i in range(length):
        largest = max(largest, s_L[i])
    for i in range(length):
        s_L[i] = exp_below(s_L[i] - largest)
    total = exp_below(sink - largest) if has_sink else np.float32(0)
    for i in range(length):
        total += s_L[i]
    for i in range(length):
        s_L[i] /= total


@compiled
def _run(position, end, table_B, page_tokens, window):
    """The row of a position in the cache, and how many of the positions up to `end` lie in the rows from there on."""
    slot = position % window if window else position
    offset = slot % page_tokens
    count = min(page_tokens - offset, end - position)
    if window:
        count = min(count, window - slot)
    return table_B[slot // page_tokens] * page_tokens + offset, count


@compiled
def _score_pages(q_HD, group, keys_CKD, scores_HL, first, past, table_B, page_tokens, window):
    """The scores of the cached keys from position `first` on: page by page, where a token's heads lie side by side."""
    position = first
    while position < past:
        row, count = _run(position, past, table_B, page_tokens, window)
        for head in range(keys_CKD.shape[1]):
            _score(q_HD, head * group, group, keys_CKD, row, head, scores_HL, position - first, count)
        position += count


@compiled
def _read_pages(weights_HL, group, values_CKD, y_HD, first, past, table_B, page_tokens, window):
    """The cached values by their weights, as `_score_pages`."""
    position = first
    while position < past:
        row, count = _run(position, past, table_B, page_tokens, window)
        for head in range(values_CKD.shape[1]):
            _read(weights_HL, head * group, group, values_CKD, row, head, position - first, count, y_HD)
        position += count


@compiled
def decode(
    like, q, k, v, y, shape, tokens_N, numbers_N, past_N,
    keys, values, rows, table_SB, page_tokens, window, scale, softcap, sinks_H,
):  # fmt: skip
    """Attention of requests that compute one token each.

    `q`, `y` [T, H, D], `k`, `v` [T, K, D] and `keys`, `values` [C, K, D] are addresses, `shape` is (T, H, K, D) and
    `rows` is C; `tokens_N` are the requests' tokens, `numbers_N` their rows of the table and `past_N` how many tokens
    they have in the cache. `softcap` 0 and no sinks are none.
    """
    tokens, heads, key_heads, size = shape
    group = heads // key_heads
    q_THD, y_THD = carray(pointer(q, like), (tokens, heads, size)), carray(pointer(y, like), (tokens, heads, size))
    k_TKD, v_TKD = (
        carray(pointer(k, like), (tokens, key_heads, size)),
        carray(pointer(v, like), (tokens, key_heads, size)),
    )
    keys_CKD = carray(pointer(keys, like), (rows, key_heads, size))
    values_CKD = carray(pointer(values, like), (rows, key_heads, size))
    longest = 1
    for n in range(past_N.shape[0]):
        longest = max(longest, past_N[n] + 1)
    q_HD, y_HD = np.empty((heads, size), np.float32), np.empty((heads, size), np.float32)
    scores_HL = np.empty((heads, longest), np.float32)
    for n in range(past_N.shape[0]):
        t, past, table_B = tokens_N[n], past_N[n], table_SB[numbers_N[n]]
        first = max(0, past - window + 1) if window else 0
        length = past - first + 1
        for h in range(heads):
            for d in range(size):
                q_HD[h, d] = scale * widen(q_THD[t, h, d])
                y_HD[h, d] = 0
        _score_pages(q_HD, group, keys_CKD, scores_HL, first, past, table_B, page_tokens, window)
        for k_head in range(key_heads):
            _score(q_HD, k_head * group, group, k_TKD, t, k_head, scores_HL, length - 1, 1)
        has_sink = sinks_H.shape[0] > 0
        for h in range(heads):
            _softmax(scores_HL[h], length, softcap, has_sink, sinks_H[h] if has_sink else np.float32(0))
        _read_pages(scores_HL, group, values_CKD, y_HD, first, past, table_B, page_tokens, window)
        for k_head in range(key_heads):
            _read(scores_HL, k_head * group, group, v_TKD, t, k_head, length - 1, 1, y_HD)
        for h in range(heads):
            for d in range(size):
                y_THD[t, h, d] = narrow(y_HD[h, d], like)


@compiled
def store(like, k, v, shape, keys, values, rows, rows_T, overflowed_T):
    """Copy the new keys and values into the rows `rows_T` of the cache, but for those that are -1, and mark the tokens
    with one that is infinite or not a number. Addresses as in `decode`."""
    tokens, key_heads, size = shape
    k_TKD, v_TKD = (
        carray(pointer(k, like), (tokens, key_heads, size)),
        carray(pointer(v, like), (tokens, key_heads, size)),
    )
    keys_CKD = carray(pointer(keys, like), (rows, key_heads, size))
    values_CKD = carray(pointer(values, like), (rows, key_heads, size))
    for t in range(tokens):
        row = rows_T[t]
        nothing = np.float32(0)  # unless a number times 0 is not
        for h in range(key_heads):
            for d in range(size):
                nothing += widen(k_TKD[t, h, d]) * np.float32(0) + widen(v_TKD[t, h, d]) * np.float32(0)
            if row >= 0:
                for d in range(size):
                    keys_CKD[row, h, d] = k_TKD[t, h, d]
                    values_CKD[row, h, d] = v_TKD[t, h, d]
        if nothing != 0:
            overflowed_T[t] = True


def compile_for(like: Any) -> None:
    """Compile the kernels for a storage type, or load them from the cache, so that the first request does not wait."""
    ints, floats, table = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 1), np.int32)
    zero = np.float32(0)
    decode(like, 0, 0, 0, 0, (0, 1, 1, 1), ints, ints, ints, 0, 0, 0, table, 1, 0, zero, zero, floats)
    store(like, 0, 0, (0, 1, 1), 0, 0, 0, ints, np.zeros(0, np.bool_))
