"""A decode step of transformers' continuous batching as it is, and with this project's attention.

    OMP_NUM_THREADS=2 .venv/bin/python -m benchmarks.attention MODEL_DIR [--dtype float32] [--quick] [--out FILE]

The same plain model, paged cache, scheduler and host preparation, without adapters and without picks. The sides take
turns within each cell: so many sequences, each with so many tokens in the cache. `ms` is one step, its preparation on
the host included; `ratio` is relative to transformers' own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    RequestStatus,
    create_warmup_future_states,
)

from benchmarks.measure.harness import comparison_rows, model_folder, report, run, time_interleaved
from benchmarks.measure.targets import Target, target_rows
from dlp_core.engine.batching import Batching
from dlp_core.engine.config import EngineConfig
from dlp_core.fusion.layers import install

SEQUENCES = (1, 4, 16, 64)
CONTEXTS = (128, 1024)
PAGE = 32
TARGET = (16, 128)
BOUND = 1 / 1.25
"""Of our step relative to transformers', at 16 sequences."""

Step = Callable[[Sequence[FutureRequestState]], None]


class Side:
    """A processor that never ran, and a way to run one of its steps."""

    def __init__(self, manager: ContinuousBatchingManager) -> None:
        self._manager = manager
        self._processor: ContinuousBatchProcessor = manager._create_batch_processor()

    def step(self, sequences: int, context: int) -> Callable[[], None]:
        """Steps of so many sequences whose caches hold `context` tokens, over and over at the same position."""
        self._processor.cache.reset()
        states = create_warmup_future_states(sequences, RequestStatus.DECODING, 1, context, self._processor.cache)
        assert len(states) == sequences, "the cache is too small"

        def run_one() -> None:
            for r in states:
                r.state.position_offset = context
                r.state.tokens_to_process = [1]
            io, cached = self._processor.inputs_and_outputs, sequences * context
            io.prepare_batch_tensors(states, self._processor.logit_processor, False, sequences, cached, False)
            self._compute(states)

        return run_one

    def _compute(self, states: Sequence[FutureRequestState]) -> None:
        self._processor._generation_step(self._manager.model)


class OurSide(Side):
    def _compute(self, states: Sequence[FutureRequestState]) -> None:
        self._manager._steps._enter(states, [], lambda: super(OurSide, self)._compute(states))


def sides(folder: Path, dtype: str) -> dict[str, Side]:
    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    largest = max(SEQUENCES)
    tokens = largest * (max(CONTEXTS) + PAGE)
    theirs = ContinuousBatchingManager(
        model(),
        GenerationConfig(do_sample=False, eos_token_id=-1),
        ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=tokens // PAGE,
            max_batch_tokens=largest,
            max_requests_per_batch=largest,
            use_async_batching=False,
            use_cuda_graph=False,
        ),
    )
    own = model()
    config = EngineConfig(page_tokens=PAGE, cache_tokens=tokens, batch_tokens=largest, max_requests=largest)
    ours = Batching(own, install(own), config, eos=frozenset(), can_hold=lambda _: True)
    return {"transformers": Side(theirs), "ours": OurSide(ours)}


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    *,
    dtype: Annotated[str, typer.Option(help="Precision of both sides.")] = "float32",
    quick: Annotated[bool, typer.Option(help="The cell that has a target, fewer rounds.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 5,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    both, rows, targets = sides(model, dtype), [], []
    for context in CONTEXTS:
        for count in SEQUENCES:
            if quick and (count, context) != TARGET:
                continue
            steps = {name: side.step(count, context) for name, side in both.items()}
            timings = time_interleaved(steps, rounds=3 if quick else rounds, calls=1)
            compared = comparison_rows(timings, "transformers")
            rows += [{"sequences": count, "context": context, **row} for row in compared]
            if (count, context) == TARGET:
                ratio = timings["ours"].ratio_to(timings["transformers"])
                what = f"a step over transformers', {count} sequences of {context} tokens"
                targets.append(Target(what, ratio, BOUND))
    report("attention", rows, out=out, model=model.name, dtype=dtype, targets=target_rows(targets))


if __name__ == "__main__":
    run(main)
