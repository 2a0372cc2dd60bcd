"""What every engine does, as one class of tests: each engine's own test file inherits it.

Every comparison is of greedy float32 tokens with the model itself, whose weights have the mix merged into them. The
adapters have ranks 2, 5 and 8; one changes all linear layers. There are three slots.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from dlp_core.engine.protocol import Engine
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import EngineFull, InvalidRequest, PromptTooLong, RequestAborted, UnknownModel
from dlp_core.mix import EMPTY_MIX, Mix, Span
from examples.tiny.model import tiny_tokenizer
from tests.support.engines import (
    ACTIVATED,
    LIMITS,
    TARGETS,
    Reference,
    assert_nothing_leaked,
    encode,
    generate,
    prompt,
    run,
    spans_of,
    tokens_of,
)
from tests.support.followers import changing, every, followed
from tests.support.waiting import HANG_S, async_wait_for

A, B, C = (Mix.of({name: 1.0}) for name in "abc")
AB, BC = Mix.of({"a": 0.5, "b": 0.5}), Mix.of({"b": 0.5, "c": 0.5})
ABC = Mix.of({"a": 0.3, "b": 0.3, "c": 0.4})
MIXES = [EMPTY_MIX, A, BC, ABC, Mix.of({"c": -1.0}), AB]
SPANS = [
    Plan(((0, EMPTY_MIX), (40, A), (90, BC))),
    Plan(((0, ABC), (1, EMPTY_MIX), (63, B), (64, C))),
    Plan(((0, AB), (47, BC))),
]


def by_sentences() -> list[tuple[list[int], Plan]]:
    """Requests whose mix changes in the prompt and every few tokens of the completion."""
    return [
        (prompt(60), Plan(((0, A),), every(4, A, BC, EMPTY_MIX)())),
        (prompt(61, 9), Plan(((0, EMPTY_MIX), (70, AB)), every(7, ABC, C)())),
        (prompt(62), Plan(((0, B),), changing(1, AB))),
        (prompt(63), Plan(((0, ABC),), changing(32, B))),
        (prompt(64), Plan(((0, BC),), every(1, A, BC)())),
    ]


def invoked(ids: list[int], mix: Mix) -> Plan:
    """The plan that a mix becomes, where PEFT's own code finds the invocations of its adapters."""
    from peft import LoraConfig
    from peft.tuners.lora.variants import calculate_alora_offsets

    begins = dict.fromkeys(mix.names, 0)
    for name in ACTIVATED.keys() & begins:
        config = LoraConfig(alora_invocation_tokens=encode(ACTIVATED[name]), task_type="CAUSAL_LM")
        [offset] = calculate_alora_offsets({name: config}, name, torch.tensor([ids]))
        begins[name] = len(ids) - offset if offset else sys.maxsize
    starts = sorted({0, *(begin for begin in begins.values() if begin < sys.maxsize)})
    return Plan(
        tuple((start, Mix(tuple(part for part in mix.adapters if begins[part.name] <= start))) for start in starts)
    )


