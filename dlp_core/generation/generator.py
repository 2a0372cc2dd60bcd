"""Turns a prompt and a plan into the pieces of a completion: tokens, text, log-probabilities, spans.

The model runs on the engine's own thread, tokenising and planning on another; the event loop only forwards tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace

from dlp_core.bank.source import unqualified
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import FinishReason, Plan, Sampling, TokenLogprob
from dlp_core.generation.messages import Completion, Delta, Finished, Logprob, Piece, Source, TokenText
from dlp_core.generation.planning import Planner
from dlp_core.mix import Mix, Span
from dlp_core.text.codec import Prompt, TextCodec, TextStream


class Generator:
    """Generates completions with one engine, which it neither starts nor stops. Use from one event loop."""

    def __init__(self, engine: FusedEngine, codec: TextCodec, *, default_max_tokens: int | None = None) -> None:
        """`default_max_tokens` limits completions whose sampling sets no limit, in addition to the context window."""
        self._engine = engine
        self._codec = codec
        self._default_max_tokens = default_max_tokens or codec.context
        # one thread: a tokenizer is not thread-safe, and a flood of long prompts must not occupy every core
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    async def generate(
        self,
        source: Source | Prompt,
        plan: Mix | Plan | Planner,
        sampling: Sampling,
        *,
        request_id: str,
        stop: Sequence[str] = (),
        on_tokens: Callable[[int], object] = lambda count: None,
    ) -> AsyncGenerator[Piece, None]:
        """Yield any number of Delta, then one Finished. Closing the generator aborts the request.

        `on_tokens(count)` is called when `count` tokens arrive together. The spans use the bank's names, without a
        version. Raises PromptTooLong, InvalidRequest for a prompt that cannot be read, and what
        FusedEngine.submit raises.
        """
        reading = asyncio.get_running_loop().run_in_executor(self._reading, self._read, source, plan)
        prompt, mixes = await reading
        text = self._codec.stream(prompt, stop)
        logprobs = _Logprobs(self._codec, text)
        reason: FinishReason = "stop"
        spans: tuple[Span, ...] = ()
        sampling = self._within_context(sampling, prompt)
        submitted = self._engine.submit(prompt.ids, mixes, sampling, request_id=request_id)
        async with aclosing(submitted) as events:
            async for event in events:
                on_tokens(len(event.token_ids))
                spans = event.spans
                delta = Delta(text.push(event.token_ids), logprobs.push(event.logprobs))
                if delta.text or delta.logprobs:
                    yield delta
                if text.stopped:
                    break
                if event.finish_reason is not None:
                    reason = event.finish_reason
        rest = Delta(text.finish(), logprobs.push(()))
        if text.stopped:
            reason = "stop"
        if rest.text or rest.logprobs:
            yield rest
        yield Finished(reason, len(prompt.ids), text.tokens, _reported_spans(spans, len(prompt.ids) + text.tokens))

    async def complete(
        self,
        source: Source | Prompt,
        plan: Mix | Plan | Planner,
        sampling: Sampling,
        *,
        request_id: str,
        stop: Sequence[str] = (),
    ) -> Completion:
        """The complete completion. Raises what `generate` raises."""
        completion = Completion()
        async with aclosing(self.generate(source, plan, sampling, request_id=request_id, stop=stop)) as pieces:
            async for piece in pieces:
                completion.add(piece)
        return completion

    def _read(self, source: Source | Prompt, plan: Mix | Plan | Planner) -> tuple[Prompt, Mix | Plan]:
        if isinstance(source, str):
            prompt = self._codec.encode(source)
        else:
            prompt = source if isinstance(source, Prompt) else self._codec.encode_chat(source)
        return prompt, plan if isinstance(plan, Mix | Plan) else plan(prompt)

    def _within_context(self, sampling: Sampling, prompt: Prompt) -> Sampling:
        room = self._codec.room(len(prompt.ids), sampling.max_tokens, default=self._default_max_tokens)
        return replace(sampling, max_tokens=room)


def _reported_spans(spans: Iterable[Span], tokens: int) -> tuple[Span, ...]:
    """The spans of the first `tokens` tokens: tokens after a stop string were generated but are not sent."""
    return tuple(
        Span(span.start, min(span.end, tokens), unqualified(span.mix)) for span in spans if span.start < tokens
    )


class _Logprobs:
    """Holds log-probabilities back while the text of their tokens is held back, so that they reveal no stop string."""

    def __init__(self, codec: TextCodec, text: TextStream) -> None:
        self._codec = codec
        self._text = text
        self._held: list[TokenLogprob] = []
        self._sent = 0

    def push(self, arrived: Iterable[TokenLogprob]) -> tuple[Logprob, ...]:
        self._held += arrived
        count = max(0, self._text.released - self._sent)
        released, self._held = self._held[:count], self._held[count:]
        first = self._sent
        self._sent += len(released)
        return tuple(self._logprob(logprob, first + number) for number, logprob in enumerate(released))

    def _logprob(self, logprob: TokenLogprob, number: int) -> Logprob:
        token = TokenText(*self._codec.token_text(logprob.token_id), logprob.logprob)
        top = tuple(TokenText(*self._codec.token_text(token), value) for token, value in logprob.top)
        return Logprob(token, top, self._text.offset(number))
