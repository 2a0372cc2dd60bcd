"""Requests to a generator and the pieces of its results. No torch: both sides of a process boundary import this.

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
    """One sequence. Filled by the HTTP layer; `request_id` is unique even if a client reuses its own id."""

    request_id: str
    bank: str
    """The version that `mix` was chosen from."""
    mix: Mix
    source: Source
    sampling: Sampling
    stop: tuple[str, ...] = ()
    salt: str = ""
    """It shares cache blocks with requests of the same salt only."""
    by_sentence: RoutingOptions | None = None
    """How to choose a mix per sentence; None: `mix` serves all of them."""
    trace: Mapping[str, str] | None = None
    """The parent trace context, as W3C headers."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A single token and the natural logarithm of its probability."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token of the completion and the likeliest tokens at its position, best first."""

    token: TokenText
    top: tuple[TokenText, ...]
    offset: int
    """Offset of the token's text in the completion, in characters."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that follows what was already sent. Never splits a character or contains part of a stop string."""

    text: str
    logprobs: tuple[Logprob, ...] = ()
    """Log-probabilities, if requested, of tokens whose text has been sent."""


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
