"""Prefill of a prompt: the plain model, one adapter, a mix of three, and the peers on the same weights.

    .venv/bin/python -m benchmarks.prefill MODEL_DIR [--quick] [--out FILE]

One forward pass over 128 to 2,048 tokens, all under one mix, like those of one request; `three prompts` is the same
number of tokens in three requests with different mixes. `loop` is the mix of three in the paper's released code
(peers/loop.py), `peft ...` are PEFT's ways (peers/peft.py); both run only at 512 tokens with q,v at rank 8. `ratio` is
relative to the plain model. The longest prompts get fewer rounds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.measure.harness import comparison_rows, model_folder, report, run, time_interleaved
from benchmarks.measure.models import Models, Sides
from benchmarks.measure.synthetic import fused_pass
from benchmarks.measure.targets import Target, target_rows
from dlp_core.fusion.segments import Segment

MIX = ((0, 0.5), (1, 0.3), (2, 0.2))


class Cell(NamedTuple):
    targets: str
    rank: int
    tokens: int

    @property
    def has_target(self) -> bool:
        """Whether it has a target; only then the peers run."""
        return self == ("q,v", 8, 512)


CELLS = (
    Cell("q,v", 8, 128),
    Cell("q,v", 8, 512),
    Cell("q,v", 8, 2048),
    Cell("all-linear", 16, 512),
)


def prefill(tokens: int, model: Any, **options: Any) -> object:
    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, use_cache=False, logits_to_keep=1, **options)


def sides(models: Models, tokens: int, *, peers: bool) -> Sides:
    """The sides at this length."""
    forward = partial(prefill, tokens)
    fused = partial(fused_pass, models.fusion, partial(forward, models.fused), head_rows=[tokens - 1])
    third = tokens // 3
    segments = [Segment(third, tuple((slot + shift, weight) for slot, weight in MIX)) for shift in (0, 2)]
    segments.append(Segment(tokens - 2 * third, tuple((slot + 4, weight) for slot, weight in MIX)))
    ours: Sides = {
        "base": partial(forward, models.plain),
        "one": fused([Segment(tokens, ((0, 1.0),))]),
        "k=3": fused([Segment(tokens, MIX)]),
        "three prompts, k=3": fused(segments),
    }
    return ours | models.peers(forward, [Segment(tokens, MIX)], rows=1) if peers else ours


@torch.inference_mode()
def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    quick: Annotated[bool, typer.Option(help="The cell that has a target only.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 3,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    models = Models(model)
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for cell in CELLS:
        if quick and not cell.has_target:
            continue
        models.load_adapters(cell.targets, (cell.rank,), peers=cell.has_target)
        cell_rounds = rounds if cell.tokens <= 512 else max(2, rounds // 2)
        cell_sides = sides(models, cell.tokens, peers=cell.has_target)
        timings = time_interleaved(cell_sides, rounds=cell_rounds, calls=max(1, 256 // cell.tokens))
        rows += [{**cell._asdict(), **row} for row in comparison_rows(timings, "base")]
        if cell.has_target:
            ratio = timings["k=3"].ratio_to(timings["base"])
            targets.append(Target("prefill of 512 tokens, k=3 over base", ratio, 1.10))
    report("prefill", rows, out=out, model=model.name, dtype="bfloat16", targets=target_rows(targets))


if __name__ == "__main__":
    run(main)
