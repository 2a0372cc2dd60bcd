"""From a request's text to the pieces of its completion: tokens, plan, engine, text. Imports torch.

The model runs on the engine's own thread, tokenising and planning on another; the replica's event loop only passes
tokens on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from deployments.args import AppArgs
from deployments.observe.metrics import TokenStopwatch
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.source import qualified, unqualified
from dlp_core.decision import choose
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Plan, Sampling, TokenLogprob
from dlp_core.generation.messages import Delta, Finished, FinishReason, GenerationRequest, Logprob, TokenText
from dlp_core.generation.sentence_mixes import SentenceMixes
from dlp_core.mix import Span
from dlp_core.router import Router, restricted
from dlp_core.text.chat import routing_texts
from dlp_core.text.codec import Prompt, TextCodec, TextStream


class Completions:
    """The completions of one engine. Use from one event loop."""

    def __init__(self, engine: FusedEngine, codec: TextCodec, args: AppArgs) -> None:
        self._engine = engine
        self._codec = codec
        self._args = args
        # one thread: a tokenizer is not made for several, and one keeps a flood of long prompts off the cores
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    async def pieces(
        self, request: GenerationRequest, bank: BankManifest, router: Router | None, stopwatch: TokenStopwatch
    ) -> AsyncGenerator[Delta | Finished, None]:
        """Any number of deltas, then what was finished. `router` is needed where sentences are routed one by one."""
        prompt, plan = await asyncio.get_running_loop().run_in_executor(
            self._reading, self._read, request, bank, router
        )
        text = self._codec.stream(prompt, request.stop)
        logprobs = _Logprobs(self._codec, text)
        reason: FinishReason = "stop"
        submitted = self._engine.submit(
            prompt.ids, plan, self._sampling(request, prompt), request_id=request.request_id
        )
        async with aclosing(submitted) as events:
            async for event in events:
                stopwatch.tokens(len(event.token_ids))
                delta = text.push(event.token_ids)
                found = logprobs.push(event.logprobs)
                if delta or found:
                    yield Delta(delta, found)
                if text.stopped:
                    break
                if event.finish_reason is not None:
                    reason = event.finish_reason
        rest = text.finish()
        found = logprobs.push(())
        if rest or found:
            yield Delta(rest, found)
        total = len(prompt.ids) + text.tokens
        spans = tuple(
            Span(span.start, min(span.end, total), unqualified(span.mix)) for span in event.spans if span.start < total
        )
        yield Finished(reason, len(prompt.ids), text.tokens, spans)

    def _read(self, request: GenerationRequest, bank: BankManifest, router: Router | None) -> tuple[Prompt, Plan]:
        texts: tuple[str, ...]
        if isinstance(request.source, str):
            prompt, texts = self._codec.encode(request.source), (request.source,)
        else:
            prompt, texts = self._codec.encode_chat(request.source), routing_texts(request.source)
        options = request.by_sentence
        if options is None or router is None:
            return prompt, Plan.of(qualified(request.mix, bank))
        mixes = SentenceMixes(
            restricted(router, options.allowed).route_first,
            lambda routing: qualified(choose(options, routing)[0], bank),
            max_adapters=self._args.engine.slots - len(self._args.pinned_adapters),
        )
        return prompt, mixes.plan(prompt, texts, self._codec.stream(prompt))

    def _sampling(self, request: GenerationRequest, prompt: Prompt) -> Sampling:
        default = self._args.limits.default_max_tokens
        return Sampling(
            max_tokens=self._codec.room(len(prompt.ids), request.max_tokens, default=default),
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            logprobs=request.logprobs,
            ignore_eos=request.ignore_eos,
        )


class _Logprobs:
    """Holds log-probabilities back as long as the text of their tokens is: no stop string leaks through them."""

    def __init__(self, codec: TextCodec, text: TextStream) -> None:
        self._codec = codec
        self._text = text
        self._held: list[TokenLogprob] = []
        self._sent = 0

    def push(self, found: Iterable[TokenLogprob]) -> tuple[Logprob, ...]:
        self._held += found
        count = max(0, self._text.released - self._sent)
        released, self._held = self._held[:count], self._held[count:]
        first = self._sent
        self._sent += len(released)
        return tuple(self._logprob(one, first + number) for number, one in enumerate(released))

    def _logprob(self, one: TokenLogprob, number: int) -> Logprob:
        token = TokenText(*self._codec.token_text(one.token_id), one.logprob)
        top = tuple(TokenText(*self._codec.token_text(token), value) for token, value in one.top)
        return Logprob(token, top, self._text.offset(number))
