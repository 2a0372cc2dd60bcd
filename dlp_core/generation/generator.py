"""Turns a prompt and a plan into the pieces of a completion: tokens, text, log-probabilities, spans.

The model runs on the engine's own thread, tokenising and planning on another; the event loop only forwards tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from dlp_core.bank.source import unqualified
from dlp_core.engine.protocol import Engine
from dlp_core.engine.request import FinishReason, Plan, Sampling, TokenLogprob
from dlp_core.generation.messages import (
    Completion,
    Delta,
    EndReason,
    Finished,
    Logprob,
    Piece,
    Source,
    TokenIds,
    TokenText,
)
from dlp_core.generation.planning import Planner
from dlp_core.generation.tasks import BETWEEN, JoinedSpans, Task
from dlp_core.generation.tool_calls import PlainReader, ReadStream, check_tools, named_as_tools
from dlp_core.mix import Mix, Span
from dlp_core.text.codec import Prompt, TextCodec, TextStream
from dlp_core.text.tools import CallReader, CallReaders, Tools

T = TypeVar("T")


class Generator:
    """Generates completions with one engine, which it neither starts nor stops. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        codec: TextCodec,
        *,
        calls: CallReaders | None = None,
        default_max_tokens: int | None = None,
    ) -> None:
        """`calls` finds the calls of tools in this model's answers; without it, nothing may be called.
        `default_max_tokens` limits completions whose sampling sets no limit, in addition to the context window."""
        self._engine = engine
        self._codec = codec
        self._calls = calls
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
        echo: bool = False,
        prompt_only: bool = False,
        add_special_tokens: bool | None = None,
        chat_template: str | None = None,
        tools: Tools | None = None,
        stream: bool = True,
        on_tokens: Callable[[int], object] = lambda count: None,
    ) -> AsyncGenerator[Piece, None]:
        """Yield any number of Delta, then one Finished. Closing the generator aborts the request.

        `echo`, `prompt_only`, `add_special_tokens`, `tools` and `stream` are those of GenerationRequest;
        `chat_template` replaces the model's. `on_tokens(count)` is called when `count` tokens arrive together. The
        spans use the bank's names, without a version. Raises PromptTooLong, InvalidRequest for a prompt that cannot be
        read or tools that cannot be called, and what Engine.submit raises.
        """
        check_tools(tools, self._calls)
        prompt, mixes = await self._in_order(self._read, source, plan, add_special_tokens, chat_template, tools)
        if isinstance(mixes, tuple):
            answered = self._answer_each(mixes, sampling, request_id=request_id, stop=stop, on_tokens=on_tokens)
            async with aclosing(answered) as pieces:
                async for piece in pieces:
                    yield piece
            return
        reader = await self._reader(tools, prompt, stream=stream)
        text = self._codec.stream(prompt, stop, special_tokens=reader.special_tokens)
        answer = ReadStream(text, reader)
        logprobs = _Logprobs(self._codec, text, begin=len(prompt.text) if echo else 0)
        reason: FinishReason = "stop"
        spans: tuple[Span, ...] = ()
        cached_tokens = 0
        sampling = replace(sampling, max_tokens=1) if prompt_only else self._within_context(sampling, prompt)
        if reader.schema is not None:
            sampling = replace(sampling, response_format=reader.schema)
        echoed = not echo
        submitted = self._engine.submit(
            prompt.ids,
            mixes,
            sampling,
            request_id=request_id,
            prompt_logprobs=sampling.logprobs if echo else None,
        )
        async with named_as_tools(reader), aclosing(submitted) as events:
            async for event in events:
                begun = len(event.spans) > max(1, len(spans))
                spans, cached_tokens = event.spans, event.cached_tokens
                if not echoed:
                    echoed = True
                    yield Delta(prompt.text, self._prompt_logprobs(prompt, event.prompt_logprobs))
                if prompt_only:
                    reason = "length"
                    break
                on_tokens(len(event.token_ids))
                read = answer.push(event.token_ids)
                told = _reported_spans(spans, len(prompt.ids) + text.tokens) if begun else ()
                delta = Delta(read.text, logprobs.push(event.logprobs), read.calls, told)
                if delta.text or delta.logprobs or delta.calls or delta.spans:
                    yield delta
                if text.stopped:
                    break
                if event.finish_reason is not None:
                    reason = event.finish_reason
        read = answer.finish()
        rest = Delta(read.text, logprobs.push(()), read.calls)
        if text.stopped:
            reason = "stop"
        if rest.text or rest.logprobs or rest.calls:
            yield rest
        spans = _reported_spans(spans, len(prompt.ids) + text.tokens)
        yield Finished(answer.end_reason(reason, tools), len(prompt.ids), text.tokens, spans, cached_tokens)

    async def _answer_each(
        self,
        tasks: Sequence[Task],
        sampling: Sampling,
        *,
        request_id: str,
        stop: Sequence[str],
        on_tokens: Callable[[int], object],
    ) -> AsyncGenerator[Piece, None]:
        """The answers to the tasks as one completion, with an empty line between. The limit of tokens is that of all; a
        stop string ends the answer to one."""
        read = [await self._in_order(self._read, task.messages, task.plan, None, None, None) for task in tasks]
        prompts = [(prompt, mixes) for prompt, mixes in read if isinstance(mixes, Plan)]
        spans = JoinedSpans([(len(prompt.ids), plan) for prompt, plan in prompts])
        prompt_tokens, tokens, length = sum(len(prompt.ids) for prompt, _ in prompts), 0, 0
        reason: EndReason = "length"
        for number, (prompt, plan) in enumerate(prompts):
            left = None if sampling.max_tokens is None else sampling.max_tokens - tokens
            if left == 0:
                reason = "length"
                break
            if number:
                length += len(BETWEEN)
                yield Delta(BETWEEN)
            begun, at = False, length
            answer = self.generate(
                prompt,
                plan,
                replace(sampling, max_tokens=left),
                request_id=f"{request_id}-task-{number}",
                stop=stop,
                on_tokens=on_tokens,
            )
            async with aclosing(answer) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Finished):
                        reason = piece.finish_reason
                        tokens += piece.completion_tokens
                        spans.set(number, piece.spans)
                        continue
                    told: tuple[Span, ...] = ()
                    if not begun:
                        begun = True
                        last = unqualified(plan.spans[-1][1])
                        spans.set(number, [*spans.prompt(number), Span(len(prompt.ids), len(prompt.ids) + 1, last)])
                        told = spans.joined()
                    length += len(piece.text)
                    moved = tuple(replace(each, offset=each.offset + at) for each in piece.logprobs)
                    yield replace(piece, logprobs=moved, spans=told)
        yield Finished(reason, prompt_tokens, tokens, spans.joined())

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of a prompt that comes as token ids. Raises PromptTooLong, or InvalidRequest if there are none."""
        prompt = await self._in_order(self._codec.decode_prompt, ids)
        return prompt.text

    async def _in_order(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, partial(work, *args))

    async def complete(
        self,
        source: Source | Prompt,
        plan: Mix | Plan | Planner,
        sampling: Sampling,
        *,
        request_id: str,
        stop: Sequence[str] = (),
        echo: bool = False,
        prompt_only: bool = False,
    ) -> Completion:
        """The complete completion. Raises what `generate` raises."""
        completion = Completion()
        generated = self.generate(
            source, plan, sampling, request_id=request_id, stop=stop, echo=echo, prompt_only=prompt_only
        )
        async with aclosing(generated) as pieces:
            async for piece in pieces:
                completion.add(piece)
        return completion

    async def _reader(self, tools: Tools | None, prompt: Prompt, *, stream: bool) -> CallReader:
        if tools is None or tools.choice == "none" or self._calls is None:
            return PlainReader()
        return await self._in_order(partial(self._calls.reader, tools, prompt.ids, stream=stream))

    def _read(
        self,
        source: Source | Prompt,
        plan: Mix | Plan | Planner,
        add_special_tokens: bool | None,
        chat_template: str | None,
        tools: Tools | None,
    ) -> tuple[Prompt, Mix | Plan | tuple[Task, ...]]:
        if isinstance(source, Prompt):
            prompt = source
        elif isinstance(source, TokenIds):
            prompt = self._codec.decode_prompt(source.ids)
        elif isinstance(source, str):
            prompt = self._codec.encode(source, add_special_tokens=add_special_tokens is not False)
        else:
            prompt = self._codec.encode_chat(
                source,
                tools=None if tools is None else tools.schemas,
                chat_template=chat_template,
                add_special_tokens=add_special_tokens is True,
            )
        return prompt, plan if isinstance(plan, Mix | Plan) else plan(prompt)

    def _prompt_logprobs(self, prompt: Prompt, logprobs: Sequence[TokenLogprob | None]) -> tuple[Logprob, ...]:
        offsets = [0, *prompt.ends]
        found = []
        for token_id, score, offset in zip(prompt.ids, logprobs, offsets, strict=False):
            if score is None:
                found.append(Logprob(TokenText(*self._codec.token_text(token_id), None), (), offset))
            else:
                found.append(_logprob(self._codec, score, offset))
        return tuple(found)

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

    def __init__(self, codec: TextCodec, text: TextStream, *, begin: int) -> None:
        """`begin` is where the completion's text begins in the answer."""
        self._codec = codec
        self._text = text
        self._begin = begin
        self._held: list[TokenLogprob] = []
        self._sent = 0

    def push(self, arrived: Iterable[TokenLogprob]) -> tuple[Logprob, ...]:
        self._held += arrived
        count = max(0, self._text.released - self._sent)
        released, self._held = self._held[:count], self._held[count:]
        first = self._sent
        self._sent += len(released)
        return tuple(
            _logprob(self._codec, logprob, self._begin + self._text.offset(first + number))
            for number, logprob in enumerate(released)
        )


def _logprob(codec: TextCodec, logprob: TokenLogprob, offset: int) -> Logprob:
    token = TokenText(*codec.token_text(logprob.token_id), logprob.logprob)
    return Logprob(token, tuple(TokenText(*codec.token_text(token), value) for token, value in logprob.top), offset)
