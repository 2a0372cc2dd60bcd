"""Picks a request's tokens: applies transformers' own logits processors to one row.

Rows that take the plain argmax do not come here: the batch computes them all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dlp_core.engine.request import Sampling, TokenLogprob


class Sampler:
    """Picks the tokens of one request, one after another. Used on the generation thread only."""

    def __init__(self, sampling: Sampling, prompt_tokens: int, eos: frozenset[int], device: torch.device) -> None:
        self.logprobs: list[TokenLogprob] = []
        """One for each token picked so far, if the request wants them."""
        self._sampling = sampling
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.min_tokens and eos and not sampling.ignore_eos:
            self._processors.append(
                MinNewTokensLengthLogitsProcessor(prompt_tokens, sampling.min_tokens, sorted(eos), device=device)
            )
        self.is_argmax = sampling.greedy and not self._processors and sampling.logprobs is None
        """Whether every pick is the plain argmax, so that the sampler may be skipped."""
        if not sampling.greedy:
            if sampling.temperature != 1:
                self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._generator = None if sampling.seed is None else torch.Generator(device).manual_seed(sampling.seed)

    def pick(self, logits_V: Tensor, token_ids: Sequence[int]) -> int:
        """Pick the next token after `token_ids`, prompt and completion so far, from the model's float32 logits."""
        scores_1V = logits_V[None]
        if self._processors:
            ids_1T = torch.tensor([token_ids], device=logits_V.device)
            scores_1V = self._processors(ids_1T, scores_1V.clone())
        if self._sampling.greedy:
            token = int(scores_1V.argmax())
        else:
            token = int(torch.multinomial(scores_1V.softmax(-1)[0], 1, generator=self._generator))
        if self._sampling.logprobs is not None:
            self.logprobs.append(_logprob(logits_V, token, self._sampling.logprobs))
        return token


def _logprob(logits_V: Tensor, token: int, count: int) -> TokenLogprob:
    logprobs_V = logits_V.log_softmax(-1)
    likeliest = logprobs_V.topk(min(count, len(logprobs_V)))
    top = tuple(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs_V[token]), top)
