"""The CUDA attention op's kernels. With TRITON_INTERPRET=1 in the environment before the import, they run on CPUs.

    decode    requests that compute one token, whose key and value are in the cache already: in splits of their keys
    combine   sums up the splits of `decode`
    prefill   tiles of a prompt's tokens, whose own keys and values are not in the cache yet
    store     copies new keys and values into the cache

What they need to know of the batch is in a plan on the device (`triton`), so a launch depends on sizes alone, and
loops run as far as the plan says. A program reads each key once for all query heads that share it. Products are of
the model's dtype and summed in float32; weights are relative to the largest score so far, as in flash attention.

Shape letters: M pairs of a token and a query head of one key head, L keys of a block, D head size, S splits.
"""

import triton
import triton.language as tl


@triton.jit
def _rows(position_L, end, table_ptr, PAGE: tl.constexpr, WINDOW: tl.constexpr):
    """The cache's rows of these positions, of those below `end`."""
    slot_L = position_L % WINDOW if WINDOW else position_L
    page_L = tl.load(table_ptr + slot_L // PAGE, mask=position_L < end, other=0)
    return page_L.to(tl.int64) * PAGE + slot_L % PAGE


@triton.jit
def _attend_block(
    q_MD, k_LD, v_LD, seen_ML, largest_M, total_M, y_MD, scale, softcap, SOFTCAP: tl.constexpr
):  # fmt: skip
    """One block of keys and values, added to what is known: largest score, sum of weights, weighted values."""
    s_ML = tl.dot(q_MD, tl.trans(k_LD), input_precision="ieee") * scale
    if SOFTCAP:
        s_ML = softcap * (2 * tl.sigmoid(2 * s_ML / softcap) - 1)
    s_ML = tl.where(seen_ML, s_ML, float("-inf"))
    new_M = tl.maximum(largest_M, tl.max(s_ML, 1))
    base_M = tl.where(new_M == float("-inf"), 0.0, new_M)
    w_ML = tl.exp(s_ML - base_M[:, None])
    keep_M = tl.exp(largest_M - base_M)
    y_MD = y_MD * keep_M[:, None] + tl.dot(w_ML.to(v_LD.dtype), v_LD, input_precision="ieee")
    return new_M, total_M * keep_M + tl.sum(w_ML, 1), y_MD


@triton.jit
def _average(y_MD, total_M):
    """Of rows that are nobody's, which see no keys, 0."""
    return y_MD / tl.where(total_M == 0.0, 1.0, total_M)[:, None]


@triton.jit(do_not_specialize=["singles_at", "table_at"])
def decode(
    q_ptr, y_ptr, split_ptr, keys_ptr, values_ptr, sinks_ptr, plan_ptr, singles_at, table_at, blocks, scale, softcap,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr,
    SPLITS: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid: (requests, key heads, SPLITS). With one split, y is [T, H, D]; otherwise split_ptr is float32
    [requests, H, SPLITS, D + 2]: weighted values, the largest score, the weights' sum."""
    request, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    single_ptr = plan_ptr + singles_at + 3 * request
    token = tl.load(single_ptr).to(tl.int64)
    past = tl.load(single_ptr + 1)
    if past >= 0:
        table_ptr = plan_ptr + table_at + tl.load(single_ptr + 2).to(tl.int64) * blocks
        g_M, d_D = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        mask_MD = (g_M < GROUP)[:, None] & (d_D < SIZE)[None, :]
        heads = KEY_HEADS * GROUP
        at_MD = (token * heads + head * GROUP + g_M[:, None]) * SIZE + d_D[None, :]
        q_MD = tl.load(q_ptr + at_MD, mask=mask_MD, other=0.0)

        first = tl.maximum(past - WINDOW + 1, 0) if WINDOW else 0
        span = tl.cdiv(tl.cdiv(past + 1 - first, SPLITS), BLOCK_L) * BLOCK_L
        end = tl.minimum(first + (split + 1) * span, past + 1)
        largest_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total_M = tl.zeros([BLOCK_M], tl.float32)
        y_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for start in range(first + split * span, end, BLOCK_L):
            position_L = start + tl.arange(0, BLOCK_L)
            seen_L = position_L < end
            at_LD = (_rows(position_L, end, table_ptr, PAGE, WINDOW) * KEY_HEADS + head)[:, None] * SIZE + d_D[None, :]
            mask_LD = seen_L[:, None] & (d_D < SIZE)[None, :]
            k_LD = tl.load(keys_ptr + at_LD, mask=mask_LD, other=0.0)
            v_LD = tl.load(values_ptr + at_LD, mask=mask_LD, other=0.0)
            seen_ML = seen_L[None, :] & (g_M >= 0)[:, None]
            largest_M, total_M, y_MD = _attend_block(
                q_MD, k_LD, v_LD, seen_ML, largest_M, total_M, y_MD, scale, softcap, SOFTCAP
            )

        if SPLITS == 1:
            if SINKS:
                sink_M = tl.load(sinks_ptr + head * GROUP + g_M, mask=g_M < GROUP, other=0.0).to(tl.float32)
                new_M = tl.maximum(largest_M, sink_M)
                total_M = total_M * tl.exp(largest_M - new_M) + tl.exp(sink_M - new_M)
                y_MD *= tl.exp(largest_M - new_M)[:, None]
            tl.store(y_ptr + at_MD, _average(y_MD, total_M).to(y_ptr.dtype.element_ty), mask=mask_MD)
        else:
            at_M = ((request * heads + head * GROUP + g_M) * SPLITS + split).to(tl.int64) * (SIZE + 2)
            tl.store(split_ptr + at_M[:, None] + d_D[None, :], y_MD, mask=mask_MD)
            tl.store(split_ptr + at_M + SIZE, largest_M, mask=g_M < GROUP)
            tl.store(split_ptr + at_M + SIZE + 1, total_M, mask=g_M < GROUP)


@triton.jit(do_not_specialize=["singles_at"])
def combine(
    y_ptr, split_ptr, sinks_ptr, plan_ptr, singles_at,
    HEADS: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid: (requests, H)."""
    request, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(plan_ptr + singles_at + 3 * request).to(tl.int64)
    if tl.load(plan_ptr + singles_at + 3 * request + 1) >= 0:
        s_S, d_D = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
        at_S = ((request * HEADS + head) * SPLITS + s_S).to(tl.int64) * (SIZE + 2)
        largest_S = tl.load(split_ptr + at_S + SIZE)
        total_S = tl.load(split_ptr + at_S + SIZE + 1)
        y_SD = tl.load(split_ptr + at_S[:, None] + d_D[None, :], mask=(d_D < SIZE)[None, :], other=0.0)
        largest = tl.max(largest_S, 0)
        if SINKS:
            sink = tl.load(sinks_ptr + head).to(tl.float32)
            largest = tl.maximum(largest, sink)
        keep_S = tl.exp(largest_S - largest)
        total = tl.sum(total_S * keep_S, 0)
        if SINKS:
            total += tl.exp(sink - largest)
        y_D = tl.sum(y_SD * keep_S[:, None], 0) / total
        tl.store(y_ptr + (token * HEADS + head) * SIZE + d_D, y_D.to(y_ptr.dtype.element_ty), mask=d_D < SIZE)


@triton.jit(do_not_specialize=["tiles_at", "table_at"])
def prefill(
    q_ptr, k_ptr, v_ptr, y_ptr, keys_ptr, values_ptr, sinks_ptr, plan_ptr, tiles_at, table_at, blocks, scale, softcap,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, SINKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, key heads). A tile has up to BLOCK_M // GROUP tokens of one request."""
    head = tl.program_id(1)
    tile_ptr = plan_ptr + tiles_at + 5 * tl.program_id(0)
    first = tl.load(tile_ptr)  # token of the tile, in the batch
    count = tl.load(tile_ptr + 1)
    offset = tl.load(tile_ptr + 2)  # of that token among those the request computes
    past = tl.load(tile_ptr + 3)
    table_ptr = plan_ptr + table_at + tl.load(tile_ptr + 4).to(tl.int64) * blocks

    m_M, d_D = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    token_M = m_M // GROUP
    mask_MD = (token_M < count)[:, None] & (d_D < SIZE)[None, :]
    head_M = head * GROUP + m_M % GROUP
    at_MD = (((first + token_M).to(tl.int64) * (KEY_HEADS * GROUP)) + head_M)[:, None] * SIZE + d_D[None, :]
    q_MD = tl.load(q_ptr + at_MD, mask=mask_MD, other=0.0)
    own_M = past + offset + token_M
    low = tl.maximum(past + offset - WINDOW + 1, 0) if WINDOW else 0

    largest_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total_M = tl.zeros([BLOCK_M], tl.float32)
    y_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(low, past, BLOCK_L):
        position_L = start + tl.arange(0, BLOCK_L)
        at_LD = (_rows(position_L, past, table_ptr, PAGE, WINDOW) * KEY_HEADS + head)[:, None] * SIZE + d_D[None, :]
        mask_LD = (position_L < past)[:, None] & (d_D < SIZE)[None, :]
        k_LD = tl.load(keys_ptr + at_LD, mask=mask_LD, other=0.0)
        v_LD = tl.load(values_ptr + at_LD, mask=mask_LD, other=0.0)
        seen_ML = (position_L < past)[None, :] & (own_M >= 0)[:, None]
        if WINDOW:
            seen_ML = seen_ML & (position_L[None, :] > own_M[:, None] - WINDOW)
        largest_M, total_M, y_MD = _attend_block(
            q_MD, k_LD, v_LD, seen_ML, largest_M, total_M, y_MD, scale, softcap, SOFTCAP
        )
    end = past + offset + count
    for start in range(tl.maximum(low, past), end, BLOCK_L):
        position_L = start + tl.arange(0, BLOCK_L)
        new_L = (first - offset + position_L - past).to(tl.int64)
        at_LD = (new_L * KEY_HEADS + head)[:, None] * SIZE + d_D[None, :]
        mask_LD = (position_L < end)[:, None] & (d_D < SIZE)[None, :]
        k_LD = tl.load(k_ptr + at_LD, mask=mask_LD, other=0.0)
        v_LD = tl.load(v_ptr + at_LD, mask=mask_LD, other=0.0)
        seen_ML = (position_L < end)[None, :] & (position_L[None, :] <= own_M[:, None])
        if WINDOW:
            seen_ML = seen_ML & (position_L[None, :] > own_M[:, None] - WINDOW)
        largest_M, total_M, y_MD = _attend_block(
            q_MD, k_LD, v_LD, seen_ML, largest_M, total_M, y_MD, scale, softcap, SOFTCAP
        )

    if SINKS:
        sink_M = tl.load(sinks_ptr + head_M).to(tl.float32)
        new_M = tl.maximum(largest_M, sink_M)
        total_M = total_M * tl.exp(largest_M - new_M) + tl.exp(sink_M - new_M)
        y_MD *= tl.exp(largest_M - new_M)[:, None]
    tl.store(y_ptr + at_MD, _average(y_MD, total_M).to(y_ptr.dtype.element_ty), mask=mask_MD)


@triton.jit(do_not_specialize=["rows_at", "marks_at"])
def store(
    k_ptr, v_ptr, keys_ptr, values_ptr, plan_ptr, rows_at, marks_at, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid: (T). WIDTH is the key heads times their size. A token with a number that is none is marked."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(plan_ptr + rows_at + token).to(tl.int64)
    i = tl.arange(0, BLOCK)
    k = tl.load(k_ptr + token * WIDTH + i, mask=i < WIDTH, other=0.0)
    v = tl.load(v_ptr + token * WIDTH + i, mask=i < WIDTH, other=0.0)
    tl.store(keys_ptr + row * WIDTH + i, k, mask=(i < WIDTH) & (row >= 0))
    tl.store(values_ptr + row * WIDTH + i, v, mask=(i < WIDTH) & (row >= 0))
    nothing = tl.sum(k.to(tl.float32) * 0.0 + v.to(tl.float32) * 0.0, 0)  # unless a number times 0 is not
    if nothing != 0.0:
        tl.store(plan_ptr + marks_at + token, 1)
