"""Answers questions under mixes, all in one engine: requests under different mixes share its batches.

A job is done once however many arms want it, and never again once it is in the journal.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.source import qualified
from dlp_core.engine.loading import Loaded
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import InvalidRequest, PromptTooLong
from dlp_core.eval.journal import Answer, Journal
from dlp_core.eval.likelihood import log_likelihoods, whole_prompts
from dlp_core.generation.generator import Generator
from dlp_core.generation.sentence_mixes import SentenceMixes
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.router import Router, Routing
from dlp_core.store.transfers import Progress, silent
from dlp_core.text.chat import Message
from dlp_core.text.codec import Prompt


@dataclass(frozen=True, slots=True)
class Job:
    """One question under one choice of adapters: an answer is generated, or `options` are judged."""

    text: str
    """The user's message."""
    mix: Mix = EMPTY_MIX
    """Of the prompt's first tokens, and of all that follow until something below says otherwise."""
    max_tokens: int = 0
    options: tuple[tuple[str, str], ...] = ()
    """Letters and answers whose likelihoods are asked for; nothing is generated then."""
    sentence: tuple[float, int] | None = None
    """Top-p and the most adapters that each sentence is routed with by itself, instead of `mix`."""
    parts: tuple[tuple[int, Mix], ...] = ()
    """From which character of the text on another mix applies to the prompt, ascending."""
    begun: tuple[tuple[str, Mix], ...] = ()
    """What the assistant has said already, and under which mixes."""
    stop: tuple[str, ...] = ()


class Answerer:
    """One engine over one bank, which it does not start or stop."""

    def __init__(
        self, loaded: Loaded, manifest: BankManifest, router: Router | None, journal: Journal, *, setup: str
    ) -> None:
        """`setup` names what answers depend on beside adapters and jobs: the base model and its precision."""
        self._loaded = loaded
        self._manifest = manifest
        self._router = router
        self._journal = journal
        self._setup = setup
        self._digests = {adapter.name: adapter.digest for adapter in manifest.adapters}
        self._numbers = count()

    async def answer(self, jobs: Iterable[Job], *, at_once: int, report: Progress = silent) -> dict[Job, Answer]:
        """The answers of all jobs, `at_once` in the engine at a time. Raises what the engine raises.

        Jobs with options need the model for themselves: no other call may run beside one that has them.
        """
        wanted = list(dict.fromkeys(jobs))
        found = {job: answer for job in wanted if (answer := self._journal.get(self._key(job))) is not None}

        def keep(job: Job, answer: Answer) -> None:
            self._journal.add(self._key(job), answer)
            found[job] = answer
            report(len(found), len(wanted))

        report(len(found), len(wanted))
        missing = [job for job in wanted if job not in found]
        if judged := [job for job in missing if job.options]:
            with whole_prompts(self._loaded.model):
                for job in judged:
                    keep(job, await self._judge(job))
        room = asyncio.Semaphore(at_once)
        generator = Generator(self._loaded.engine, self._loaded.codec)

        async def generate(job: Job) -> None:
            async with room:
                keep(job, await self._generate(generator, job))

        await together(generate(job) for job in missing if not job.options)
        return found

    async def _generate(self, generator: Generator, job: Job) -> Answer:
        prompt, plan = self._request(job)
        sampling = Sampling(max_tokens=min(job.max_tokens, self._loaded.engine.context - len(prompt.ids)))
        request_id = f"eval-{next(self._numbers)}"
        completion = await generator.complete(prompt, plan, sampling, request_id=request_id, stop=job.stop)
        assert completion.finished is not None
        spans = completion.finished.spans
        return Answer(completion.text, completion.finished.completion_tokens, len({span.mix for span in spans}))

    async def _judge(self, job: Job) -> Answer:
        prompt, plan = self._request(job)
        encode = self._loaded.tokenizer.encode
        end = self._loaded.tokenizer.eos_token_id
        answers = [[*encode(text, add_special_tokens=False), end] for _, text in job.options]
        async with self._loaded.residency.pinned(plan.names) as pins:
            scores = await asyncio.to_thread(
                log_likelihoods, self._loaded.model, self._loaded.fusion, prompt.ids, answers, plan=plan, pins=pins
            )
        letters = [letter for letter, _ in job.options]
        return Answer("", 0, len({mix for _, mix in plan.spans}), dict(zip(letters, scores, strict=True)))

    def _request(self, job: Job) -> tuple[Prompt, Plan]:
        """The prompt, with what the assistant has said at its end, and the plan."""
        codec = self._loaded.codec
        try:
            asked = codec.encode_chat([Message("user", job.text)])
        except PromptTooLong as error:
            raise InvalidRequest(
                f"the question {job.text[:60]!r} is too long ({error.message}); take it out"
            ) from error
        prompt, starts = asked, []
        for text, mix in job.begun:
            starts.append((len(prompt.ids), mix))
            prompt = codec.continued(prompt, text)
        if job.sentence is not None:
            return prompt, self._by_sentence(job, asked, prompt.ids[len(asked.ids) :])
        spans = [(0, self._qualified(job.mix))]
        start = asked.turns[0][0]
        for offset, mix in job.parts:
            _add(spans, asked.token_at(start + offset), self._qualified(mix))
        for position, mix in starts:
            _add(spans, position, self._qualified(mix))
        return prompt, Plan(tuple(spans))

    def _by_sentence(self, job: Job, prompt: Prompt, begun: Sequence[int]) -> Plan:
        """As a server plans such a request (dlp_core/generation/sentence_mixes.py), whose completion has `begun`."""
        assert job.sentence is not None
        assert self._router is not None
        top_p, max_adapters = job.sentence

        def choose(routing: Routing) -> Mix:
            return self._qualified(routing.mix(top_p=top_p, max_adapters=max_adapters))

        mixes = SentenceMixes(self._router.route_first, choose, max_adapters=self._loaded.config.slots)
        plan = mixes.plan(prompt, [job.text], self._loaded.codec.stream(prompt))
        assert plan.follow is not None
        spans = list(plan.spans)
        for place, token in enumerate(begun, start=len(prompt.ids)):
            if (mix := plan.follow(token)) is not None:
                _add(spans, place, mix)
        return Plan(tuple(spans), plan.follow)

    def _qualified(self, mix: Mix) -> Mix:
        return qualified(mix, self._manifest)

    def _key(self, job: Job) -> str:
        content: dict[str, Any] = asdict(job) | {"setup": self._setup}
        named = {name for mix in _mixes(job) for name in mix.names}
        if job.sentence is not None and self._manifest.router is not None:
            content["router"] = self._manifest.router.digest
            named |= set(self._manifest.router.labels)
        content["adapters"] = {name: self._digests[name] for name in sorted(named)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Waits for all of it. The first error is raised itself, which a TaskGroup would wrap, once the rest has ended."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _mixes(job: Job) -> list[Mix]:
    return [job.mix, *(mix for _, mix in job.parts), *(mix for _, mix in job.begun)]


def _add(spans: list[tuple[int, Mix]], position: int, mix: Mix) -> None:
    """Lets `mix` apply from a position on, at or after that of the last span."""
    if spans[-1][0] == position:
        spans.pop()
    if not spans or spans[-1][1] != mix:
        spans.append((position, mix))
