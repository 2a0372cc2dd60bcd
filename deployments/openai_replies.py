"""The JSON objects the API answers with: OpenAI's shapes, plus `dlp`.

`dlp` says which adapters served which tokens: {"bank", "router", "confidence", "reason", "spans": [{"start",
"end", "mix": [{"adapter", "weight", "digest"}]}]}, where start and end count tokens of the prompt and the
completion together, the prompt first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deployments.generation import Finished
from dlp_core.decision import AUTO, Decision
from dlp_core.mix import Mix

if TYPE_CHECKING:
    from dlp_core.bank import BankManifest

OWNER = "dlp"


def mix_json(mix: Mix, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"adapter": part.name, "weight": part.weight, "digest": digests[part.name]} for part in mix.adapters]


def dlp_json(decision: Decision, finished: Finished) -> dict[str, Any]:
    return {
        "bank": decision.bank,
        "router": decision.router,
        "confidence": decision.confidence,
        "reason": decision.reason,
        "spans": [
            {"start": span.start, "end": span.end, "mix": mix_json(span.mix, decision.digests)}
            for span in finished.spans
        ],
    }


def usage_json(finished: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }


def route_json(decision: Decision) -> dict[str, Any]:
    """What would serve the request, and why."""
    return {
        "object": "route",
        "model": decision.wish.model,
        "bank": decision.bank,
        "router": decision.router,
        "reason": decision.reason,
        "confidence": decision.confidence,
        "none": decision.none,
        "mix": mix_json(decision.mix, decision.digests),
        "probabilities": None if decision.probabilities is None else dict(decision.probabilities),
        "top_p": decision.wish.top_p,
        "max_adapters": decision.wish.max_adapters,
        "min_confidence": decision.wish.min_confidence,
    }


def models_json(bank: BankManifest, *, created: int) -> list[dict[str, Any]]:
    """Every value of `model`: routing where the bank has a router, the base, and each adapter."""

    def model(name: str, parent: str | None) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "parent": parent}

    base = bank.base_model.id
    routed = [model(AUTO, base)] if bank.router is not None else []
    return [*routed, model(base, None), *(model(adapter.name, base) for adapter in bank.adapters)]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer in the making, as a chat completion or a text completion, whole or in chunks."""

    id: str
    created: int
    kind: Literal["chat", "text"]
    decision: Decision
    include_usage: bool = False

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
        return {
            **self._head("chat.completion" if self.kind == "chat" else "text_completion"),
            "choices": [self._choice(content, finished.finish_reason)],
            "usage": usage_json(finished),
            "dlp": dlp_json(self.decision, finished),
        }

    def opening(self) -> list[dict[str, Any]]:
        """A chat begins with a chunk that says who speaks; a text completion with its text."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}})] if self.kind == "chat" else []

    def delta(self, text: str) -> dict[str, Any]:
        return self._chunk({"delta": {"content": text}} if self.kind == "chat" else {"text": text})

    def closing(self, finished: Finished) -> list[dict[str, Any]]:
        """The chunk with the finish reason and, where asked for, the one with the usage. `dlp` rides on the last."""
        end = self._chunk({"delta": {}} if self.kind == "chat" else {"text": ""}, finished.finish_reason)
        chunks = [end]
        if self.include_usage:
            chunks.append({**self._chunk_head(), "choices": [], "usage": usage_json(finished)})
        chunks[-1]["dlp"] = dlp_json(self.decision, finished)
        return chunks

    def _chunk(self, content: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        usage = {"usage": None} if self.include_usage else {}
        return {**self._chunk_head(), "choices": [self._choice(content, finish_reason)], **usage}

    def _chunk_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.kind == "chat" else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.decision.wish.model}

    @staticmethod
    def _choice(content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
