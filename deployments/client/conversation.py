"""A conversation with a server, turn by turn."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from deployments.client.server import Server

PATH = "/v1/chat/completions"


@dataclass
class Answer:
    """The answer to one prompt, as far as it has come. `dlp` and `usage` come last."""

    prompt: str
    model: str
    text: str = ""
    finish_reason: str | None = None
    dlp: dict[str, Any] = field(default_factory=dict)
    """The reply's `dlp`: bank, router, confidence, reason, spans."""
    usage: dict[str, Any] = field(default_factory=dict)
    first_token_seconds: float | None = None
    seconds: float = 0.0

    @property
    def mix(self) -> list[dict[str, Any]]:
        """[{"adapter", "weight"}] of the end of the answer; empty for the plain backbone."""
        spans = self.dlp.get("spans") or [{"mix": []}]
        return [{"adapter": part["adapter"], "weight": part["weight"]} for part in spans[-1]["mix"]]

    def take(self, event: dict[str, Any]) -> str:
        """Note an event of the stream; return its text."""
        self.dlp = event.get("dlp") or self.dlp
        self.usage = event.get("usage") or self.usage
        piece = ""
        for choice in event.get("choices", ()):
            piece += choice["delta"].get("content") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.text += piece
        return piece


class Conversation:
    """What was said so far. A turn counts once its answer is complete: one that fails or is stopped is forgotten."""

    def __init__(self, server: Server, model: str) -> None:
        self.model = model
        self.turns: list[dict[str, str]] = []
        self.fields: dict[str, Any] = {}
        """Further fields of each request."""
        self._server = server

    def clear(self) -> None:
        self.turns.clear()

    def ask(self, prompt: str, answer: Answer) -> Generator[str]:
        """Send a prompt; yield the text of its answer as it comes, and fill `answer` in. Closing the iterator stops the
        answer. Raises what Server raises."""
        asked = [*self.turns, {"role": "user", "content": prompt}]
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        body = {**self.fields, "model": self.model, "messages": asked, **stream}
        began = time.perf_counter()
        with closing(self._server.events(PATH, body)) as events:
            for event in events:
                piece = answer.take(event)
                answer.seconds = time.perf_counter() - began
                if piece:
                    if answer.first_token_seconds is None:
                        answer.first_token_seconds = answer.seconds
                    yield piece
        self.turns = [*asked, {"role": "assistant", "content": answer.text}]
