"""The worker for CUDA devices, played on a CPU with vLLM's own model runners: what it says equals merged weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlp_core.engine.config import EngineConfig
from dlp_core.residency.sources import FolderSource
from tests.support.interpreted_triton import interpreted_triton
from tests.support.paths import ROOT

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")
pytest.importorskip("triton", reason="Triton is not installed in this environment")

from vllm.platforms import current_platform

from dlp_core.vllm.arrivals import COPYING
from dlp_core.vllm.loading import load
from dlp_core.vllm.seam.gpu_worker import GpuMixWorker

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.filterwarnings("ignore")]  # those of vLLM are its own


def run(*words: str, **variables: str) -> str:
    path = os.pathsep.join([*filter(None, [variables.pop("PYTHONPATH", "")]), str(ROOT)])
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_PLUGINS": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        env=environment | variables | {"PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(("runner", "module"), [("0", "cpu_model_runner"), ("1", "cpu.model_runner")])
def test_graphs_captured_without_a_mix_say_what_merged_weights_say(
    runner: str, module: str, folder: Path, tmp_path: Path
) -> None:
    """Mixes of one to three adapters beside the plain model, one of them changing inside its prompt; then once more
    with the same adapters in each other's slots."""
    variables = interpreted_triton(tmp_path / "site")
    in_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": runner}
    words = run("-m", "tests.support.played_gpu", str(folder), **variables, **in_process)
    report = json.loads(words.splitlines()[-1])
    assert report["runner"].endswith(module)
    assert report["said"] == report["expected"]
    assert report["said_after_a_move"] == report["expected"]
    assert any(tokens > 6 for tokens, _ in report["batches"]), "computed by the layers' code"
    assert any(tokens <= 6 for tokens, _ in report["batches"]), "by graphs"
    assert any(tokens < padded for tokens, padded in report["batches"])


def test_the_module_of_the_worker_leaves_torch_cuda_as_it_is() -> None:
    """vLLM's worker for CPUs takes the place of streams and events, in the process that imports it."""
    told = run("-c", "import torch, dlp_core.vllm.seam.gpu_worker; print(torch.cuda.Stream.__module__)")
    assert told.split() == ["torch.cuda.streams"]
    told = run("-c", "import torch, dlp_core.vllm.seam.cpu_worker; print(torch.cuda.Stream.__module__)")
    assert told.split() == ["vllm.v1.worker.cpu.shm"]


class TwoLooks:
    """Arrivals of one adapter, or of an error, at the second look."""

    def __init__(self, outcome: object) -> None:
        self._outcomes = [None, outcome]

    def expects(self, slot: int) -> bool:
        return bool(self._outcomes)

    def take(self, slot: int) -> object:
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def test_a_worker_answers_as_often_as_others_copy() -> None:
    worker = GpuMixWorker.__new__(GpuMixWorker)
    worker._residents, worker._arrivals = {}, TwoLooks("adapter")
    assert [worker.dlp_placed(3) for _ in range(3)] == [COPYING, None, None]
    assert worker._residents == {3: "adapter"}
    worker._residents, worker._arrivals = {}, TwoLooks(MemoryError("none left"))
    assert [worker.dlp_placed(3) for _ in range(3)] == [COPYING, "MemoryError: none left", None]
    assert worker._residents == {}


@pytest.mark.parametrize(("cuda", "worker"), [(False, "cpu_worker.CpuMixWorker"), (True, "gpu_worker.GpuMixWorker")])
def test_the_platform_chooses_the_worker(
    cuda: bool, worker: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folder / "base", FolderSource({}), EngineConfig(kind="vllm", slots=5), dtype="float32").engine
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: cuda)
    arguments = engine._arguments()
    assert arguments["worker_cls"] == f"dlp_core.vllm.seam.{worker}"
    assert arguments["additional_config"]["dlp"]["slots"] == 5, "what graphs are made for"
