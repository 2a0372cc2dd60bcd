"""Answers match those of a server, likelihoods match the plain model, and no job runs twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlp_core.adapter.names import unqualify
from dlp_core.adapter.weights import read_adapter
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.source import qualified
from dlp_core.engine.loading import Loaded
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import InvalidRequest
from dlp_core.eval.answers import Answerer, Job
from dlp_core.eval.journal import Answer, Journal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.generation.generator import Generator
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.router import Routing
from dlp_core.text.chat import Message
from tests.support.eval_bank import TASKS, running, write_bank, write_base

pytestmark = pytest.mark.model

TASKS_IN_ORDER = list(TASKS)
TEXT = TASKS["sql"].format(7)
OPTIONS = (("A", "(A) the user"), ("B", "(B) the assistant speaks"), ("C", "(C) é"))
BOTH = Mix.of({"sql": 0.7, "dates": 0.3})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("bank"), base)


@pytest.fixture
def bank(folder: Path, tmp_path: Path) -> Iterator[JudgedBank]:
    with open_bank(str(folder), DiskCache(tmp_path / "cache", 10**9)) as bank:
        yield bank


def answerer(loaded: Loaded, bank: JudgedBank, journal: Journal) -> Answerer:
    return Answerer(loaded, bank.manifest, bank.router, journal, setup="test")


def summed(base: Path, folder: Path, mix: Mix) -> Any:
    """The plain model with exactly this sum of LoRAs merged into its weights."""
    model = AutoModelForCausalLM.from_pretrained(base)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for part in mix.adapters:
            for path, lora in read_adapter(folder / "adapters" / part.name, name=part.name).modules.items():
                modules[path].weight += part.weight * lora.scaling * (lora.b_OR.float() @ lora.a_RD.float())
    return model


def prompt_ids(tokenizer: Any) -> list[int]:
    turns = [{"role": "user", "content": TEXT}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


@torch.no_grad()
def likelihood_alone(model: Any, prompt: list[int], answer: list[int]) -> float:
    logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) + n - 1, token]) for n, token in enumerate(answer))


@pytest.mark.parametrize("mix", [EMPTY_MIX, Mix.of({"sql": 1.0}), BOTH])
async def test_likelihoods_are_those_of_the_plain_model_with_the_summed_weights(
    base: Path, folder: Path, bank: JudgedBank, mix: Mix
) -> None:
    async with running(base, bank) as loaded:
        job = Job(TEXT, mix, options=OPTIONS)
        answer = (await answerer(loaded, bank, Journal(None)).answer([job], concurrency=4))[job]
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = prompt_ids(tokenizer)
    model = summed(base, folder, mix)
    assert answer.likelihoods is not None
    for letter, text in OPTIONS:
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        assert answer.likelihoods[letter] == pytest.approx(likelihood_alone(model, prompt, ids), rel=1e-4)


async def test_an_arm_says_where_its_mix_runs(base: Path, bank: JudgedBank) -> None:
    """All along, from the last user turn on, or in that turn alone: likelihoods and answers are those of such plans."""
    before = (Message("user", "and 3"), Message("assistant", "of"))
    jobs = {
        activation: Job(TEXT, BOTH, max_tokens=4, before=before, activation=activation)
        for activation in ("always", "turn", "prompt")
    }
    async with running(base, bank) as loaded:
        prompt = loaded.codec.encode_chat([*before, Message("user", TEXT)])
        turn, end, mix = prompt.token_at(prompt.last_turn), len(prompt.ids), qualified(BOTH, bank.manifest)
        assert 0 < turn < end
        plans = {
            "always": Plan(((0, mix),)),
            "turn": Plan(((0, EMPTY_MIX), (turn, mix))),
            "prompt": Plan(((0, EMPTY_MIX), (turn, mix), (end, EMPTY_MIX))),
        }
        evaluator = answerer(loaded, bank, Journal(None))
        answers = await evaluator.answer(jobs.values(), concurrency=3)
        scored = [replace(job, max_tokens=0, options=OPTIONS) for job in jobs.values()]
        likelihoods = [(await evaluator.answer([job], concurrency=1))[job].likelihoods for job in scored]
        for activation, plan in plans.items():
            generator = Generator(loaded.engine, loaded.codec)
            completion = await generator.complete(prompt, plan, Sampling(max_tokens=4), request_id=activation)
            assert completion.finished is not None
            answer = answers[jobs[activation]]
            assert (answer.text, answer.mixes) == (
                completion.text,
                len({span.mix for span in completion.finished.spans}),
            )
            assert completion.finished.spans[-1].mix == (EMPTY_MIX if activation == "prompt" else BOTH)
    assert len({str(found) for found in likelihoods}) == 3
    assert len({evaluator._key(job) for job in jobs.values()}) == 3


async def test_a_likelihood_follows_mixes_that_change_inside_the_prompt(base: Path, bank: JudgedBank) -> None:
    """Judging an answer under a plan, and generating it under the same plan, must see the same model."""
    job = {"text": TEXT, "mix": Mix.of({"cron": 1.0}), "parts": ((10, Mix.of({"sql": 1.0})), (20, BOTH))}
    async with running(base, bank) as loaded:
        evaluator = answerer(loaded, bank, Journal(None))
        generate = Job(**job, max_tokens=3)
        text = (await evaluator.answer([generate], concurrency=1))[generate].text
        others = [Job(**job, options=(("A", text), ("B", text[::-1] + "x"))), Job(TEXT, options=(("A", text),))]
        answers = await evaluator.answer(others, concurrency=1)
        prompt = loaded.codec.encode_chat([Message("user", TEXT)])
        start = prompt.turns[0][0]
        spans = (
            (0, job["mix"]),
            (prompt.token_at(start + 10), job["parts"][0][1]),
            (prompt.token_at(start + 20), BOTH),
        )
        plan = Plan(tuple((at, qualified(mix, bank.manifest)) for at, mix in spans))
        events = [
            event
            async for event in loaded.engine.submit(
                prompt.ids, plan, Sampling(max_tokens=3, logprobs=1), request_id="with logprobs"
            )
        ]
    picked = sum(logprob.logprob for event in events for logprob in event.logprobs)
    under_plan = answers[others[0]].likelihoods
    plain = answers[others[1]].likelihoods
    assert under_plan is not None
    assert plain is not None
    assert under_plan["A"] > under_plan["B"]
    assert under_plan["A"] < picked, "it also counts the end-of-turn token"
    assert under_plan["A"] != pytest.approx(plain["A"], abs=1e-3)


@pytest.mark.parametrize("prefix", ["", "the user and "])
async def test_generated_answers_are_those_of_the_model_with_the_summed_weights(
    base: Path, folder: Path, bank: JudgedBank, prefix: str
) -> None:
    jobs = [
        Job(TEXT, mix, max_tokens=8, begun=((prefix, mix),) if prefix else ())
        for mix in (EMPTY_MIX, BOTH, Mix.of({"cron": 1.0}))
    ]
    async with running(base, bank) as loaded:
        answers = await answerer(loaded, bank, Journal(None)).answer(jobs, concurrency=3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for job in jobs:
        ids = [*prompt_ids(tokenizer), *tokenizer.encode(prefix, add_special_tokens=False)]
        out = summed(base, folder, job.mix).generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
        assert answers[job].text == tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).rstrip("\ufffd")
        assert answers[job].tokens == 8


async def test_an_answer_ends_at_its_stop_string(base: Path, bank: JudgedBank) -> None:
    async with running(base, bank) as loaded:
        evaluator = answerer(loaded, bank, Journal(None))
        unstopped = Job(TEXT, BOTH, max_tokens=8)
        text = (await evaluator.answer([unstopped], concurrency=1))[unstopped].text
        stopped = Job(TEXT, BOTH, max_tokens=8, stop=(text[3:5],))
        assert (await evaluator.answer([stopped], concurrency=1))[stopped].text == text[: text.index(text[3:5])]


class ByNumberWords:
    """A router that knows prompts by one of three words, and takes two of them for no prompt at all."""

    labels = TASKS_IN_ORDER
    encoder = SimpleNamespace(most_parts=16)

    def route(self, texts: Sequence[str]) -> list[Routing]:
        return [self._routing(text) for text in texts]

    def route_first(self, choices: Sequence[Sequence[str]]) -> list[Routing]:
        return self.route([texts[0] for texts in choices])

    def read_runs(self, parts: Sequence[str], runs: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
        found = self.route(["".join(parts[first:last]) for first, last in runs])
        return np.array([list(one.probabilities.values()) for one in found]), np.array([one.margin for one in found])

    def _routing(self, text: str) -> Routing:
        said = [word in text for word in ("One", "Two", "Three")]
        probabilities = {task: float(here) for task, here in zip(self.labels, said, strict=True)}
        return Routing.of(probabilities, margin=9.0 if sum(said) == 1 else -9.0)


async def test_by_sentence_every_passage_and_its_answer_have_its_mix(base: Path, bank: JudgedBank) -> None:
    text = "1. One is. Really.\n\n2. Two are.\n\n3. Three"
    job = Job(text, max_tokens=2, sentence=(0.9, 3), begun=(("1. First. Yes\n2. Second", EMPTY_MIX),))
    single = Job("One is. Really.", max_tokens=2, sentence=(0.9, 3))
    async with running(base, bank) as loaded:
        evaluator = Answerer(loaded, bank.manifest, ByNumberWords(), Journal(None), setup="x")  # type: ignore[arg-type]
        found = (await evaluator.answer([job], concurrency=1))[job]
        prompt, plan = evaluator._request(job)
        asked_tokens = len(loaded.codec.encode_chat([Message("user", job.text)]).ids)
        _, whole = evaluator._request(single)
        assert whole == evaluator._request(replace(single, sentence=None, mix=Mix.of({TASKS_IN_ORDER[0]: 1.0})))[1]
    assert (found.tokens, found.mixes) == (2, 3)
    assert [unqualify(mix.names[0]) for _, mix in plan.spans] == [TASKS_IN_ORDER[number] for number in (0, 1, 2, 0, 1)]
    assert [position > asked_tokens for position, _ in plan.spans] == [False, False, False, False, True]
    assert plan.spans[-1][0] < len(prompt.ids)


class OfAll:
    """A router that finds all of a bank's tasks in every text."""

    labels = TASKS_IN_ORDER
    encoder = SimpleNamespace(most_parts=16)

    def route_first(self, choices: Sequence[Sequence[str]]) -> list[Routing]:
        return [Routing.of({"cron": 0.5, "dates": 0.3, "sql": 0.2})] * len(choices)


