"""Draws of tokens against transformers' own truncations, on CPUs and in torch's operations for other devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dlp_core.engine.draws import Draw, draw, draw_in_torch

VOCABULARY = 3000
EDGE = 1e-5
"""A uniform number so close to a token's edge may name its neighbour: sums are rounded."""
TRUNCATIONS = [(0, 1.0), (1, 1.0), (7, 1.0), (2999, 1.0), (9999, 1.0), (0, 0.3), (0, 0.95), (0, 0.9999), (50, 0.8)]


DRAW = pytest.mark.parametrize("by", [draw, draw_in_torch])
By = Callable[[Tensor, Sequence[Draw]], Tensor]


def warped(scores_V: Tensor, one: Draw) -> Tensor:
    """The probabilities of transformers, by token."""
    scores_1V = TemperatureLogitsWarper(float(one.temperature))(None, scores_V[None].clone())
    if one.top_k:
        scores_1V = TopKLogitsWarper(one.top_k)(None, scores_1V)
    if one.top_p < 1:
        scores_1V = TopPLogitsWarper(one.top_p)(None, scores_1V)
    return scores_1V[0].double().softmax(-1)


@DRAW
@pytest.mark.parametrize(("top_k", "top_p"), TRUNCATIONS)
@pytest.mark.parametrize("spread", [0.1, 2.0, 20.0])
def test_a_uniform_number_names_the_token_that_transformers_probabilities_say(
    by: By, top_k: int, top_p: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    scores_V = spread * torch.randn(VOCABULARY, generator=generator)
    scores_V[5::50] = -torch.inf
    for temperature in (0.3, 1.0, 1.7):
        uniform = [*torch.rand(40, generator=generator).tolist(), 0.0, 1 - 2**-53]
        draws = [Draw(temperature, top_k, top_p, u) for u in uniform]
        probabilities_V = warped(scores_V, draws[0])
        cumulative_V = probabilities_V.cumsum(0)
        for token, u in zip(by(scores_V.repeat(len(draws), 1), draws).tolist(), uniform, strict=True):
            assert probabilities_V[token] > 0
            assert cumulative_V[token] - probabilities_V[token] - EDGE <= u <= cumulative_V[token] + EDGE


@DRAW
def test_rows_do_not_depend_on_each_other(by: By) -> None:
    generator = torch.Generator().manual_seed(2)
    scores_RV = 3 * torch.randn(len(TRUNCATIONS), VOCABULARY, generator=generator)
    draws = [Draw(0.5 + n / 10, *truncation, n / 9) for n, truncation in enumerate(TRUNCATIONS)]
    alone = [by(scores_V[None], [one]).item() for scores_V, one in zip(scores_RV, draws, strict=True)]
    assert by(scores_RV, draws).tolist() == alone
    scores_RV[3] = torch.nan  # its token is nobody's, but it is one
    beside = by(scores_RV, draws).tolist()
    assert 0 <= beside[3] < VOCABULARY
    assert beside[:3] + beside[4:] == alone[:3] + alone[4:]


@DRAW
@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (0, 0.5)])
def test_equal_scores_stay_together(by: By, top_k: int, top_p: float) -> None:
    scores_V = torch.tensor([0.0, 1.0, 1.0, 1.0, -5.0])  # 0.11 and three times 0.3
    drawn = {by(scores_V[None], [Draw(1.0, top_k, top_p, n / 50)]).item() for n in range(50)}
    assert drawn == {1, 2, 3}
