"""vLLM with its worker for CUDA devices on a CPU: kernels are interpreted, graphs emulated, streams of no effect.

    python -m tests.support.played_gpu FOLDER     FOLDER is one of vllm_engine.save_models

Every linear layer is a graph of its own for each number of tokens up to LIMIT, captured before there are adapters or
requests: from then on the layers' code runs in larger passes alone. Batches are padded to even numbers of tokens.
Prints what the model says, and what it says with merged weights, as JSON. Needs VLLM_ENABLE_V1_MULTIPROCESSING=0 and
the variables of `interpreted_triton`; VLLM_USE_V2_MODEL_RUNNER chooses the model runner.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.v1.worker.cpu_worker import CPUWorker

from dlp_core.adapter.weights import read_adapter
from dlp_core.engine.request import Plan
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Pin
from dlp_core.vllm import arrivals
from dlp_core.vllm.device import RemoteDevice
from dlp_core.vllm.plans import KEY, salt_of, to_wire
from dlp_core.vllm.seam.gpu_worker import GpuMixWorker
from dlp_core.vllm.seam.worker import _InFlight
from tests.support.cuda_graphs import Graph, emulated_graphs
from tests.support.engines import Reference, prompt

LIMIT = 6
SLOTS = 3
EVEN = 2
TOKENS = 5
A, BC, ABC = Mix.of({"a": 1.0}), Mix.of({"b": 0.5, "c": 0.5}), Mix.of({"a": 0.3, "b": 0.3, "c": 0.4})
JOBS: list[tuple[list[int], Mix | Plan]] = [
    (prompt(0, 1), EMPTY_MIX),
    (prompt(1, 1), A),
    (prompt(2, 1)[:3], BC),
    (prompt(3, 2), Plan(((0, ABC), (5, EMPTY_MIX), (20, A)))),
    (prompt(4, 1), ABC),
]


class PlayedGpuWorker(GpuMixWorker, CPUWorker):  # type: ignore[misc]
    """All of the GPU's worker, over the CPU's."""

    def load_model(self, **kwargs: Any) -> None:
        self.vllm_config.compilation_config.max_cudagraph_capture_size = LIMIT
        super().load_model(**kwargs)
        layers = dict(self.model_runner.get_model().named_modules())
        for path in _InFlight.parts:
            _capture(layers[path])


def _capture(layer: Any) -> None:
    apply = layer.quant_method.apply
    captured: dict[int, tuple[Tensor, Graph, Tensor]] = {}
    for tokens in range(1, LIMIT + 1):
        graph, x = Graph(), torch.zeros(tokens, layer.input_size)
        with graph.capture():
            y = apply(layer, x, None)
        captured[tokens] = x, graph, y

    def replay(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(x) not in captured:
            y: Tensor = apply(layer, x, bias)
            return y
        ours, graph, y = captured[len(x)]
        ours.copy_(x)
        graph.replay()
        return y.clone()

    layer.quant_method.apply = replay


@contextmanager
def played() -> Iterator[None]:
    """What the worker asks of a GPU and vLLM does not play."""
    with pytest.MonkeyPatch.context() as patches, emulated_graphs(patches):
        patches.setattr(arrivals, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
        patches.setattr(torch.cuda, "device", lambda device: nullcontext())
        yield


def padding(patches: pytest.MonkeyPatch, runner: Any) -> list[tuple[int, int]]:
    """Makes vLLM pad each batch, as it does to the size of a graph. Returns (tokens, padded) of each."""
    seen = []

    def padded(tokens: int) -> int:
        seen.append((tokens, -(-tokens // EVEN) * EVEN))
        return seen[-1][1]

    if hasattr(runner, "model_state"):
        from vllm.v1.worker.gpu import model_runner

        dispatch = model_runner.dispatch_cg_and_sync_dp

        def dispatched(*args: Any, **kwargs: Any) -> Any:
            batch, *rest = dispatch(*args, **kwargs)
            return replace(batch, num_tokens=padded(batch.num_tokens)), *rest

        patches.setattr(model_runner, "dispatch_cg_and_sync_dp", dispatched)
    else:
        determine = runner._determine_batch_execution_and_padding

        def determined(*args: Any, **kwargs: Any) -> Any:
            mode, batch, *rest = determine(*args, **kwargs)
            return mode, replace(batch, num_tokens=padded(batch.num_tokens)), *rest

        patches.setattr(runner, "_determine_batch_execution_and_padding", determined)
    return seen


class Served:
    """Adapters in slots, and requests under their mixes."""

    def __init__(self, llm: LLM, folder: Path) -> None:
        self._llm = llm
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        [shapes], [max_rank] = llm.collective_rpc("dlp_shapes"), llm.collective_rpc("dlp_max_rank")
        self.device = RemoteDevice(self._call, self._loop, shapes, torch.float32, max_rank=max_rank)
        self._pins: dict[str, Pin] = {}

    async def _call(self, method: str, *args: Any) -> Any:
        return self._llm.collective_rpc(method, args=args)

    def place(self, slots: Sequence[str]) -> None:
        """These adapters, into slots 0, 1, ..."""
        self._pins = {name: Pin(slot, name) for slot, name in enumerate(slots)}
        for slot, name in enumerate(slots):
            self.device.place(slot, self.device.pack(read_adapter(self._folder / name, name=name)))

    def said(self, jobs: Sequence[tuple[list[int], Mix | Plan]]) -> list[list[int]]:
        prompts, parameters = [], []
        for ids, mix in jobs:
            wire = to_wire((mix if isinstance(mix, Plan) else Plan.of(mix)).spans, self._pins)
            prompts.append(TokensPrompt(prompt_token_ids=ids, cache_salt=salt_of(wire, "", by_block=False)))
            parameters.append(SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, extra_args={KEY: wire}))
        return [list(output.outputs[0].token_ids) for output in self._llm.generate(prompts, parameters, use_tqdm=False)]


def main(folder: Path) -> None:
    with played(), pytest.MonkeyPatch.context() as patches:
        llm = LLM(
            model=str(folder / "base"),
            dtype="float32",
            enforce_eager=True,
            num_gpu_blocks_override=64,
            kv_cache_memory_bytes=2**30,
            max_num_seqs=8,
            max_num_batched_tokens=16,
            max_model_len=256,
            worker_cls="tests.support.played_gpu.PlayedGpuWorker",
            distributed_executor_backend="uni",
            additional_config={KEY: {"slots": SLOTS}},
        )
        runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        batches = padding(patches, runner)
        served, reference = Served(llm, folder), Reference(folder)
        served.place("abc")
        found = served.said(JOBS)
        served.place("cab")
        again = served.said(JOBS)
        expected = [reference.tokens(ids, mix, TOKENS) for ids, mix in JOBS]
        report = {
            "runner": type(runner).__module__,
            "expected": expected,
            "said": found,
            "said_after_a_move": again,
            "batches": batches,
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
