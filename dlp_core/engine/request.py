"""Requests to an engine and its answers. No torch: the HTTP layer uses the same types."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dlp_core.errors import InvalidRequest
from dlp_core.mix import Mix, Span

MAX_LOGPROBS = 20
"""Alternatives per token whose log-probabilities may be requested, as in OpenAI's API."""

MIN_TEMPERATURE = 1e-4
REPETITION_PENALTIES = (0.01, 100.0)
PENALTIES = (-2.0, 2.0)
"""Of presence and frequency, as in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """One request's sampling options, from the HTTP body to the sampler. Raises InvalidRequest on a bad value."""

    max_tokens: int | None = None
    """Limit on the completion; None: as many as fit in the context window."""
    min_tokens: int = 0
    """Completion tokens before the end-of-sequence token may be picked."""
    temperature: float = 0.0
    """Below MIN_TEMPERATURE is greedy: logits divided by it would leave float32."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occurred before, in prompt or completion, become less likely (CTRL, arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the completion has."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit as often as the completion has it."""
    seed: int | None = None
    """Makes sampling repeatable: same request, same seed, same tokens, whatever else is in the batch."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report with each picked one; None reports no log-probabilities."""
    ignore_eos: bool = False
    response_format: str | None = None
    """A JSON schema, as JSON: the completion is a document of it, unless `max_tokens` cuts it. None for any text."""

    def __post_init__(self) -> None:
        self._require("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        within_max = self.max_tokens is None or self.min_tokens <= self.max_tokens
        self._require("min_tokens", self.min_tokens >= 0 and within_max, "between 0 and max_tokens")
        self._require("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "0 or more")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("top_k", self.top_k >= 0, "0 or more")
        least, most = REPETITION_PENALTIES
        self._require("repetition_penalty", least <= self.repetition_penalty <= most, f"{least:g} to {most:g}")
        for field in ("presence_penalty", "frequency_penalty"):
            self._require(field, PENALTIES[0] <= getattr(self, field) <= PENALTIES[1], "-2 to 2")
        self._require("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "an integer of 64 bits")
        self._require("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}")
        if self.response_format is not None and (self.min_tokens or self.ignore_eos):
            field = "min_tokens" if self.min_tokens else "ignore_eos"
            raise InvalidRequest(f"{field} would continue after the end of the JSON document; remove it", param=field)

    def _require(self, field: str, valid: bool, bounds: str) -> None:
        if not valid:
            raise InvalidRequest(f"{field} is {getattr(self, field)}; it must be {bounds}", param=field)

    @property
    def greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE or self.top_k == 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of the model's own probabilities, before temperature, penalties and truncation."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, best first: (token id, log-probability)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The mixes of a request.

    `spans` are (first position, mix), ascending from 0; the last may start right after the prompt. `follow`, if given,
    is called with each completion token in order, but not with one that reaches the limit of tokens, and returns the
    mix from that token on, or None for no change. It runs on the generation thread, so it must be quick and must not
    raise.
    """

    spans: tuple[tuple[int, Mix], ...]
    follow: Callable[[int], Mix | None] | None = None
    salt: str = ""
    """Cache blocks are shared between requests of one salt only: who shares can tell by the time it takes what others
    have asked."""

    @classmethod
    def of(cls, mix: Mix) -> Plan:
        """One mix for the whole request."""
        return cls(((0, mix),))

    def check(self, prompt_tokens: int) -> None:
        """Check the spans against a prompt of that many tokens. Raises InvalidRequest if they do not fit."""
        starts = [start for start, _ in self.spans]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] > prompt_tokens:
            raise InvalidRequest(
                f"spans start at {starts}; they must ascend from 0 to at most the {prompt_tokens} tokens of the prompt"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters of all spans, without duplicates."""
        return tuple(dict.fromkeys(name for _, mix in self.spans for name in mix.names))


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Tokens generated since the last event; the end-of-sequence token is not among them."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, if the request wants them."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """In the first event, if the request wants them: one for each token of the prompt, None for the first."""
    finish_reason: FinishReason | None = None
    spans: tuple[Span, ...] = ()
    """The mixes of all tokens of prompt and completion, up to this event's last token; each differs from the last."""
    cached_tokens: int = 0
    """Of the prompt: how many were found in the cache, and were not computed for this request."""
