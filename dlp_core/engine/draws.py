"""Draws the next tokens of all rows of a batch at once, on the scores' device, without waiting for it.

A row is temperature, truncation to the `top_k` likeliest and to the nucleus of `top_p`, and a uniform number in [0, 1)
that names the token by the inverse of the cumulative distribution. So a draw depends on its own row alone, on any
device. Truncations are those of transformers' warpers in their order, but that tokens of equal scores stay or go
together: which of them stays is chance there.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlp_core.engine.transfer import to_device


class Draw(NamedTuple):
    """How a row's token is drawn."""

    temperature: float
    top_k: int
    """0 for all tokens."""
    top_p: float
    """1 for all tokens."""
    uniform: float


def draw(scores_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The tokens drawn from float32 scores: int64 [R] on their device. A row with scores that are not numbers gets a
    token nobody should use."""
    if scores_RV.device.type == "cpu":
        from dlp_core.engine.draw_kernels import draw as draw_on_cpu

        temperatures, top_k, top_p, uniform = zip(*draws, strict=True)
        tokens_R = np.empty(len(draws), np.int64)
        draw_on_cpu(
            scores_RV.contiguous().numpy(), np.array(temperatures, np.float32), np.array(top_k, np.int64),
            np.array(top_p, np.float64), np.array(uniform, np.float64), tokens_R,
        )  # fmt: skip
        return torch.from_numpy(tokens_R)
    return draw_in_torch(scores_RV, draws)


def draw_in_torch(scores_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """`draw` in torch's operations, on any device."""
    table_4R = to_device(torch.tensor(list(zip(*draws, strict=True)), dtype=torch.float64), scores_RV)
    temperature_R, top_k_R, top_p_R, uniform_R = table_4R
    weights_RV = (scores_RV / temperature_R[:, None].float()).softmax(-1)
    if any(one.top_k > 0 or one.top_p < 1 for one in draws):
        sorted_RV = weights_RV.sort(descending=True).values
        size = scores_RV.shape[1]
        last_R = torch.where(top_k_R > 0, top_k_R, size).long().clamp(max=size) - 1
        kept_RV = sorted_RV >= sorted_RV.gather(1, last_R[:, None])
        mass_R = (sorted_RV * kept_RV).double().sum(1)
        before_RV = sorted_RV.double().cumsum(1) - sorted_RV
        kept_RV &= (before_RV < (top_p_R * mass_R)[:, None]) | (top_p_R >= 1)[:, None]
        least_R = torch.where(kept_RV, sorted_RV, torch.inf).amin(1)
        weights_RV = torch.where(weights_RV >= least_R[:, None], weights_RV, 0)
    cumulative_RV = weights_RV.double().cumsum(1)
    drawn_R: Tensor = (cumulative_RV <= (uniform_R * cumulative_RV[:, -1])[:, None]).sum(1)
    return drawn_R.clamp(max=scores_RV.shape[1] - 1)
