"""Draws tokens on CPUs, compiled by numba: a row costs little more than reading its scores.

Sorting a vocabulary takes longer than all the rest of a token. Nearly all of the probability is in few tokens, so only
those near the largest score are sorted, and more of them where that was not enough.

Shape letters: R rows, V vocabulary, B blocks of it.
"""

from __future__ import annotations

import numpy as np

from dlp_core.compiled import compiled, exp_below

_BLOCK = 256
"""Tokens whose weights are summed up together, so that a walk to a token skips most of them."""
_NEAR = 8.0
"""Natural logarithm of what a score may be below the largest to be sorted at first."""


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
def _largest(weights_V, total, top_k, top_p):
    """The largest weights, in descending order: enough of them for these truncations."""
    size = weights_V.shape[0]
    near = _NEAR
    while True:
        least = np.float32(np.exp(-near)) if near < 80 else np.float32(0)
        count, mass = 0, 0.0
        for i in range(size):
            if weights_V[i] >= least:
                count += 1
                mass += weights_V[i]
        if least == 0 or count >= top_k or (top_k == size and mass > top_p * total):
            break
        near *= 2
    found = np.empty(count, np.float32)
    n = 0
    for i in range(size):
        if weights_V[i] >= least:
            found[n] = weights_V[i]
            n += 1
    return np.sort(found)[::-1]


@compiled
def _smallest_kept(weights_V, total, top_k, top_p):
    """The smallest weight that the truncations leave: of the `top_k` largest, those whose larger ones have less than
    `top_p` of their sum. Equal weights stay or go together."""
    size = weights_V.shape[0]
    if top_k == 0 or top_k > size:
        top_k = size
    found = _largest(weights_V, total, top_k, top_p)
    count = found.shape[0]
    kept_mass = 0.0
    if top_k < size:
        last = min(top_k, count) - 1
        while last + 1 < count and found[last + 1] == found[last]:
            last += 1
        for i in range(last + 1):
            kept_mass += found[i]
    else:
        last, kept_mass = count - 1, total
    if top_p < 1:
        above = 0.0
        for i in range(last + 1):
            if above >= top_p * kept_mass and found[i] < found[i - 1]:
                return found[i - 1]
            above += found[i]
    return found[last]


@compiled
def draw(scores_RV, temperatures_R, top_k_R, top_p_R, uniform_R, tokens_R):
    """tokens_R[r]: a token of row r, by the inverse of its cumulative distribution at uniform_R[r] in [0, 1). Of a row
    that has no distribution, because a score is not a number, any."""
    size = scores_RV.shape[1]
    weights_V = np.empty(size, np.float32)
    sums_B = np.empty((size + _BLOCK - 1) // _BLOCK, np.float32)
    for r in range(scores_RV.shape[0]):
        blocks = _weigh(scores_RV[r], temperatures_R[r], weights_V, sums_B)
        total = 0.0
        for b in range(blocks):
            total += sums_B[b]
        least = np.float32(0)
        if top_k_R[r] > 0 or top_p_R[r] < 1:
            least = _smallest_kept(weights_V, total, top_k_R[r], top_p_R[r])
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
