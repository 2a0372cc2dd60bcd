"""Keeps what is infinite or not a number in the row where it arose.

Requests of a batch share products in attention: each row's scores cover the keys of all, and a mask takes the others
out. Masked is not enough where a key or value is infinite: inf - inf and 0 * inf are not numbers, and one request's
overflow would be in everybody's answer. So nothing enters the cache that is not finite, or so large that a score could
overflow, and the rows it came from are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LARGEST = {torch.float16: 6e4}
"""Of keys and values, by dtype: all of float16's range, whose scores are computed in float32."""
_LARGEST_OTHERWISE = 1e15
"""Far above any real key, and its scores are far below float32's limit."""

Update = Callable[..., tuple[Tensor, Tensor]]


class Guard:
    """Wraps a cache's `update`, and tells after a pass which requests are finite. Used on the generation thread."""

    def __init__(self) -> None:
        self._largest_T: Tensor | None = None

    def wrap(self, update: Update, *, last_layer: int) -> Update:
        """`update`, with finite keys and values. What overflows in a layer shows in the last layer's keys: nothing
        takes it out of the residual stream."""

        def guarded(key_states: Tensor, value_states: Tensor, layer_idx: int, kwargs: Any) -> tuple[Tensor, Tensor]:
            limit = _LARGEST.get(key_states.dtype, _LARGEST_OTHERWISE)
            if layer_idx == last_layer:  # amax is not a number where any element is not
                self._largest_T = torch.maximum(
                    key_states.abs().amax(dim=(0, 1, 3)), value_states.abs().amax(dim=(0, 1, 3))
                )
            for states in (key_states, value_states):
                states.nan_to_num_(nan=0.0).clamp_(-limit, limit)
            return update(key_states=key_states, value_states=value_states, layer_idx=layer_idx, kwargs=kwargs)

        return guarded

    def finite(self, scores_RV: Tensor, lengths: Sequence[int], scored: Sequence[bool]) -> list[bool]:
        """Whether the last pass left each request finite. `lengths` are the requests' tokens in the pass; those that
        are `scored` have a row of `scores_RV`, in order."""
        tokens, rows = sum(lengths), sum(scored)
        largest_R = scores_RV[:rows].amax(dim=1)
        scores = iter(largest_R.isfinite().tolist())
        finite = [next(scores) if has_score else True for has_score in scored]
        if self._largest_T is None:
            return finite
        limit = _LARGEST.get(self._largest_T.dtype, _LARGEST_OTHERWISE)
        if bool((self._largest_T[:tokens] <= limit).all()):
            return finite
        kept = torch.split(self._largest_T[:tokens] <= limit, list(lengths))
        return [ok and bool(own.all()) for ok, own in zip(finite, kept, strict=True)]
