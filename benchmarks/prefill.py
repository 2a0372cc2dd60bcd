"""Prefill of a prompt: the plain model, one adapter, a mix of three, and what else runs LoRA on the same weights.

    .venv/bin/python -m benchmarks.prefill MODEL_DIR [--quick] [--out FILE]

One forward pass over 128 to 2,048 tokens, which all run under one mix, as those of one request do; `three prompts` is
the same number of tokens of three requests with mixes of their own. `loop` is the mix of three by what the paper
released (peers/loop.py), `peft ...` are PEFT's ways (peers/peft.py); they take part at 512 tokens, with q,v at rank 8.
`ratio` is over the plain model. The longest prompts get fewer rounds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.measure.harness import compared, interleaved, model_folder, report, run
from benchmarks.measure.models import Models, Sides
from benchmarks.measure.synthetic import under
from benchmarks.measure.targets import Target, judged
from dlp_core.fusion.segments import Segment

MIX = ((0, 0.5), (1, 0.3), (2, 0.2))


class Cell(NamedTuple):
    targets: str
    rank: int
    tokens: int

    @property
    def promised(self) -> bool:
        """Whether there is a target for it, and peers."""
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
    """What takes turns at this length."""
    pass_ = partial(prefill, tokens)
    fused = partial(under, models.fusion, partial(pass_, models.fused), head_rows=[tokens - 1])
    third = tokens // 3
    three = [Segment(third, tuple((slot + shift, weight) for slot, weight in MIX)) for shift in (0, 2)]
    three.append(Segment(tokens - 2 * third, tuple((slot + 4, weight) for slot, weight in MIX)))
    found: Sides = {
        "base": partial(pass_, models.plain),
        "one": fused([Segment(tokens, ((0, 1.0),))]),
        "k=3": fused([Segment(tokens, MIX)]),
        "three prompts, k=3": fused(three),
    }
    return found | models.peers(pass_, [Segment(tokens, MIX)], rows=1) if peers else found


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
        if quick and not cell.promised:
            continue
        models.hold(cell.targets, (cell.rank,), peers=cell.promised)
        count = rounds if cell.tokens <= 512 else max(2, rounds // 2)
        taking_turns = sides(models, cell.tokens, peers=cell.promised)
        found = interleaved(taking_turns, rounds=count, calls=max(1, 256 // cell.tokens))
        rows += [{**cell._asdict(), **row} for row in compared(found, "base")]
        if cell.promised:
            targets.append(Target("prefill of 512 tokens, k=3 over base", found["k=3"].over(found["base"]), 1.10))
    kept = judged(targets)
    report("prefill", rows, out=out, model=model.name, dtype="bfloat16", targets=kept)


if __name__ == "__main__":
    run(main)
