"""What the ingress asks of a backbone replica, and what comes back piece by piece. No torch: both sides import it.

A generation is any number of `Delta`, then one `Finished`, or an error of dlp_core.errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlp_core.chat import Message
from dlp_core.mix import Mix

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence. Filled by the HTTP layer; `request_id` is unique, also where a client repeats its own id."""

    request_id: str
    bank: str  # the version that `mix` was chosen from
    mix: Mix
    source: tuple[Message, ...] | str  # a conversation, or a bare prompt
    max_tokens: int | None  # None: the replica's default, or what room the prompt leaves
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that follows what was sent before. Never splits a character, never part of a stop string."""

    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) of prompt and completion together, and the mix that served them."""

    start: int
    end: int
    mix: Mix


@dataclass(frozen=True, slots=True)
class Finished:
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    spans: tuple[Span, ...]
