"""Answer questions under mixes in one engine: requests under different mixes share its batches.

A job runs once however many arms need it, and never again once the journal has its answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from typing import Any

from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.source import BankSource, qualified
from dlp_core.engine.activation import activated, plain_before
from dlp_core.engine.loading import Loaded
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import InvalidRequest, PromptTooLong
from dlp_core.eval.arms import JudgedActivation
from dlp_core.eval.journal import Answer, Journal
from dlp_core.eval.likelihood import log_likelihoods, unpaged_attention
from dlp_core.generation.generator import Generator
from dlp_core.generation.sentence_mixes import SentenceMixes
from dlp_core.mix import EMPTY_MIX, Mix, resolve
from dlp_core.router import Router, Routing
from dlp_core.router.passages import PRICES, passages_first
from dlp_core.store.transfers import Progress, silent
from dlp_core.text.chat import Message, routing_texts
from dlp_core.text.codec import Prompt
from dlp_core.together import Pair


@dataclass(frozen=True, slots=True)
class Job:
    """One question under one choice of adapters: generates an answer, or scores `options`."""

    text: str
    """The user's message."""
    mix: Mix = EMPTY_MIX
    """Applies from the first prompt token until `parts` or `begun` changes it."""
    max_tokens: int = 0
    options: tuple[tuple[str, str], ...] = ()
    """Letter and text of each option to score; when set, nothing is generated."""
    sentence: tuple[float, int] | None = None
    """`(top_p, max_adapters)` to route each sentence on its own, instead of `mix`."""
    parts: tuple[tuple[int, Mix], ...] = ()
    """`(offset, mix)` in ascending order: `mix` applies to the prompt from that character of `text` on."""
    begun: tuple[tuple[str, Mix], ...] = ()
    """`(text, mix)` of each stretch of the answer that the assistant has already given."""
    stop: tuple[str, ...] = ()
    before: tuple[Message, ...] = ()
    """The conversation before `text`."""
    activation: JudgedActivation = "always"
    """Where `mix` runs; not of jobs by sentence."""
    apart: Pair | None = None
    """With `sentence`: a pair of adapters that no mix of it has, whatever the bank allows."""

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.before, Message("user", self.text))


