"""Which requests of a pass have become infinite or not a number.

Nothing that one request computes reaches another: each token attends to its own request alone. So it is enough to know
them, before they share a block or deliver a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def finite_rows(scores_RV: Tensor) -> Tensor:
    """bool [R] on the scores' device: whether all scores of a row are finite, or minus infinity beside a finite one."""
    return scores_RV.amax(dim=1).isfinite()  # not a number where any is not


def finite(
    finite_R: Sequence[bool], overflowed_T: Sequence[int], lengths: Sequence[int], scored: Sequence[bool]
) -> list[bool]:
    """Whether a pass left each request finite: its scores, and the keys and values of its tokens.

    `lengths` are the requests' tokens in the pass; those that are `scored` have a row of scores, in order.
    """
    rows = iter(finite_R)
    found, start = [], 0
    for length, has_score in zip(lengths, scored, strict=True):
        found.append((next(rows) if has_score else True) and not any(overflowed_T[start : start + length]))
        start += length
    return found
