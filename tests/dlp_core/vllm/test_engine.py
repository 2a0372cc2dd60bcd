"""The engine over vLLM: what it says equals merged weights, alone and beside others, and nothing of it is silent.

It needs an environment with vLLM 0.32, which cannot share one with engine transformers; elsewhere these are skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dlp_core.adapter.weights import read_adapter
from dlp_core.engine.config import EngineConfig, VllmConfig
from dlp_core.engine.request import Plan, Sampling, TokenEvent
from dlp_core.errors import AdapterRefused, InvalidRequest, PromptTooLong, RequestAborted, UnknownModel
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.sources import FolderSource
from examples.tiny.model import peft_model
from tests.support.wide_model import wide_backbone, wide_model, wide_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine
from dlp_core.vllm.loading import load

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("ignore")]

TARGETS = {
    "a": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "b": ["q_proj", "v_proj"],
    "c": ["down_proj", "gate_proj"],
}
CONFIG = EngineConfig(
    kind="vllm",
    slots=3,
    max_requests=16,
    page_tokens=32,
    cache_tokens=4096,
    batch_tokens=64,
    vllm=VllmConfig(eager=True),
)
encode = wide_tokenizer().encode
MIXES: list[dict[str, float]] = [
    {}, {"a": 1.0}, {"b": 0.5, "c": 0.5}, {"a": 0.3, "b": 0.3, "c": 0.4}, {"c": -1.0}, {"a": 0.5, "b": 0.5},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vllm")
    wide_backbone(root / "base")
    for seed, (name, targets) in enumerate(TARGETS.items()):
        peft_model(wide_model(), seed + 3, r=2 + 3 * seed, target_modules=targets).save_pretrained(root / name)
    peft_model(wide_model(), 9, target_modules=["embed_tokens"]).save_pretrained(root / "embedding")
    return root


@pytest.fixture(scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    source = FolderSource({name: folder / name for name in (*TARGETS, "embedding")})
    engine = load(folder / "base", source, CONFIG, dtype="float32", threads=1).engine
    await engine.start()
    yield engine
    await engine.stop()


def prompt(number: int, repeats: int = 3) -> list[int]:
    return list(encode(f"the user and the assistant speak {number} of the adapter " * repeats))


def merged(folder: Path, weights: Mapping[str, float]) -> Any:
    model = wide_model()
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, weight in weights.items():
            for path, lora in read_adapter(folder / name, name=name).modules.items():
                modules[path].weight += weight * lora.scaling * (lora.b_OR.float() @ lora.a_RD.float())
    return model


def expected(folder: Path, ids: list[int], weights: Mapping[str, float], tokens: int) -> list[int]:
    with torch.no_grad():
        out = merged(folder, weights).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=tokens, do_sample=False,
            pad_token_id=2,
        )  # fmt: skip
    return list(out[0, len(ids) :].tolist())


async def generate(engine: VllmEngine, name: str, ids: list[int], mix: Mix | Plan, **sampling: Any) -> list[TokenEvent]:
    settings = Sampling(**{"max_tokens": 16, "ignore_eos": True} | sampling)
    return [event async for event in engine.submit(ids, mix, settings, request_id=name)]


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def assert_nothing_leaked(engine: VllmEngine) -> None:
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pinned, stats.tokens_running) == (0, 0, 0, 0)


async def test_tokens_equal_merged_weights_beside_other_mixes(engine: VllmEngine, folder: Path) -> None:
    said = await asyncio.gather(
        *(generate(engine, f"r{i}", prompt(i), Mix.of(weights)) for i, weights in enumerate(MIXES))
    )
    for number, (weights, events) in enumerate(zip(MIXES, said, strict=True)):
        assert tokens_of(events) == expected(folder, prompt(number), weights, 16), weights
        assert events[-1].finish_reason == "length"
    assert_nothing_leaked(engine)


async def test_one_prompt_under_other_mixes_shares_nothing(engine: VllmEngine, folder: Path) -> None:
    """All but the first would take the blocks of the first without the salt."""
    for turn in range(2):
        for number, weights in enumerate(MIXES):
            said = tokens_of(await generate(engine, f"s{turn}{number}", prompt(50), Mix.of(weights)))
            assert said == expected(folder, prompt(50), weights, 16), (turn, weights)
    assert engine.stats().shared_tokens > 0  # the second turn's


async def test_mixes_change_inside_the_prompt_and_in_chunks(engine: VllmEngine, folder: Path) -> None:
    ids = prompt(7, 20)
    assert len(ids) > 2 * CONFIG.batch_tokens
    plan = Plan(((0, EMPTY_MIX), (40, Mix.of({"a": 1.0})), (90, Mix.of({"b": 0.5, "c": 0.5}))))
    alone = tokens_of(await generate(engine, "alone", ids, plan))
    beside = await asyncio.gather(
        generate(engine, "p", ids, plan), *(generate(engine, f"o{i}", prompt(i, 9), EMPTY_MIX) for i in range(6))
    )
    assert tokens_of(beside[0]) == alone
    assert alone != tokens_of(await generate(engine, "plain", ids, EMPTY_MIX))
    last = tokens_of(await generate(engine, "last", ids, Mix.of({"b": 0.5, "c": 0.5})))
    assert alone != last
    spans = beside[0][-1].spans
    assert [(span.start, span.mix) for span in spans] == list(plan.spans)
    assert spans[-1].end == len(ids) + 16


def changing(at: int, mix: Mix) -> Callable[[int], Mix | None]:
    seen = 0

    def follow(token: int) -> Mix | None:
        nonlocal seen
        seen += 1
        return mix if seen == at else None

    return follow


async def test_a_mix_that_changes_in_the_completion_is_that_of_the_tokens_after_it(engine: VllmEngine) -> None:
    ids, first, second = prompt(3), Mix.of({"b": 1.0}), Mix.of({"a": 1.0})
    plan = Plan(((0, first),), changing(5, second))
    events = await generate(engine, "f", ids, plan, logprobs=1)
    said = tokens_of(events)
    assert len(said) == 16
    assert len([logprob for event in events for logprob in event.logprobs]) == 16
    assert [(span.start, span.mix) for span in events[-1].spans] == [(0, first), (len(ids) + 4, second)]
    begun = [*ids, *said[:5]]
    again = await generate(engine, "g", begun, Plan(((0, first), (len(ids) + 4, second))), max_tokens=11)
    assert said[5:] == tokens_of(again)
    assert said[:5] == tokens_of(await generate(engine, "h", ids, first))[:5]
    assert_nothing_leaked(engine)


async def test_an_end_of_sequence_is_not_told(engine: VllmEngine, folder: Path) -> None:
    events = await generate(engine, "e", prompt(1), EMPTY_MIX, ignore_eos=False, response_format='{"const": 1}')
    assert events[-1].finish_reason == "stop"
    assert 2 not in tokens_of(events)
    assert wide_tokenizer().decode(tokens_of(events)) == "1"


async def test_log_probabilities_are_the_models(engine: VllmEngine, folder: Path) -> None:
    ids, settings = prompt(4), Sampling(max_tokens=4, logprobs=2, ignore_eos=True)
    mix = Mix.of({"a": 1.0})
    events = [e async for e in engine.submit(ids, mix, settings, request_id="l", prompt_logprobs=2)]
    said = tokens_of(events)
    with torch.no_grad():
        rows = merged(folder, {"a": 1.0})(torch.tensor([ids + said])).logits[0].log_softmax(-1)
    found = [*events[0].prompt_logprobs, *(logprob for event in events for logprob in event.logprobs)]
    assert found[0] is None
    for position, logprob in enumerate(found[1:]):
        assert logprob is not None
        assert logprob.token_id == (ids + said)[position + 1]
        assert logprob.logprob == pytest.approx(float(rows[position][logprob.token_id]), abs=1e-3)


async def test_a_seed_repeats(engine: VllmEngine) -> None:
    draw = {"temperature": 1.2, "seed": 5}
    one = tokens_of(await generate(engine, "d1", prompt(5), EMPTY_MIX, **draw))
    both = await asyncio.gather(
        generate(engine, "d2", prompt(5), EMPTY_MIX, **draw), generate(engine, "d3", prompt(6), Mix.of({"a": 1.0}))
    )
    assert tokens_of(both[0]) == one
    assert tokens_of(await generate(engine, "d4", prompt(5), EMPTY_MIX, temperature=1.2, seed=6)) != one


async def test_abort_raises_a_typed_error_and_frees_everything(engine: VllmEngine) -> None:
    stream = engine.submit(prompt(1), Mix.of({"a": 1.0}), Sampling(500, ignore_eos=True), request_id="x")
    await anext(stream)
    engine.abort("x")
    with pytest.raises(RequestAborted):
        async for _ in stream:
            pass
    engine.abort("nobody")
    assert_nothing_leaked(engine)


async def test_closing_a_stream_frees_everything(engine: VllmEngine) -> None:
    stream = engine.submit(prompt(1), Mix.of({"a": 1.0}), Sampling(500, ignore_eos=True), request_id="y")
    await anext(stream)
    await stream.aclose()
    assert_nothing_leaked(engine)


async def test_what_is_not_served_is_refused_by_name(engine: VllmEngine) -> None:
    with pytest.raises(AdapterRefused, match="embed"):
        await generate(engine, "n", prompt(1), Mix.of({"embedding": 1.0}))
    with pytest.raises(UnknownModel):
        await generate(engine, "n", prompt(1), Mix.of({"nobody": 1.0}))
    with pytest.raises(InvalidRequest, match="4 adapters"):
        await generate(engine, "n", prompt(1), Mix.of(dict.fromkeys([*TARGETS, "embedding"], 0.25)))
    with pytest.raises(PromptTooLong):
        await generate(engine, "n", prompt(1), EMPTY_MIX, max_tokens=4096)
    with pytest.raises(InvalidRequest, match="presence_penalty"):
        await generate(engine, "n", prompt(1), Plan(((0, EMPTY_MIX),), lambda token: None), presence_penalty=1.0)
    assert_nothing_leaked(engine)


async def test_adapters_come_and_go_while_others_generate(engine: VllmEngine, folder: Path) -> None:
    """More adapters than slots would hold with two of three kept."""
    await engine.keep(["a"])
    said = await asyncio.gather(
        *(generate(engine, f"v{i}", prompt(i), Mix.of({"bc"[i % 2]: 1.0}), max_tokens=8) for i in range(8))
    )
    for number, events in enumerate(said):
        assert tokens_of(events) == expected(folder, prompt(number), {"bc"[number % 2]: 1.0}, 8)
    await engine.keep([])
    assert_nothing_leaked(engine)
