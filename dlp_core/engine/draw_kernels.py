"""Draws tokens on CPUs, compiled by numba: a row costs little more than reading its scores.

Sorting a vocabulary takes longer than all the rest of a token. Here weights are counted by how far they are from the
largest, and only those of the one step in which a truncation ends are sorted.

Shape letters: R rows, V vocabulary, B blocks of it, S steps.
"""

from __future__ import annotations

import numpy as np

from dlp_core.compiled import compiled, exp_below

_BLOCK = 256
"""Tokens whose weights are summed up together, so that a walk to a token skips most of them."""
_STEPS = 1024
"""Eighths of a power of two, from 1 down to the smallest weight: the leading bits of a float32."""
_ONE, _REST = 0x3F800000, 20
"""The bits of 1, and how many bits of a number do not matter to its step."""


@compiled
def _weigh(scores_V, temperature, weights_V, sums_B):
    """weights_V = exp((scores_V - max) / temperature) and its sums by block. Returns the number of blocks."""
    size = scores_V.shape[0]
    largest = scores_V[0]
    for i in range(size):
        largest = max(largest, scores_V[i])
    blocks = (size + _BLOCK - 1) // _BLOCK
    scale = np.float32(1) / temperature
    for b in range(blocks):
        total = np.float32(0)
        for i in range(b * _BLOCK, min(size, (b + 1) * _BLOCK)):
            score = (scores_V[i] - largest) * scale
            weight = exp_below(score) if score > -87 else np.float32(0)  # nothing of what is forbidden
            weights_V[i] = weight
            total += weight
        sums_B[b] = total
    return blocks


@compiled
def _count(weights_V, counts_S, masses_S):
    """How many weights are in each step, and their sum."""
    counts_S[:] = 0
    masses_S[:] = 0
    bits_V = weights_V.view(np.int32)
    for i in range(weights_V.shape[0]):
        if weights_V[i] > 0:
            step = (_ONE - bits_V[i]) >> _REST
            counts_S[step] += 1
            masses_S[step] += weights_V[i]


@compiled
def _sorted_step(weights_V, step, count):
    """The weights of one step, largest first."""
    found, n = np.empty(count, np.float32), 0
    bits_V = weights_V.view(np.int32)
    for i in range(weights_V.shape[0]):
        if weights_V[i] > 0 and (_ONE - bits_V[i]) >> _REST == step:
            found[n] = weights_V[i]
            n += 1
    return np.sort(found)[::-1]


@compiled
def _smallest_of_top_k(weights_V, top_k, counts_S, masses_S):
    """The weight of the `top_k`th token, and the sum of those that are as large or larger."""
    before, mass = 0, 0.0
    for step in range(_STEPS):
        if before + counts_S[step] >= top_k:
            found = _sorted_step(weights_V, step, counts_S[step])
            least = found[top_k - before - 1]
            for i in range(found.shape[0]):
                if found[i] >= least:
                    mass += found[i]
            return least, mass
        before += counts_S[step]
        mass += masses_S[step]
    return np.float32(0), mass


@compiled
def _smallest_of_top_p(weights_V, mass, counts_S, masses_S):
    """The smallest weight whose larger ones have a sum below `mass`."""
    before = 0.0
    for step in range(_STEPS):
        if before + masses_S[step] >= mass and counts_S[step] > 0:
            found = _sorted_step(weights_V, step, counts_S[step])
            for i in range(found.shape[0]):
                if before >= mass and found[i] < found[i - 1]:
                    return found[i - 1]
                before += found[i]
            return found[found.shape[0] - 1]
        before += masses_S[step]
    return np.float32(0)


@compiled
def draw(scores_RV, temperatures_R, top_k_R, top_p_R, uniform_R, tokens_R):
    """tokens_R[r]: a token of row r, by the inverse of its cumulative distribution at uniform_R[r] in [0, 1). Of a row
    that has no distribution, because a score is not a number, any."""
    size = scores_RV.shape[1]
    weights_V = np.empty(size, np.float32)
    sums_B = np.empty((size + _BLOCK - 1) // _BLOCK, np.float32)
    counts_S, masses_S = np.empty(_STEPS, np.int64), np.empty(_STEPS, np.float64)
    for r in range(scores_RV.shape[0]):
        blocks = _weigh(scores_RV[r], temperatures_R[r], weights_V, sums_B)
        total = 0.0
        for b in range(blocks):
            total += sums_B[b]
        least = np.float32(0)
        if top_k_R[r] > 0 or top_p_R[r] < 1:
            _count(weights_V, counts_S, masses_S)
            if 0 < top_k_R[r] < size:
                least, total = _smallest_of_top_k(weights_V, top_k_R[r], counts_S, masses_S)
            if top_p_R[r] < 1:
                least = max(least, _smallest_of_top_p(weights_V, top_p_R[r] * total, counts_S, masses_S))
            total = 0.0
            for b in range(blocks):
                kept = np.float32(0)
                for i in range(b * _BLOCK, min(size, (b + 1) * _BLOCK)):
                    kept += weights_V[i] if weights_V[i] >= least else np.float32(0)
                sums_B[b] = kept
                total += kept
        remaining = uniform_R[r] * total
        b = 0
        while b < blocks - 1 and remaining >= sums_B[b]:
            remaining -= sums_B[b]
            b += 1
        token = 0
        for i in range(b * _BLOCK, min(size, (b + 1) * _BLOCK)):
            if weights_V[i] > 0 and weights_V[i] >= least:
                token = i  # the last of the block, if rounding leaves something
                if remaining < weights_V[i]:
                    break
                remaining -= weights_V[i]
        tokens_R[r] = token
