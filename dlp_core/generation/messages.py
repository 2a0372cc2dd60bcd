"""What is asked of a generator, and what comes back piece by piece. No torch: both sides of a process border import it.

A generation is any number of `Delta`, then one `Finished`, or an error of dlp_core.errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dlp_core.decision import RoutingOptions
from dlp_core.engine.request import FinishReason, Sampling
from dlp_core.mix import Mix, Span
from dlp_core.text.chat import Message

Source = tuple[Message, ...] | str
"""What a completion continues: a conversation, or a bare prompt."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence. Filled by the HTTP layer; `request_id` is unique, also where a client repeats its own id."""

    request_id: str
    bank: str
    """The version that `mix` was chosen from."""
    mix: Mix
    source: Source
    sampling: Sampling
    stop: tuple[str, ...] = ()
    by_sentence: RoutingOptions | None = None
    """How to choose a mix for each sentence; None: `mix` is for all of them."""
    trace: Mapping[str, str] | None = None
    """The trace context it belongs under, as W3C headers."""


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
    offset: int
    """Of the token's text in the completion's, in characters."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that follows what was sent before. Never splits a character, never part of a stop string."""

    text: str
    logprobs: tuple[Logprob, ...] = ()
    """Of tokens whose text is sent by now, if they were asked for."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a completion. `spans` count tokens of prompt and completion together."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    spans: tuple[Span, ...]


Piece = Delta | Finished


@dataclass(slots=True)
class Completion:
    """One completion as it grows."""

    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    finished: Finished | None = None
    """Set by the last piece."""

    def add(self, piece: Piece) -> None:
        if isinstance(piece, Finished):
            self.finished = piece
        else:
            self.text += piece.text
            self.logprobs += piece.logprobs