class Answerer:
    """Answers jobs with one engine over one bank. The caller starts and stops the engine."""

    def __init__(
        self,
        loaded: Loaded,
        manifest: BankManifest,
        router: Router | None,
        journal: Journal,
        *,
        setup: str,
        source: BankSource | None = None,
    ) -> None:
        """`setup` names what answers depend on besides adapters and jobs: the base model and its precision. `source`
        has the chat templates that adapters bring."""
        self._loaded = loaded
        self._manifest = manifest
        self._router = router
        self._journal = journal
        self._setup = setup
        self._source = source
        self._digests = {adapter.name: adapter.digest for adapter in manifest.adapters}
        self._request_numbers = count()

    async def answer(self, jobs: Iterable[Job], *, concurrency: int, report: Progress = silent) -> dict[Job, Answer]:
        """Answer all jobs, at most `concurrency` in the engine at a time. Raises what the engine raises.

        Jobs with options need the model to themselves: no other call may run at the same time.
        """
        unique = list(dict.fromkeys(jobs))
        answers = {job: answer for job in unique if (answer := self._journal.get(self._key(job))) is not None}

        def record(job: Job, answer: Answer) -> None:
            self._journal.add(self._key(job), answer)
            answers[job] = answer
            report(len(answers), len(unique))

        report(len(answers), len(unique))
        pending = [job for job in unique if job not in answers]
        if scoring := [job for job in pending if job.options]:
            with unpaged_attention(self._loaded.model):
                for job in scoring:
                    record(job, await self._score_options(job))
        semaphore = asyncio.Semaphore(concurrency)
        generator = Generator(self._loaded.engine, self._loaded.codec)

        async def generate(job: Job) -> None:
            async with semaphore:
                record(job, await self._generate(generator, job))

        await run_all(generate(job) for job in pending if not job.options)
        return answers

    async def _generate(self, generator: Generator, job: Job) -> Answer:
        started = time.perf_counter()
        prompt, plan = self._request(job)
        sampling = Sampling(max_tokens=min(job.max_tokens, self._loaded.engine.context - len(prompt.ids)))
        request_id = f"eval-{next(self._request_numbers)}"
        completion = await generator.complete(prompt, plan, sampling, request_id=request_id, stop=job.stop)
        assert completion.finished is not None
        return Answer(
            completion.text,
            completion.finished.completion_tokens,
            len({span.mix for span in completion.finished.spans}),
            prompt_tokens=len(prompt.ids),
            seconds=_since(started),
        )

    async def _score_options(self, job: Job) -> Answer:
        started = time.perf_counter()
        prompt, plan = self._request(job)
        encode = self._loaded.tokenizer.encode
        end = self._loaded.tokenizer.eos_token_id
        answers = [[*encode(text, add_special_tokens=False), end] for _, text in job.options]
        plan = activated(plan, prompt.ids, self._loaded.residency.invocation)
        async with self._loaded.residency.pinned(plan.names) as pins:
            [scores] = await asyncio.to_thread(
                log_likelihoods, self._loaded.model, self._loaded.fusion, prompt.ids, answers, plans=[plan], pins=pins
            )
        letters = [letter for letter, _ in job.options]
        return Answer(
            "",
            0,
            len({mix for _, mix in plan.spans}),
            dict(zip(letters, scores, strict=True)),
            prompt_tokens=len(prompt.ids),
            seconds=_since(started),
        )

    def _request(self, job: Job) -> tuple[Prompt, Plan]:
        """The prompt, ending in what the assistant has already said, and the plan."""
        codec = self._loaded.codec
        try:
            chat = codec.encode_chat(job.messages, chat_template=self._chat_template(job))
        except PromptTooLong as error:
            raise InvalidRequest(
                f"the question {job.text[:60]!r} is too long ({error.message}); remove it from the suite"
            ) from error
        prompt, starts = chat, []
        for text, mix in job.begun:
            starts.append((len(prompt.ids), mix))
            prompt = codec.continued(prompt, text)
        if job.sentence is not None:
            return prompt, self._plan_by_sentence(job, chat, prompt.ids[len(chat.ids) :])
        spans = [(0, self._qualified(job.mix))]
        text_start = chat.turns[-1][0]
        for offset, mix in job.parts:
            _add(spans, chat.token_at(text_start + offset), self._qualified(mix))
        for position, mix in starts:
            _add(spans, position, self._qualified(mix))
        plan = Plan(tuple(spans))
        if job.activation != "always":
            plan = plain_before(plan, chat.token_at(chat.last_turn))
        if job.activation == "prompt":
            plan = Plan((*plan.spans, (len(prompt.ids), EMPTY_MIX)))
        return prompt, plan

    def _chat_template(self, job: Job) -> str | None:
        """As a server chooses it: that of an adapter which serves alone, if it brings one."""
        mixes = set(_mixes(job))
        if self._source is None or job.sentence is not None or len(mixes) != 1 or len(job.mix.names) != 1:
            return None
        return self._source.chat_template(self._qualified(job.mix).names[0])

    def _plan_by_sentence(self, job: Job, prompt: Prompt, begun: Sequence[int]) -> Plan:
        """Plan as a server does (dlp_core/generation/sentence_mixes.py) when `begun` tokens are already generated."""
        assert job.sentence is not None
        assert self._router is not None
        top_p, max_adapters = job.sentence
        together = replace(self._manifest.together, apart=job.apart)

        def choose(routing: Routing) -> Mix:
            names = routing.mix(top_p=top_p, max_adapters=max_adapters, together=together)
            return self._qualified(resolve(names, self._manifest.recipe_mixes, max_adapters=max_adapters))

        divide = partial(passages_first, self._router)
        mixes = SentenceMixes(divide, choose, max_adapters=self._loaded.config.slots)
        plan = mixes.plan(prompt, routing_texts(job.messages), self._loaded.codec.stream(prompt))
        if plan.follow is None:
            return plan
        spans = list(plan.spans)
        for position, token in enumerate(begun, start=len(prompt.ids)):
            if (mix := plan.follow(token)) is not None:
                _add(spans, position, mix)
        return Plan(tuple(spans), plan.follow)

    def _qualified(self, mix: Mix) -> Mix:
        return qualified(mix, self._manifest)

    def _key(self, job: Job) -> str:
        content: dict[str, Any] = _without_remarks(asdict(job)) | {"setup": self._setup}
        if not job.before:
            del content["before"]  # as in journals of before there were conversations
        if job.activation == "always":
            del content["activation"]  # and of before there was a choice
        if job.apart is None:
            del content["apart"]
        adapters = {name for mix in _mixes(job) for name in mix.names}
        if job.sentence is not None and self._manifest.router is not None:
            content["router"] = self._manifest.router.digest
            content["passages"] = asdict(PRICES)
            labels, recipes = set(self._manifest.router.labels), self._manifest.recipe_mixes
            adapters |= (labels - recipes.keys()) | {name for mix in recipes.values() for name in mix.names}
            if recipes:
                content["recipes"] = {name: str(mix.adapters) for name, mix in recipes.items()}
            if self._manifest.allowed_together is not None:
                content["allowed_together"] = self._manifest.allowed_together
        content["adapters"] = {name: self._digests[name] for name in sorted(adapters)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


async def run_all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all coroutines. Cancels the rest on the first error and raises it unwrapped, unlike a TaskGroup."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _without_remarks(content: Any) -> Any:
    """What is answered does not depend on the recipes that a mix comes from, nor on what was left out of it."""
    if isinstance(content, dict):
        return {name: _without_remarks(value) for name, value in content.items() if name not in ("recipes", "left_out")}
    return [_without_remarks(value) for value in content] if isinstance(content, tuple | list) else content


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 4)


def _mixes(job: Job) -> list[Mix]:
    return [job.mix, *(mix for _, mix in job.parts), *(mix for _, mix in job.begun)]


def _add(spans: list[tuple[int, Mix]], position: int, mix: Mix) -> None:
    """Let `mix` apply from `position` on, which must not precede the last span."""
    if spans[-1][0] == position:
        spans.pop()
    if not spans or spans[-1][1] != mix:
        spans.append((position, mix))
