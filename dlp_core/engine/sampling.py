"""How a request picks its tokens. The processors are transformers' own; what is here applies them to one row.

Rows that take the plain argmax never come here: the batch computes them all at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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

from dlp_core.errors import InvalidRequest

MAX_LOGPROBS = 20
"""Alternatives per token whose log-probability may be asked for, as in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The choices of one request. Raises InvalidRequest on a bad value."""

    max_tokens: int
    min_tokens: int = 0
    """Completion tokens before which the end-of-sequence token is not picked."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occurred before, in prompt or completion, become less likely (CTRL, arXiv 1909.05858)."""
    seed: int | None = None
    """Makes a draw repeatable: same request, same seed, same tokens, whatever else is in the batch."""
    logprobs: int | None = None
    """How many of the likeliest tokens are reported beside each picked one; None reports nothing."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._require("max_tokens", self.max_tokens >= 1, "at least 1")
        self._require("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens")
        self._require("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "0 or more")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("top_k", self.top_k >= 0, "0 or more")
        self._require("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0 and at most 100")
        self._require("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "an integer of 64 bits")
        self._require("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}")

    def _require(self, field: str, good: bool, bounds: str) -> None:
        if not good:
            raise InvalidRequest(f"{field} is {getattr(self, field)}; it must be {bounds}", param=field)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of the model's own probabilities, before temperature, penalties and truncation."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, best first: (token id, log-probability)."""


class Sampler:
    """Picks the tokens of one request, one after the other. Belongs to the generation thread."""

    def __init__(self, sampling: Sampling, prompt_tokens: int, eos: frozenset[int], device: torch.device) -> None:
        self.logprobs: list[TokenLogprob] = []
        """One for each token picked so far, if they were asked for."""
        self._sampling = sampling
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.min_tokens and eos and not sampling.ignore_eos:
            self._processors.append(
                MinNewTokensLengthLogitsProcessor(prompt_tokens, sampling.min_tokens, sorted(eos), device=device)
            )
        self.is_argmax = sampling.greedy and not self._processors and sampling.logprobs is None
        """Whether every pick is the plain argmax, so that nobody need ask."""
        if not sampling.greedy:
            if sampling.temperature != 1:
                self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._generator = None if sampling.seed is None else torch.Generator(device).manual_seed(sampling.seed)

    def pick(self, logits_V: Tensor, token_ids: Sequence[int]) -> int:
        """The next token after `token_ids`, prompt and completion so far, given the model's float32 logits."""
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
    best = logprobs_V.topk(min(count, len(logprobs_V)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs_V[token]), top)