async def test_by_sentence_the_bank_or_the_job_keeps_a_pair_apart(base: Path, bank: JudgedBank) -> None:
    job = Job("One", max_tokens=2, sentence=(1.0, 3))
    apart = replace(job, apart=("cron", "dates"))
    listed = bank.manifest.model_copy(update={"allowed_together": (("cron", "dates"),)})
    async with running(base, bank) as loaded:

        def planned(manifest: BankManifest, job: Job) -> tuple[tuple[str, ...], str]:
            evaluator = Answerer(loaded, manifest, OfAll(), Journal(None), setup="x")  # type: ignore[arg-type]
            [(_, mix)] = evaluator._request(job)[1].spans
            return tuple(map(unqualify, mix.names)), evaluator._key(job)

        found = [planned(*asked) for asked in ((bank.manifest, job), (bank.manifest, apart), (listed, job))]
    assert [names for names, _ in found] == [("cron", "dates", "sql"), ("cron", "sql"), ("cron", "dates")]
    assert len({key for _, key in found}) == 3, "their answers differ"


async def test_answers_in_the_journal_are_not_computed_again(base: Path, bank: JudgedBank, tmp_path: Path) -> None:
    path = tmp_path / "out" / "answers.jsonl"
    jobs = [Job(TEXT, BOTH, max_tokens=4), Job(TEXT, options=OPTIONS), Job(TEXT, max_tokens=4)]
    async with running(base, bank) as loaded:
        with closing(Journal(path)) as journal:
            first = await answerer(loaded, bank, journal).answer(jobs[:2] * 2, concurrency=2)
        assert len(path.read_text().splitlines()) == 2, "each once"
        path.write_text(path.read_text() + '{"key": "cut off by a ki')
        reports: list[tuple[int, int]] = []
        with closing(Journal(path)) as journal:
            again = await answerer(loaded, bank, journal).answer(
                jobs, concurrency=2, report=lambda done, total: reports.append((done, total))
            )
    assert reports == [(2, 3), (3, 3)]
    assert {job: again[job] for job in jobs[:2]} == first
    assert [json.loads(line)["tokens"] for line in path.read_text().splitlines()] == [0, 4, 4]


