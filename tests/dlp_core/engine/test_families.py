"""Every model family through the engine: different mixes in one batch, chunked prefill, the tokens of PEFT."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import pytest
import torch

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.fusion.layers import install
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from tests.dlp_core.engine.test_engine import assert_nothing_leaked, generate
from tests.dlp_core.fusion.test_model_families import bank, with_peft
from tests.support.families import FAMILIES, VOCAB

pytestmark = pytest.mark.model

CONFIG = EngineConfig(slots=3, page_tokens=8, cache_tokens=512, batch_tokens=24)
IDS = [3 + (7 * i * i + 5 * i) % (VOCAB - 3) for i in range(40)]  # longer than the sliding windows, and than a batch


@pytest.mark.parametrize("name", FAMILIES)
async def test_the_engine_generates_what_peft_generates(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folders = {folder.name: folder for folder in bank(family, tmp_path)}
    model = family.build()
    fusion = install(model)
    engine = FusedEngine(model, fusion, Residency(FolderSource(folders), fusion, CONFIG.slots), CONFIG)
    await engine.start()
    try:
        mixes = [EMPTY_MIX, *(Mix.of({folder: 1.0}) for folder in folders), Mix.of({"a0": 0.6, "a1": 0.4})]
        jobs = [(IDS[: 40 - i], mix) for i, mix in enumerate(mixes)]
        alone = [await generate(engine, f"a{i}", *job, ignore_eos=True) for i, job in enumerate(jobs)]
        together = await asyncio.gather(
            *(generate(engine, f"b{i}", *job, ignore_eos=True) for i, job in enumerate(jobs))
        )
        assert together == alone
        oracles = [family.build(), *(with_peft(family, folder) for folder in folders.values())]
        for (ids, _), oracle, (tokens, _) in zip(jobs, oracles, alone, strict=False):
            oracle.generation_config.eos_token_id = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = oracle.generate(
                    input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=16,
                    do_sample=False, pad_token_id=0,
                )[0, len(ids) :].tolist()  # fmt: skip
            assert tokens == expected
        assert_nothing_leaked(engine)
    finally:
        await engine.stop()
