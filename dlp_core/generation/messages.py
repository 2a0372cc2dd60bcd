"""What the ingress asks of a backbone replica, and what comes back piece by piece. No torch: both sides import it.

A generation is any number of `Delta`, then one `Finished`, or an error of dlp_core.errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dlp_core.decision import RoutingOptions
from dlp_core.mix import Mix, Span
from dlp_core.text.chat import Message

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence. Filled by the HTTP layer; `request_id` is unique, also where a client repeats its own id."""

    request_id: str
    bank: str  # the version that `mix` was chosen from
    mix: Mix
    source: tuple[Message, ...] | str  # a conversation, or a bare prompt
    max_tokens: int | None = None  # None: the replica's default, or what room the prompt leaves
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: int | None = None  # alternatives beside each token; None: no logprobs
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    by_sentence: RoutingOptions | None = None  # how to choose a mix for each sentence; None: `mix` is for all of them
    trace: Mapping[str, str] | None = None  # the span it belongs under (deployments/observe/tracing.py)


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token by itself, and the natural logarithm of the probability the model gave it."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token of the completion, and the likeliest tokens in its place, best first."""

    token: TokenText
    top: tuple[TokenText, ...]
    offset: int  # of the token's text in the completion's


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that follows what was sent before. Never splits a character, never part of a stop string."""

    text: str
    logprobs: tuple[Logprob, ...] = ()  # of tokens whose text is sent by now, if they were asked for


@dataclass(frozen=True, slots=True)
class Finished:
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    spans: tuple[Span, ...]


Piece = Delta | Finished
IndexedPiece = tuple[int, Piece]
"""With the number of its choice."""