async def test_an_answer_under_other_bytes_is_another_answer(
    base: Path, folder: Path, bank: JudgedBank, tmp_path: Path
) -> None:
    other = write_bank(tmp_path / "other", base, seeds={"sql": 99})
    jobs = [Job(TEXT, Mix.of({name: 1.0}), max_tokens=2) for name in ("sql", "dates")]
    jobs.append(Job(TEXT, max_tokens=2, sentence=(0.9, 3)))
    journal = Journal(None)
    keys = [[answerer(None, bank, journal)._key(job) for job in jobs]]  # type: ignore[arg-type]
    with open_bank(str(other), DiskCache(tmp_path / "cache", 10**9)) as changed:
        keys.append([answerer(None, changed, journal)._key(job) for job in jobs])  # type: ignore[arg-type]
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1], "an adapter that did not change"
    assert keys[0][2] != keys[1][2], "sentences may take any of the router's adapters"


async def test_an_error_ends_it_and_leaves_nothing_running(base: Path, bank: JudgedBank) -> None:
    async with running(base, bank) as loaded:
        evaluator = answerer(loaded, bank, Journal(None))
        jobs = [Job("x" * 30_000, max_tokens=2), *(Job(f"{TEXT} {n}", max_tokens=64) for n in range(4))]
        with pytest.raises(InvalidRequest, match=r"the question 'xxx.*is too long"):
            await evaluator.answer(jobs, concurrency=5)
        await asyncio.sleep(0)
        stats = loaded.engine.stats()
        assert (stats.running, stats.waiting, stats.pinned) == (0, 0, 0)
        assert (await evaluator.answer([jobs[1]], concurrency=1))[jobs[1]].tokens == 64


def test_a_journal_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="choose another --out"):
        Journal(tmp_path / "file" / "answers.jsonl")
    journal = Journal(None)
    journal.add("key", Answer("text", 1, 1))
    assert journal.get("key") == Answer("text", 1, 1)
    assert journal.get("other") is None
