"""Prefill of a prompt: the plain model, one adapter, and a mix of three.

    .venv/bin/python -m benchmarks.prefill MODEL_DIR [--quick] [--out FILE]

One forward pass over 128 to 2,048 tokens, which all run under one mix, as those of one request do; `three prompts` is
the same number of tokens of three requests with mixes of their own. `ratio` is over the plain model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.harness import compared, interleaved, report
from benchmarks.synthetic import TARGETS, load_model, random_adapter, under
from dlp_core.layers import Fusion, install
from dlp_core.ops.segments import Segment

ADAPTERS = 8
RANKS = (8, 16)


def prefill(model: Any, tokens: int) -> Callable[[], object]:
    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    return lambda: model(ids, use_cache=False, logits_to_keep=1)


def cell(plain: Any, fused: Any, fusion: Fusion, tokens: int, rounds: int) -> list[dict[str, Any]]:
    base, pass_ = prefill(plain, tokens), prefill(fused, tokens)
    third = tokens // 3
    three = [Segment(third, ((slot, 0.5), (slot + 1, 0.3), (slot + 2, 0.2))) for slot in (0, 2)]
    three.append(Segment(tokens - 2 * third, ((4, 0.5), (5, 0.3), (6, 0.2))))
    mixed = partial(under, fusion, pass_, head_rows=[tokens - 1])
    sides = {
        "base": base,
        "one": mixed([Segment(tokens, ((0, 1.0),))]),
        "k=3": mixed([Segment(tokens, ((0, 0.5), (1, 0.3), (2, 0.2)))]),
        "three prompts, k=3": mixed(three),
    }
    return compared(interleaved(sides, rounds=rounds, calls=max(1, 512 // tokens)), "base")


@torch.inference_mode()
def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    quick: Annotated[bool, typer.Option(help="q,v at rank 8 and 512 tokens only, fewer rounds.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 7,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    plain, fused = load_model(model), load_model(model)
    fusion = install(fused)
    result = []
    for targets, rank in [("q,v", 8)] if quick else product(TARGETS, RANKS):
        for slot in range(ADAPTERS):
            fusion.load(slot, random_adapter(f"a{slot}", fusion.shapes, targets=TARGETS[targets], rank=rank, seed=slot))
        for tokens in (512,) if quick else (128, 512, 2048):
            found = cell(plain, fused, fusion, tokens, 3 if quick else rounds)
            result += [{"targets": targets, "rank": rank, "tokens": tokens, **row} for row in found]
    report("prefill", result, out=out, model=model.name, dtype="bfloat16")


if __name__ == "__main__":
    typer.run(main)
