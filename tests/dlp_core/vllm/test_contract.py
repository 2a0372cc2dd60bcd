"""What every engine does, by the engine over vLLM; and what is its own: what it refuses, how it changes a mix.

These tests need vLLM, which cannot share an environment with this project's transformers: docs/vllm.md says how to run
them.
"""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from dlp_core.engine.request import Plan
from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.mix import EMPTY_MIX, Mix
from tests.support.engine_contract import EngineContract, by_sentences
from tests.support.engines import assert_nothing_leaked, generate, prompt, run

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from dlp_core.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM are its own
]


class TestInsideVllm(EngineContract):
    pass


async def test_what_it_does_not_serve_is_refused_by_name(engine: VllmEngine) -> None:
    with pytest.raises(AdapterRefused, match="embed"):
        await generate(engine, "n", prompt(1), Mix.of({"embedding": 1.0}))
    plan = Plan(((0, EMPTY_MIX),), lambda token: None)
    for settings in ({"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"response_format": "{}"}):
        with pytest.raises(InvalidRequest, match=next(iter(settings))):
            await generate(engine, "n", prompt(1), plan, ignore_eos=False, **settings)
    assert_nothing_leaked(engine)


async def test_a_change_of_the_mix_is_an_abort_and_a_request_with_the_tokens_so_far(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[str] = []
    generate_in_vllm = engine._llm.generate

    def spy(prompt: Any, parameters: Any, request_id: str) -> Any:
        submitted.append(request_id)
        return generate_in_vllm(prompt, parameters, request_id)

    monkeypatch.setattr(engine._llm, "generate", spy)
    for number, (ids, plan) in enumerate(by_sentences()):
        found = await run(engine, f"f{number}", ids, plan, max_tokens=32)
        changes = [span for span in found.spans if len(ids) <= span.start]
        stretches = [name for name in submitted if name.startswith(f"f{number}~")]
        assert stretches == [f"f{number}~{stretch}" for stretch in range(len(changes) + 1)]
    assert len(submitted) > 2 * len(by_sentences())
    assert_nothing_leaked(engine)


async def test_the_scheduler_and_the_model_are_in_processes_of_their_own(engine: VllmEngine) -> None:
    """So all of the above holds across them."""
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    assert any("EngineCor" in name for name in names), names
    assert any("Worker" in name for name in names), names
