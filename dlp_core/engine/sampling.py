"""Picks a request's tokens: applies transformers' own logits processors to one row.

Rows that take the plain argmax do not come here: the batch computes them all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dlp_core.engine.grammar import Guide
from dlp_core.engine.request import Sampling, TokenLogprob


class OccurrencePenalty(LogitsProcessor):  # type: ignore[misc]
    """scores[t] -= presence * [t occurs] + frequency * (how often t occurs), in the completion so far (OpenAI's)."""

    def __init__(self, presence: float, frequency: float, prompt_tokens: int) -> None:
        self._presence, self._frequency, self._prompt_tokens = presence, frequency, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, counts = torch.unique(input_ids[0, self._prompt_tokens :], return_counts=True)
        scores[0, tokens] -= self._presence + self._frequency * counts
        return scores


class Sampler:
    """Picks the tokens of one request, one after another. Used on the generation thread only."""

    def __init__(
        self,
        sampling: Sampling,
        prompt_tokens: int,
        eos: frozenset[int],
        device: torch.device,
        guide: Guide | None = None,
    ) -> None:
        self.logprobs: list[TokenLogprob] = []
        """One for each token picked so far, if the request wants them."""
        self._sampling = sampling
        self._guide = guide
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._processors.append(
                OccurrencePenalty(sampling.presence_penalty, sampling.frequency_penalty, prompt_tokens)
            )
        if sampling.min_tokens and eos and not sampling.ignore_eos:
            self._processors.append(
                MinNewTokensLengthLogitsProcessor(prompt_tokens, sampling.min_tokens, sorted(eos), device=device)
            )
        self.is_argmax = sampling.greedy and not self._processors and sampling.logprobs is None and guide is None
        """Whether every pick is the plain argmax, so that the sampler may be skipped."""
        self._warpers = LogitsProcessorList()
        if not sampling.greedy:
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generator = None if sampling.seed is None else torch.Generator(device).manual_seed(sampling.seed)

    def pick(self, logits_V: Tensor, token_ids: Sequence[int]) -> int:
        """Pick the next token after `token_ids`, prompt and completion so far, from the model's float32 logits."""
        scores_1V = logits_V[None]
        if self._processors or self._warpers:
            ids_1T = torch.tensor([token_ids], device=logits_V.device)
            scores_1V = self._processors(ids_1T, scores_1V.clone())
        if self._guide is not None:  # before the warpers: they keep at least one of the tokens that are left
            scores_1V = self._guide.mask(scores_1V[0])[None]
        if self._warpers:
            scores_1V = self._warpers(ids_1T, scores_1V)
        if self._sampling.greedy:
            token = int(scores_1V.argmax())
        else:
            token = int(torch.multinomial(scores_1V.softmax(-1)[0], 1, generator=self._generator))
        if self._guide is not None:
            self._guide.accept(token)
        if self._sampling.logprobs is not None:
            self.logprobs.append(logprob_of(logits_V, token, self._sampling.logprobs))
        return token


def logprob_of(logits_V: Tensor, token: int, count: int) -> TokenLogprob:
    """The log-probability of `token` by float32 logits, and those of the `count` likeliest tokens."""
    logprobs_V = logits_V.log_softmax(-1)
    likeliest = logprobs_V.topk(min(count, len(logprobs_V)))
    top = tuple(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs_V[token]), top)
