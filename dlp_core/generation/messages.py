"""Requests to a generator and the pieces of its results. No torch: both sides of a process boundary import this.

A generation is any number of `Delta`, then one `Finished`, or an error of dlp_core.errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dlp_core.decision import RoutingOptions
from dlp_core.engine.request import FinishReason, Sampling
from dlp_core.mix import Activation, Mix, Span
from dlp_core.text.chat import Message
from dlp_core.text.tools import CallDelta, ToolCall, Tools


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A bare prompt as token ids of the model."""

    ids: tuple[int, ...]


Source = tuple[Message, ...] | str | TokenIds
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
    echo: bool = False
    """Whether the prompt's text comes first, with its log-probabilities if `sampling` asks for log-probabilities."""
    prompt_only: bool = False
    """Whether nothing follows the prompt: its log-probabilities are all that is wanted."""
    add_special_tokens: bool | None = None
    """Of the tokenizer, around the text; None: for bare prompts only, since a chat template brings its own."""
    tools: Tools | None = None
    """What a conversation offers its answer to call."""
    salt: str = ""
    """It shares cache blocks with requests of the same salt only."""
    stream: bool = True
    """Whether its pieces are wanted as they come; if not, all of them at its end."""
    activation: Activation = "always"
    """From where on the mix runs, or those of the sentences."""
    by_sentence: RoutingOptions | None = None
    """How to choose a mix per sentence; None: `mix` serves all of them."""
    trace: Mapping[str, str] | None = None
    """The parent trace context, as W3C headers."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A single token and the natural logarithm of its probability; None for the first of a prompt."""

    text: str
    bytes: bytes
    logprob: float | None


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and the likeliest tokens at its position, best first."""

    token: TokenText
    top: tuple[TokenText, ...]
    offset: int
    """Offset of the token's text in the answer, in characters."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that follows what was already sent. Never splits a character or contains part of a stop string."""

    text: str
    logprobs: tuple[Logprob, ...] = ()
    """Log-probabilities, if requested, of tokens whose text has been sent, or is part of calls."""
    calls: tuple[CallDelta, ...] = ()
    """What follows of calls of tools. Their text is not in `text`."""
    spans: tuple[Span, ...] = ()
    """All spans so far, where one has begun since the delta before and it is not the only one."""


EndReason = FinishReason | Literal["tool_calls"]
"""The last means that the model ended its answer to have tools called."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a completion. `spans` count tokens of prompt and completion together."""

    finish_reason: EndReason
    prompt_tokens: int
    completion_tokens: int
    spans: tuple[Span, ...]
    cached_tokens: int = 0
    """Of the prompt: how many were found in the cache."""


Piece = Delta | Finished


@dataclass(slots=True)
class Completion:
    """One completion as it grows."""

    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finished: Finished | None = None
    """Set by the last piece."""

    def add(self, piece: Piece) -> None:
        if isinstance(piece, Finished):
            self.finished = piece
            return
        self.text += piece.text
        self.logprobs += piece.logprobs
        for delta in piece.calls:
            if delta.index == len(self.calls):
                self.calls.append(ToolCall(delta.id or "", delta.name or "", ""))
            call = self.calls[delta.index]
            self.calls[delta.index] = replace(call, arguments=call.arguments + delta.arguments)
