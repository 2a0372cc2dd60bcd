"""Mixes over a base model whose weights are quantised: what vLLM's kernels compute, and the mix exactly."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import torch

from dlp_core.engine.request import Plan
from dlp_core.errors import EngineFailed
from dlp_core.mix import EMPTY_MIX, Mix
from tests.support.engine_contract import ABC, BC, A
from tests.support.engines import TARGETS, assert_nothing_leaked, prompt, run
from tests.support.quantised import QuantisedReference, save_quantised
from tests.support.vllm_engine import running

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),  # those of vLLM and of compressed-tensors are theirs
]

HAS_INT4 = hasattr(torch.ops._C, "cpu_gemm_wna16")


@pytest.mark.parametrize(
    "scheme",
    ["W8A8", pytest.param("W4A16", marks=pytest.mark.skipif(not HAS_INT4, reason="vLLM has no kernel for this CPU"))],
)
async def test_mixes_are_added_exactly(scheme: str, folder: Path, tmp_path: Path) -> None:
    root = models(folder, tmp_path, scheme)
    reference = QuantisedReference(root, inputs=scheme == "W8A8")
    jobs: list[tuple[list[int], Mix | Plan]] = [
        (prompt(0), EMPTY_MIX),
        (prompt(1), A),
        (prompt(2), BC),
        (prompt(3), ABC),
        (prompt(4, 9), Plan(((0, EMPTY_MIX), (40, A), (90, BC)))),
    ]
    async with running(root) as engine:
        found = await asyncio.gather(*(run(engine, f"r{number}", *job) for number, job in enumerate(jobs)))
        assert_nothing_leaked(engine)
    for job, completion in zip(jobs, found, strict=True):
        assert completion.tokens == reference.tokens(*job), job[1]


@pytest.mark.skipif(HAS_INT4, reason="vLLM has a kernel for it on this CPU")
async def test_a_checkpoint_that_this_cpu_cannot_compute_is_refused_at_the_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM itself starts, and ends at the first request."""
    monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH", raising=False)  # of the engine that other tests share
    with pytest.raises(EngineFailed, match=r"did not start.*cpu_gemm_wna16"):
        async with running(models(folder, tmp_path, "W4A16")):
            pass


def models(folder: Path, root: Path, scheme: str) -> Path:
    """The adapters of `folder` over the quantised model, in a folder of its own."""
    for name in (*TARGETS, "embedding"):
        shutil.copytree(folder / name, root / name)
    save_quantised(root / "base", scheme)
    return root
