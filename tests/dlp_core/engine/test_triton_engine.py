"""The op for CUDA devices in the engine: real segments, and adapters that are loaded and evicted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.fusion.cpu import CpuOp
from dlp_core.fusion.layers import install
from dlp_core.fusion.op import Op
from dlp_core.fusion.triton import TritonOp
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from tests.dlp_core.engine.test_engine import assert_nothing_leaked, generate, prompt
from tests.support.tiny import peft_adapter, tiny_llama

pytestmark = pytest.mark.model

CONFIG = EngineConfig(slots=2, page_tokens=8, cache_tokens=256, batch_tokens=8)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
JOBS = [
    (prompt(1, 13), Mix.of({"a": 0.7, "b": 0.3})),  # more tokens than a batch
    (prompt(2, 3), EMPTY_MIX),
    (prompt(3, 5), Mix.of({"b": 1.0})),
    (prompt(4, 4), Mix.of({"c": 1.0})),  # waits for a slot
]


async def test_the_engine_generates_the_same_tokens_with_either_op(tmp_path: Path) -> None:
    targets = ["q_proj", "v_proj", "down_proj"]
    folders = {n: peft_adapter(tmp_path / n, i, r=2 + i, target_modules=targets) for i, n in enumerate("abc")}

    async def run(device: torch.device, op: Op) -> list[tuple[list[int], str | None]]:
        model = tiny_llama().to(device)
        fusion = install(model, op)
        engine = FusedEngine(model, fusion, Residency(FolderSource(folders), fusion, CONFIG.slots), CONFIG)
        await engine.start()
        try:
            jobs = (generate(engine, f"r{i}", *job, max_tokens=4, ignore_eos=True) for i, job in enumerate(JOBS))
            found = await asyncio.gather(*jobs)
            assert_nothing_leaked(engine)
            return found
        finally:
            await engine.stop()

    assert await run(DEVICE, TritonOp(DEVICE, torch.float32)) == await run(torch.device("cpu"), CpuOp(torch.float32))