class EngineContract:
    """For a fixture `engine` with LIMITS over `tests.support.engines.save_models`, and its `reference`."""

    # ---------------------------------------------------------------- what is said

    async def test_tokens_equal_merged_weights_beside_other_mixes_and_plain_rows(
        self, engine: Engine, reference: Reference
    ) -> None:
        jobs = [(prompt(number), mix) for number, mix in enumerate([*MIXES, EMPTY_MIX])]
        for number, (ids, mix) in enumerate(jobs):
            alone = await run(engine, f"alone{number}", ids, mix)
            assert alone.tokens == reference.tokens(ids, mix), mix
        together = await asyncio.gather(*(run(engine, f"r{number}", *job) for number, job in enumerate(jobs)))
        for (ids, mix), found in zip(jobs, together, strict=True):
            assert found.tokens == reference.tokens(ids, mix), mix
            assert found.spans == (Span(0, len(ids) + 16, mix),)
        assert len({tuple(reference.tokens(prompt(0), mix)) for mix in MIXES}) == len(MIXES), "mixes matter"
        assert_nothing_leaked(engine)

    async def test_one_prompt_under_other_mixes_warm_and_cold(self, engine: Engine, reference: Reference) -> None:
        for turn in range(2):
            for number, mix in enumerate(MIXES):
                found = await run(engine, f"s{turn}{number}", prompt(50), mix)
                assert found.tokens == reference.tokens(prompt(50), mix), (turn, mix)

    async def test_spans_inside_prompts_that_are_computed_in_chunks(self, engine: Engine, reference: Reference) -> None:
        ids = prompt(7, 20)
        assert len(ids) > 3 * LIMITS.batch_tokens
        others = [generate(engine, f"o{number}", prompt(number, 9), MIXES[number]) for number in range(6)]
        together, *_ = await asyncio.gather(
            asyncio.gather(*(run(engine, f"p{number}", ids, plan) for number, plan in enumerate(SPANS))), *others
        )
        for plan, found in zip(SPANS, together, strict=True):
            assert found.tokens == reference.tokens(ids, plan)
            assert [(span.start, span.mix) for span in found.spans] == list(plan.spans)
            assert found.spans[-1].end == len(ids) + 16
        assert len({tuple(found.tokens) for found in together}) == len(SPANS)

    @pytest.mark.parametrize("gap", [1, 2, 5, 30])
    async def test_requests_that_arrive_one_after_another(self, engine: Engine, reference: Reference, gap: int) -> None:
        """Each begins when the one before has `gap` tokens, so they share steps at other places."""
        jobs = [(prompt(number + 10 * gap, 9), mix) for number, mix in enumerate([*MIXES, *SPANS])]
        written: list[list[int]] = [[] for _ in jobs]

        async def one(number: int, ids: list[int], mix: Mix | Plan) -> None:
            async for event in engine.submit(ids, mix, Sampling(32, ignore_eos=True), request_id=f"{gap}.{number}"):
                written[number] += event.token_ids

        tasks = []
        for number, job in enumerate(jobs):
            tasks.append(asyncio.create_task(one(number, *job)))
            await async_wait_for(lambda tokens=written[number]: len(tokens) >= gap, "tokens")  # type: ignore[misc]
        async with asyncio.timeout(HANG_S):
            await asyncio.gather(*tasks)
        for job, tokens in zip(jobs, written, strict=True):
            assert tokens == reference.tokens(*job, 32), job
        assert_nothing_leaked(engine)

    async def test_mixes_that_change_in_the_completion_as_often_as_a_sentence_starts(
        self, engine: Engine, reference: Reference
    ) -> None:
        others = asyncio.gather(*(run(engine, f"o{n}", prompt(n), mix, max_tokens=48) for n, mix in enumerate(MIXES)))
        found = await asyncio.gather(
            *(run(engine, f"f{number}", *job, max_tokens=32) for number, job in enumerate(by_sentences()))
        )
        for number, ((ids, plan), completion) in enumerate(zip(by_sentences(), found, strict=True)):
            assert completion.spans == followed(plan, len(ids), 32)
            assert completion.tokens == reference.tokens(ids, spans_of(completion.spans), 32), number
        for number, (mix, completion) in enumerate(zip(MIXES, await others, strict=True)):
            assert completion.tokens == reference.tokens(prompt(number), mix, 48)
        assert_nothing_leaked(engine)

    # ---------------------------------------------------------------- how it is chosen

    async def test_an_end_of_sequence_is_not_told(self, engine: Engine) -> None:
        events = await generate(engine, "e", prompt(1), EMPTY_MIX, ignore_eos=False, response_format='{"const": 1}')
        assert events[-1].finish_reason == "stop"
        assert 2 not in tokens_of(events)
        assert tiny_tokenizer().decode(tokens_of(events)) == "1"

    async def test_log_probabilities_are_the_models(self, engine: Engine, reference: Reference) -> None:
        ids, settings = prompt(4), Sampling(max_tokens=4, logprobs=2, ignore_eos=True)
        events = [e async for e in engine.submit(ids, A, settings, request_id="l", prompt_logprobs=2)]
        said = tokens_of(events)
        with torch.no_grad():
            rows = reference.model(A)(torch.tensor([ids + said])).logits[0].log_softmax(-1)
        found = [*events[0].prompt_logprobs, *(logprob for event in events for logprob in event.logprobs)]
        assert found[0] is None
        for position, logprob in enumerate(found[1:]):
            assert logprob is not None
            assert logprob.token_id == (ids + said)[position + 1]
            assert logprob.logprob == pytest.approx(float(rows[position][logprob.token_id]), abs=1e-3)

    async def test_every_token_of_a_changing_mix_has_its_log_probability(
        self, engine: Engine, reference: Reference
    ) -> None:
        ids = prompt(3)
        events = await generate(engine, "l", ids, Plan(((0, B),), changing(5, A)), logprobs=1)
        said = tokens_of(events)
        logprobs = [logprob for event in events for logprob in event.logprobs]
        assert [logprob.token_id for logprob in logprobs] == said == reference.tokens(ids, spans_of(events[-1].spans))

    @pytest.mark.parametrize("repeats", [3, 9], ids=["one chunk", "two chunks"])
    async def test_a_seed_repeats(self, engine: Engine, repeats: int) -> None:
        """Alone and beside others, whether the engine draws before the prompt is all there or not."""
        ids, draw = prompt(5, repeats), {"temperature": 1.2, "seed": 5}
        assert (len(ids) > LIMITS.batch_tokens) == (repeats == 9)
        one = tokens_of(await generate(engine, "d1", ids, EMPTY_MIX, **draw))
        others = [generate(engine, f"o{number}", prompt(number, 9), A, **draw) for number in range(3)]
        both = await asyncio.gather(generate(engine, "d2", ids, EMPTY_MIX, **draw), *others)
        assert tokens_of(both[0]) == one
        assert tokens_of(await generate(engine, "d4", ids, EMPTY_MIX, temperature=1.2, seed=6)) != one

    @pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
    async def test_penalties_count_the_completion_alone(
        self, engine: Engine, reference: Reference, penalty: str
    ) -> None:
        """Recomputed from the model's own logits."""
        ids, amount = prompt(8), 2.0
        said = tokens_of(await generate(engine, "p", ids, AB, max_tokens=24, **{penalty: amount}))
        assert said != reference.tokens(ids, AB, 24)
        with torch.no_grad():
            rows = reference.model(AB)(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1]
        for position, (token, row) in enumerate(zip(said, rows, strict=True)):
            for other, times in Counter(said[:position]).items():
                row[other] -= amount * (times if penalty == "frequency_penalty" else 1)
            assert row[token] == pytest.approx(float(row.max()), abs=1e-3), position

    # ---------------------------------------------------------------- activated adapters

    async def test_an_activated_adapter_says_what_peft_says(self, engine: Engine, reference: Reference) -> None:
        """Alone and in a batch with others, in prompts that take one step and in those that take several, warm and
        cold; and the plain model's words where nothing invokes it."""
        prompts = [prompt(100), prompt(101, 20), prompt(102)[:-12], prompt(103)[3:40], encode("speak of the adapter")]
        jobs = [(ids, name) for ids in prompts for name in ACTIVATED]
        for turn in range(2):
            together = await asyncio.gather(
                *(run(engine, f"m{turn}.{number}", ids, Mix.of({name: 1.0})) for number, (ids, name) in enumerate(jobs))
            )
            for (ids, name), found in zip(jobs, together, strict=True):
                plan = invoked(ids, Mix.of({name: 1.0}))
                assert [(span.start, span.mix) for span in found.spans] == list(plan.spans)
                assert found.tokens == reference.tokens_of_peft(ids, name) == reference.tokens(ids, plan), (ids, name)
        for number, (ids, name) in enumerate(jobs):
            assert (await run(engine, f"ma{number}", ids, Mix.of({name: 1.0}))).tokens == together[number].tokens
        assert {len(found.spans) for found in together} == {1, 2}
        assert_nothing_leaked(engine)

    async def test_in_a_mix_each_activated_adapter_begins_at_its_own_invocation(
        self, engine: Engine, reference: Reference
    ) -> None:
        mixes = [
            Mix.of({"m": 0.7, "n": -0.5}),
            Mix.of({"a": 0.5, "m": 0.5}),
            Mix.of({"b": 0.3, "m": 0.4, "n": 0.3}),
        ]
        jobs = [(prompt(110 + repeats, repeats), mix) for repeats in (3, 20) for mix in mixes]
        found = await asyncio.gather(*(run(engine, f"mm{number}", *job) for number, job in enumerate(jobs)))
        for (ids, mix), completion in zip(jobs, found, strict=True):
            plan = invoked(ids, mix)
            assert len(plan.spans) == 1 + len([name for name in mix.names if name in ACTIVATED])
            assert [(span.start, span.mix) for span in completion.spans] == list(plan.spans)
            assert completion.tokens == reference.tokens(ids, plan)

    async def test_everybody_shares_the_plain_history_before_an_invocation(self, engine: Engine) -> None:
        ids = prompt(120, 20)
        history = min(invoked(ids, Mix.of({name: 1.0})).spans[1][0] for name in ACTIVATED)
        assert history > 3 * LIMITS.batch_tokens
        mixes = [{"m": 1.0}, {"n": 1.0}, {"n": 0.25, "m": 0.75}, {}]
        for number, mix in enumerate([{"a": 1.0}, *mixes]):
            before = engine.stats().shared_tokens
            completion = await run(engine, f"h{number}", ids, Mix.of(mix))
            gained = engine.stats().shared_tokens - before
            assert completion.cached_tokens == gained, "each is told what it found"
            if number < 2:
                assert not gained, "the first, and the first that has a plain history"
            else:
                assert gained >= history // LIMITS.page_tokens * LIMITS.page_tokens

    # ---------------------------------------------------------------- how it ends

    async def test_abort_raises_a_typed_error_and_frees_everything(self, engine: Engine) -> None:
        stream = engine.submit(prompt(1), A, Sampling(500, ignore_eos=True), request_id="x")
        await anext(stream)
        engine.abort("x")
        with pytest.raises(RequestAborted):
            async for _ in stream:
                pass
        engine.abort("nobody")
        assert_nothing_leaked(engine)

    async def test_closing_a_stream_frees_everything(self, engine: Engine) -> None:
        stream = engine.submit(prompt(1), A, Sampling(500, ignore_eos=True), request_id="y")
        await anext(stream)
        await stream.aclose()
        assert_nothing_leaked(engine)

    async def test_what_cannot_be_is_refused_by_name(self, engine: Engine) -> None:
        with pytest.raises(UnknownModel, match="nobody"):
            await generate(engine, "n", prompt(1), Mix.of({"nobody": 1.0}))
        with pytest.raises(InvalidRequest, match="4 adapters"):
            await generate(engine, "n", prompt(1), Mix.of(dict.fromkeys([*TARGETS, "embedding"], 0.25)))
        with pytest.raises(PromptTooLong):
            await generate(engine, "n", prompt(1), EMPTY_MIX, max_tokens=4096)
        with pytest.raises(InvalidRequest):
            await generate(engine, "n", [*prompt(1), engine.vocabulary], EMPTY_MIX)
        assert_nothing_leaked(engine)

    async def test_an_id_is_used_once_at_a_time_and_requests_are_bounded(self, engine: Engine) -> None:
        settings = Sampling(200, ignore_eos=True)
        streams = [
            engine.submit(prompt(number), EMPTY_MIX, settings, request_id=str(number))
            for number in range(LIMITS.max_requests)
        ]
        await asyncio.gather(*map(anext, streams))
        with pytest.raises(InvalidRequest, match="in use"):
            await generate(engine, "0", prompt(1), EMPTY_MIX)
        with pytest.raises(EngineFull):
            await generate(engine, "one more", prompt(1), EMPTY_MIX)
        for stream in streams:
            await stream.aclose()
        assert len(tokens_of(await generate(engine, "0", prompt(1), EMPTY_MIX))) == 16
        assert_nothing_leaked(engine)

    # ---------------------------------------------------------------- adapters and the state

    async def test_adapters_come_and_go_while_others_generate(self, engine: Engine, reference: Reference) -> None:
        """More adapters than slots would hold with two of three kept."""
        await engine.keep(["a", "b"])
        mixes = [Mix.of({"c": 1.0}), Mix.of({"a": 0.5, "c": 0.5}), B]
        said = await asyncio.gather(
            *(generate(engine, f"v{i}", prompt(i), mixes[i % 3], max_tokens=8) for i in range(9))
        )
        for number, events in enumerate(said):
            assert tokens_of(events) == reference.tokens(prompt(number), mixes[number % 3], 8)
        assert {"a", "b"} <= set(engine.stats().resident)
        with pytest.raises(UnknownModel):
            await engine.keep(["nobody"])
        with pytest.raises(InvalidRequest):
            await engine.keep(["a", "b", "c", "embedding"])
        await engine.keep([])
        await engine.preload(["c"])
        assert "c" in engine.stats().resident
        assert_nothing_leaked(engine)

    async def test_stats_tell_what_runs(self, engine: Engine) -> None:
        engine.check_health()
        ids = prompt(2)
        stream = engine.submit(ids, AB, replace(Sampling(500), ignore_eos=True), request_id="s")
        await anext(stream)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.pinned) == (1, 0, 2)
        assert len(ids) <= stats.tokens_running <= len(ids) + 500
        assert stats.cache_free < 1
        assert stats.adapter_demand == pytest.approx(2 / 3)
        await stream.aclose()
        assert_nothing_leaked(engine)

    async def test_a_prompt_that_comes_again_is_not_computed_again(self, engine: Engine) -> None:
        ids = prompt(70, 9)
        await generate(engine, "first", ids, BC)
        before = engine.stats().shared_tokens
        await generate(engine, "again", ids, BC)
        gained = engine.stats().shared_tokens - before
        assert len(ids) - 2 * LIMITS.page_tokens < gained < len(ids)
