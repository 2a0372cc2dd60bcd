"""Which requests of a pass have become infinite or not a number.

Nothing that one request computes reaches another: each token attends to its own request alone. So it is enough to know
them, before they share a block or deliver a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def finite(
    scores_RV: Tensor, overflowed_T: Sequence[bool], lengths: Sequence[int], scored: Sequence[bool]
) -> list[bool]:
    """Whether a pass left each request finite: the keys and values of its tokens, and its scores.

    `lengths` are the requests' tokens in the pass; those that are `scored` have a row of `scores_RV`, in order.
    """
    largest = scores_RV[: sum(scored)].amax(dim=1)  # not a number where any is not
    scores = iter(largest.isfinite().tolist())
    found, start = [], 0
    for length, has_score in zip(lengths, scored, strict=True):
        found.append((next(scores) if has_score else True) and not any(overflowed_T[start : start + length]))
        start += length
    return found
