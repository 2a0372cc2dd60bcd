"""Start and stop the engines of benchmarks/throughput.py, all with the same adapters."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.synthetic import TARGETS
from benchmarks.measure.worker import Batch, BatchResult, Worker, WorkerFailed
from benchmarks.peers import is_installed, report_skipped
from dlp_core.fusion.layers import read_shapes

INSIDE = "ours in vllm"
"""Our engine over vLLM."""

ADAPTERS = tuple(f"a{number}" for number in range(8))


class Engine(Protocol):
    """A process that runs batches; implemented by `Worker` and by `LlamaServer`."""

    versions: Mapping[str, str]

    def run(self, batch: Batch) -> BatchResult: ...

    def close(self) -> None: ...


class Side(NamedTuple):
    """An engine running mixes of k adapters; k is 0 for the plain model."""

    engine: str
    k: int

    @property
    def name(self) -> str:
        return f"k={self.k}" if self.k else "plain"


@contextmanager
def start_engines(
    model: Path, scratch: Path, *, dtype: str, vllm_python: Path | None, llama_server: Path | None
) -> Iterator[dict[Side, Engine]]:
    """Start the engines and yield them by the sides they run. A peer that is not given or does not start is skipped."""
    adapters = scratch / "adapters"
    shapes = read_shapes(model)
    for seed, name in enumerate(ADAPTERS):
        write_adapter(adapters / name, shapes, targets=TARGETS["q,v"], rank=8, seed=seed)

    def worker(python: Path, module: str, *arguments: str | Path) -> Worker:
        log = scratch / f"{module}-{len(list(scratch.iterdir()))}.log"
        return Worker([str(python), "-m", f"benchmarks.{module}", *map(str, arguments)], log)

    def our_engine(python: Path, kind: str) -> Worker:
        return worker(python, "measure.engine_worker", kind, dtype, model, adapters)

    with ExitStack() as running:
        engines: dict[Side, Engine] = {}

        def start(name: str, ks: Sequence[int], load: Callable[[], Engine]) -> None:
            print(f"loading {name}: {', '.join(Side(name, k).name for k in ks)}", file=sys.stderr)
            engine = load()
            running.callback(engine.close)
            engines.update({Side(name, k): engine for k in ks})

        start("ours", (0, 1, 2, 3), lambda: our_engine(Path(sys.executable), "transformers"))
        if vllm_python is None:
            report_skipped("vllm", "give the Python that has it with --vllm-python or VLLM_PYTHON")
        else:
            with _skip_on_failure(INSIDE):
                start(INSIDE, (0, 1, 2, 3), lambda: our_engine(vllm_python, "vllm"))
            with _skip_on_failure("vllm"):
                start("vllm", (0,), lambda: worker(vllm_python, "peers.vllm", dtype, model))
                start("vllm", (1,), lambda: worker(vllm_python, "peers.vllm", dtype, model, adapters))
        if llama_server is None:
            report_skipped("llama.cpp", "give its server's binary with --llama-server or LLAMA_SERVER")
        elif dtype != "bfloat16":
            report_skipped("llama.cpp", "its files are written in bfloat16 alone")
        elif is_installed("gguf"):
            from benchmarks.peers.llama_cpp import LlamaServer  # noqa: PLC0415

            threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
            with _skip_on_failure("llama.cpp"):
                start("llama.cpp", (0, 2), lambda: LlamaServer(llama_server, model, adapters, threads, scratch))
        yield engines


@contextmanager
def _skip_on_failure(peer: str) -> Iterator[None]:
    try:
        yield
    except (WorkerFailed, OSError, ValueError) as error:
        report_skipped(peer, str(error))
