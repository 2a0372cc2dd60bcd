"""The CPU op's kernels for few tokens, compiled by numba.

They read each adapter in place: a table holds addresses, so nothing is copied when other adapters become active.
Sums are float32 and rounded once, into y. A row's result does not depend on the other rows. Everything runs on one
thread: at these sizes waking a second one costs more than it saves.

Shape letters: T tokens, D in, O out, R rank, S adapters, M modules in the table, N modules of one call, P parts (one
adapter of one token's mix).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from dlp_core.compiled import compiled, narrow, pointer, widen

A, B, RANK, HAS_BIAS, D_IN, D_OUT = range(6)
"""Columns of a table's last dimension: addresses of A_RD and B_RO, R, whether the last row is a bias, D and O."""

_CACHE_LINE = 64
_I32 = ir.IntType(32)


@intrinsic
def _prefetch_line(_: Any, address: Any) -> Any:
    """Prefetch the cache line at an address."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        read, into_second_level, data = _I32(0), _I32(2), _I32(1)
        return builder.call(function, [builder.inttoptr(arguments[0], byte), read, into_second_level, data])

    return types.void(types.int64), generate


@compiled
def _prefetch(table, modules, slot_start, factor, width, size):
    """Prefetch factor A or B of these modules, of every adapter in use. They were last read a whole forward pass ago,
    and requested in order they arrive much faster than on demand, eight rows at a time."""
    for n in range(modules.shape[0]):
        for s in range(table.shape[0]):
            entry = table[s, modules[n]]
            if slot_start[s] < slot_start[s + 1]:
                for address in range(entry[factor], entry[factor] + entry[RANK] * entry[width] * size, _CACHE_LINE):
                    _prefetch_line(address)


@compiled
def shrink(like, x, tokens, d_in, table, modules, rows, weights, by_slot, slot_start, z):
    """z_NPR = weight_P * (x_TD A_RD^T), with 1 as the product of a bias row.

    `x` is an address, `table` [S, M, 6], `modules` [N] indices of its second dimension, `rows` [P] each part's token
    and `weights` [P]; `by_slot` [P] sorts the parts by adapter and `slot_start` [S + 1] is where each adapter's parts
    begin, so that each A is read once for all its tokens.
    """
    x_TD = carray(pointer(x, like), (tokens, d_in))
    _prefetch(table, modules, slot_start, A, D_IN, x_TD.itemsize)
    for n in range(modules.shape[0]):
        for s in range(table.shape[0]):
            entry = table[s, modules[n]]
            rank, has_bias = entry[RANK], entry[HAS_BIAS]
            a = carray(pointer(entry[A], like), (rank, d_in))
            for i in range(slot_start[s], slot_start[s + 1]):
                part = by_slot[i]
                x_D, weight, z_R = x_TD[rows[part]], weights[part], z[n, part]
                r = 0
                while r + 8 <= rank - has_bias:  # eight sums at once: each number of x is read and widened once
                    a_0, a_1, a_2, a_3 = a[r], a[r + 1], a[r + 2], a[r + 3]
                    a_4, a_5, a_6, a_7 = a[r + 4], a[r + 5], a[r + 6], a[r + 7]
                    sum_0 = sum_1 = sum_2 = sum_3 = sum_4 = sum_5 = sum_6 = sum_7 = np.float32(0)
                    for d in range(d_in):
                        value = widen(x_D[d])
                        sum_0 += value * widen(a_0[d])
                        sum_1 += value * widen(a_1[d])
                        sum_2 += value * widen(a_2[d])
                        sum_3 += value * widen(a_3[d])
                        sum_4 += value * widen(a_4[d])
                        sum_5 += value * widen(a_5[d])
                        sum_6 += value * widen(a_6[d])
                        sum_7 += value * widen(a_7[d])
                    z_R[r], z_R[r + 1], z_R[r + 2], z_R[r + 3] = sum_0, sum_1, sum_2, sum_3
                    z_R[r + 4], z_R[r + 5], z_R[r + 6], z_R[r + 7] = sum_4, sum_5, sum_6, sum_7
                    r += 8
                while r < rank - has_bias:
                    a_D, sum_ = a[r], np.float32(0)
                    for d in range(d_in):
                        sum_ += widen(x_D[d]) * widen(a_D[d])
                    z_R[r] = sum_
                    r += 1
                if has_bias:
                    z_R[rank - 1] = 1
                for r in range(rank):
                    z_R[r] *= weight
    _prefetch(table, modules, slot_start, B, D_OUT, x_TD.itemsize)


@compiled
def look_up(like, ids, table, modules, slots, rows, weights, z):
    """`shrink` for token ids: z_NPR = weight_P * A_RD[:, id]. `ids` [T], `slots` [P]."""
    for n in range(modules.shape[0]):
        for part in range(rows.shape[0]):
            entry = table[slots[part], modules[n]]
            a = carray(pointer(entry[A], like), (entry[RANK], entry[D_IN]))
            for r in range(entry[RANK]):
                bias = entry[HAS_BIAS] and r == entry[RANK] - 1
                z[n, part, r] = weights[part] * (np.float32(1) if bias else widen(a[r, ids[rows[part]]]))


@compiled
def expand(like, y, d_out, table, module, slots, row_start, z, n):
    """y_TO += z_PR B_RO, for the parts of each token. `y` is an address, `row_start` [T + 1] is where each token's
    parts begin; `z` [N, P, R] is the output of `shrink`, in which this module is the `n`th."""
    tokens = row_start.shape[0] - 1
    y_TO = carray(pointer(y, like), (tokens, d_out))
    total = np.empty(d_out, np.float32)
    for t in range(tokens):
        if row_start[t] == row_start[t + 1]:
            continue
        y_O = y_TO[t]
        for o in range(d_out):
            total[o] = widen(y_O[o])
        for part in range(row_start[t], row_start[t + 1]):
            entry, z_R = table[slots[part], module], z[n, part]
            rank = entry[RANK]
            b = carray(pointer(entry[B], like), (rank, d_out))
            r = 0
            while r + 8 <= rank:  # eight rows at once: the total is read and written once
                z_0, z_1, z_2, z_3 = z_R[r], z_R[r + 1], z_R[r + 2], z_R[r + 3]
                z_4, z_5, z_6, z_7 = z_R[r + 4], z_R[r + 5], z_R[r + 6], z_R[r + 7]
                b_0, b_1, b_2, b_3 = b[r], b[r + 1], b[r + 2], b[r + 3]
                b_4, b_5, b_6, b_7 = b[r + 4], b[r + 5], b[r + 6], b[r + 7]
                for o in range(d_out):
                    total[o] += (
                        (z_0 * widen(b_0[o]) + z_1 * widen(b_1[o]))
                        + (z_2 * widen(b_2[o]) + z_3 * widen(b_3[o]))
                        + (z_4 * widen(b_4[o]) + z_5 * widen(b_5[o]))
                        + (z_6 * widen(b_6[o]) + z_7 * widen(b_7[o]))
                    )
                r += 8
            while r < rank:
                z_r, b_O = z_R[r], b[r]
                for o in range(d_out):
                    total[o] += z_r * widen(b_O[o])
                r += 1
        for o in range(d_out):
            y_O[o] = narrow(total[o], like)


def compile_for(like: Any) -> None:
    """Compile the kernels for a storage type, or load them from the cache, so that the first request does not wait."""
    ints, floats = np.zeros(1, np.int64), np.zeros(0, np.float32)
    table, z = np.zeros((0, 1, 6), np.int64), np.zeros((1, 0, 1), np.float32)
    shrink(like, 0, 0, 1, table, ints, ints[:0], floats, ints[:0], ints, z)
    look_up(like, ints, table, ints, ints[:0], ints[:0], floats, z)
    expand(like, 0, 1, table, 0, ints[:0], ints, z, 0)
