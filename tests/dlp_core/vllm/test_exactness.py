"""What the engine over vLLM says equals merged weights, whatever else is in the batch and whenever the mix changes.

Every comparison is of greedy float32 tokens with the model itself, whose weights have the mix merged into them. The
adapters have ranks 2, 5 and 8; one changes all linear layers.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest

from dlp_core.engine.request import Plan, Sampling
from dlp_core.mix import EMPTY_MIX, Mix, Span
from tests.support.followers import changing, every, followed
from tests.support.vllm_engine import (
    CONFIG,
    Reference,
    assert_nothing_leaked,
    generate,
    prompt,
    run,
    spans_of,
    tokens_of,
)
from tests.support.waiting import HANG_S, async_wait_for

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]

A, B, C = (Mix.of({name: 1.0}) for name in "abc")
AB, BC = Mix.of({"a": 0.5, "b": 0.5}), Mix.of({"b": 0.5, "c": 0.5})
ABC = Mix.of({"a": 0.3, "b": 0.3, "c": 0.4})
MIXES = [EMPTY_MIX, A, BC, ABC, Mix.of({"c": -1.0}), AB]
SPANS = [
    Plan(((0, EMPTY_MIX), (40, A), (90, BC))),
    Plan(((0, ABC), (1, EMPTY_MIX), (63, B), (64, C))),
    Plan(((0, AB), (47, BC))),
]


async def test_tokens_equal_merged_weights_beside_other_mixes_and_plain_rows(
    engine: VllmEngine, reference: Reference
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


async def test_one_prompt_under_other_mixes_warm_and_cold(engine: VllmEngine, reference: Reference) -> None:
    for turn in range(2):
        for number, mix in enumerate(MIXES):
            found = await run(engine, f"s{turn}{number}", prompt(50), mix)
            assert found.tokens == reference.tokens(prompt(50), mix), (turn, mix)


async def test_spans_inside_prompts_that_are_computed_in_chunks(engine: VllmEngine, reference: Reference) -> None:
    ids = prompt(7, 20)
    assert len(ids) > 3 * CONFIG.batch_tokens
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
async def test_requests_that_arrive_one_after_another(engine: VllmEngine, reference: Reference, gap: int) -> None:
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


def by_sentences() -> list[tuple[list[int], Plan]]:
    """Requests whose mix changes in the prompt and every few tokens of the completion."""
    return [
        (prompt(60), Plan(((0, A),), every(4, A, BC, EMPTY_MIX)())),
        (prompt(61, 9), Plan(((0, EMPTY_MIX), (70, AB)), every(7, ABC, C)())),
        (prompt(62), Plan(((0, B),), changing(1, AB))),
        (prompt(63), Plan(((0, ABC),), changing(32, B))),
        (prompt(64), Plan(((0, BC),), every(1, A, BC)())),
    ]


async def test_mixes_that_change_in_the_completion_as_often_as_a_sentence_starts(
    engine: VllmEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change is an abort in vLLM, and a new request there with the tokens so far."""
    submitted: list[str] = []
    generate_in_vllm = engine._llm.generate

    def spy(prompt: Any, parameters: Any, request_id: str) -> Any:
        submitted.append(request_id)
        return generate_in_vllm(prompt, parameters, request_id)

    monkeypatch.setattr(engine._llm, "generate", spy)
    others = asyncio.gather(*(run(engine, f"o{n}", prompt(n), mix, max_tokens=48) for n, mix in enumerate(MIXES)))
    found = await asyncio.gather(
        *(run(engine, f"f{number}", *job, max_tokens=32) for number, job in enumerate(by_sentences()))
    )
    for number, ((ids, plan), completion) in enumerate(zip(by_sentences(), found, strict=True)):
        assert completion.spans == followed(plan, len(ids), 32)
        assert completion.tokens == reference.tokens(ids, spans_of(completion.spans), 32), number
        # the last token's own mix needs no new request
        changes = [span for span in completion.spans if len(ids) <= span.start < len(ids) + 31]
        stretches = [name for name in submitted if name.startswith(f"f{number}~")]
        assert stretches == [f"f{number}~{stretch}" for stretch in range(len(changes) + 1)]
    for number, (mix, completion) in enumerate(zip(MIXES, await others, strict=True)):
        assert completion.tokens == reference.tokens(prompt(number), mix, 48)
    assert_nothing_leaked(engine)


async def test_every_token_of_a_changing_mix_has_its_log_probability(engine: VllmEngine, reference: Reference) -> None:
    ids = prompt(3)
    events = await generate(engine, "l", ids, Plan(((0, B),), changing(5, A)), logprobs=1)
    said = tokens_of(events)
    logprobs = [logprob for event in events for logprob in event.logprobs]
    assert [logprob.token_id for logprob in logprobs] == said == reference.tokens(ids, spans_of(events[-1].spans))


async def test_the_scheduler_and_the_model_are_in_processes_of_their_own(engine: VllmEngine) -> None:
    """So all of the above holds across them."""
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    assert any("EngineCor" in name for name in names), names
    assert any("Worker" in name for name in names), names
