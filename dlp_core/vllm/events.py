"""Token events from what vLLM puts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from dlp_core.engine.request import TokenEvent, TokenLogprob
from dlp_core.errors import EngineFailed
from dlp_core.vllm.request import Request


def event_of(output: Any, request: Request, eos: Set[int]) -> TokenEvent:
    """The event of one of vLLM's outputs, without spans and without an end-of-sequence token from `eos`. Raises
    EngineFailed if vLLM ended the request for reasons of its own."""
    [choice] = output.outputs
    reason = choice.finish_reason
    if reason not in ("stop", "length", None):
        raise EngineFailed(f"vLLM ended the request: {reason}")
    tokens = tuple(choice.token_ids)
    if reason == "stop" and tokens and tokens[-1] in eos:
        tokens = tokens[:-1]
    return TokenEvent(
        tokens,
        _logprobs(tokens, choice.logprobs, request.sampling.logprobs),
        prompt_logprobs=_prompt_logprobs(request.prompt_ids, output.prompt_logprobs, request.prompt_logprobs),
        finish_reason=reason,
    )


def _logprobs(tokens: Sequence[int], found: Any, count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None:
        return ()
    return tuple(_logprob(token, entry, count) for token, entry in zip(tokens, found or (), strict=False))


def _prompt_logprobs(ids: Sequence[int], found: Any, count: int | None) -> tuple[TokenLogprob | None, ...]:
    """vLLM tells them once, when the prompt has been computed."""
    if count is None:
        return ()
    entries = zip(ids, found or (), strict=False)
    return tuple(None if entry is None else _logprob(token, entry, count) for token, entry in entries)


def _logprob(token: int, entry: Mapping[int, Any], count: int) -> TokenLogprob:
    """An entry of vLLM has the `count` likeliest tokens and the one at hand, wherever it ranks."""
    ranked = sorted((score.rank, other, score.logprob) for other, score in entry.items() if score.rank <= count)
    return TokenLogprob(token, float(entry[token].logprob), tuple((other, logprob) for _, other, logprob in ranked))
