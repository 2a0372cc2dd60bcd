"""Answers that follow a JSON schema, whatever the model would have said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import LlamaForCausalLM

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.grammar import MAX_SCHEMA_BYTES, Grammars
from dlp_core.engine.request import Sampling
from dlp_core.errors import InvalidRequest
from dlp_core.fusion.layers import install
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from examples.tiny.model import peft_model, tiny_model, tiny_tokenizer
from tests.dlp_core.engine.test_engine import assert_nothing_leaked

pytestmark = pytest.mark.model

TOKENIZER = tiny_tokenizer()
EOS = frozenset({TOKENIZER.eos_token_id})
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PADDING = 64


def padded_model() -> LlamaForCausalLM:
    """Its vocabulary is larger than the tokenizer's, as of most models."""
    model = tiny_model()
    torch.manual_seed(5)
    model.resize_token_embeddings(len(TOKENIZER) + PADDING)
    return model


async def build(folders: Mapping[str, Path], tokenizer: Any = TOKENIZER) -> FusedEngine:
    model = padded_model()
    fusion = install(model)
    config = EngineConfig(slots=2, max_requests=16, page_tokens=8, cache_tokens=4096, batch_tokens=64)
    residency = Residency(FolderSource(folders), fusion, config.slots)
    engine = FusedEngine(model, fusion, residency, config, tokenizer=tokenizer)
    await engine.start()
    return engine


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FusedEngine]:
    peft_model(padded_model(), 3).save_pretrained(tmp_path / "a")
    engine = await build({"a": tmp_path / "a"})
    yield engine
    await engine.stop()


async def answer(engine: FusedEngine, name: str, schema: object, mix: Mix = EMPTY_MIX, **sampling: Any) -> str:
    ids = TOKENIZER(f"the user {name}").input_ids
    settings = Sampling(**{"max_tokens": 300, "response_format": json.dumps(schema)} | sampling)
    tokens: list[int] = []
    reason = None
    async for event in engine.submit(ids, mix, settings, request_id=name):
        tokens += event.token_ids
        reason = event.finish_reason
    assert reason == ("length" if len(tokens) == settings.max_tokens else "stop")
    return str(TOKENIZER.decode(tokens))


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 1.5, "seed": 4}, {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "seed": 1}, {"logprobs": 2}],
    ids=["greedy", "hot", "truncated", "logprobs"],
)
async def test_an_answer_is_a_document_of_the_schema(engine: FusedEngine, sampling: dict[str, Any]) -> None:
    mixes = [EMPTY_MIX, Mix.of({"a": 1.0}), EMPTY_MIX, Mix.of({"a": 0.5})]
    answers = await asyncio.gather(
        *(answer(engine, f"r{i}", PERSON, mix, **sampling) for i, mix in enumerate(mixes)),
    )
    for text in answers:
        jsonschema.validate(json.loads(text), PERSON)
    assert_nothing_leaked(engine)


async def test_one_of_several_is_one_of_any(engine: FusedEngine) -> None:
    cat = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
    dog = {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]}
    closed = [kind | {"additionalProperties": False} for kind in (cat, dog)]
    text = await answer(engine, "r", {"oneOf": closed})
    assert json.loads(text)["kind"] in ("cat", "dog")


async def test_any_object_will_do_without_a_schema(engine: FusedEngine) -> None:
    for seed in range(3):
        text = await answer(engine, f"o{seed}", {"type": "object"}, temperature=1.0, seed=seed, max_tokens=600)
        if text.endswith("}"):
            assert isinstance(json.loads(text), dict)
        assert text.lstrip().startswith("{")


async def test_a_document_that_is_cut_off_ends_by_length(engine: FusedEngine) -> None:
    text = await answer(engine, "r", PERSON, max_tokens=5)
    assert text.lstrip().startswith("{")


async def test_others_in_the_batch_say_what_they_say_alone(engine: FusedEngine) -> None:
    async def plain(name: str) -> list[int]:
        ids = TOKENIZER("the assistant").input_ids
        sampling = Sampling(40, ignore_eos=True)
        return [t async for e in engine.submit(ids, EMPTY_MIX, sampling, request_id=name) for t in e.token_ids]

    alone = await plain("p0")
    beside, *_ = await asyncio.gather(plain("p1"), *(answer(engine, f"r{i}", PERSON) for i in range(3)))
    assert beside == alone


REFUSED: dict[str, Any] = {
    "no such type": {"type": "nope"},
    "not a schema": [1, 2],
    "a document elsewhere": {"$ref": "http://localhost:1/x.json"},
    "a keyword that cannot be enforced": {"type": "object", "unevaluatedProperties": False},
    "nothing is valid": {"type": "string", "minLength": 5, "maxLength": 2},
    "endless": {"$ref": "#"},
    "too large": {"enum": ["x" * MAX_SCHEMA_BYTES]},
    "too many": {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for i in range(8)]} for j in range(8)]},
    "deep": json.loads('{"items":' * 500 + "{}" + "}" * 500),
}


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED)
async def test_a_schema_that_cannot_be_followed_is_refused_in_one_line(engine: FusedEngine, schema: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await answer(engine, "r", schema)
    assert refused.value.param == "response_format"
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 400
    assert_nothing_leaked(engine)
    engine.check_health()


HOSTILE: dict[str, Any] = {
    "repeats of repeats": {"type": "string", "pattern": "((a{1,200}){1,200}b){1,200}"},
    "alternatives": {"type": "string", "pattern": "(a|aa|aaa|aaaa)*(a|b)*(a|b|c)*x"},
    "long": {"type": "string", "minLength": 10**8},
    "many items": {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    "many keys": {"type": "object", "properties": {f"k{i}": {"type": "number"} for i in range(1000)}},
    "recursion": {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "integer"}]},
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_schema_holds_nobody_up(engine: FusedEngine, schema: object) -> None:
    """It is answered, refused or given up on, and others are answered meanwhile."""

    async def hostile() -> None:
        with suppress(InvalidRequest):
            assert await answer(engine, "r", schema, max_tokens=40)

    _, *others = await asyncio.gather(hostile(), *(answer(engine, f"n{i}", {"const": i}) for i in range(3)))
    assert others == ["0", "1", "2"]
    assert_nothing_leaked(engine)


async def test_fields_that_contradict_a_schema_are_refused_by_name() -> None:
    for field, value in [("min_tokens", 3), ("ignore_eos", True)]:
        with pytest.raises(InvalidRequest) as refused:
            Sampling(**{"response_format": "{}", field: value})
        assert refused.value.param == field


async def test_without_a_tokenizer_a_schema_is_refused(tmp_path: Path) -> None:
    engine = await build({}, tokenizer=None)
    try:
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            await answer(engine, "r", PERSON)
    finally:
        await engine.stop()


def test_a_model_that_never_ends_cannot_write_a_document() -> None:
    with pytest.raises(InvalidRequest, match="no end-of-sequence"):
        Grammars(TOKENIZER, len(TOKENIZER), frozenset()).guide("{}")


def test_every_end_of_sequence_token_may_end_a_document() -> None:
    [end] = EOS
    other = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
    guide = Grammars(TOKENIZER, len(TOKENIZER) + PADDING, frozenset({end, other})).guide('{"const": 1}')
    scores = torch.zeros(len(TOKENIZER) + PADDING)
    [one] = TOKENIZER("1").input_ids
    assert guide.mask(scores).isfinite().nonzero().flatten().tolist() == [one]
    guide.accept(one)
    allowed = guide.mask(scores).isfinite().nonzero().flatten().tolist()
    assert end in allowed
    assert set(allowed) <= {end, other}
