"""One decode step of a batch: the plain model, one adapter, and mixes of several, each row another one.

    .venv/bin/python -m benchmarks.decode_step MODEL_DIR [--quick] [--out FILE]

Sides of each cell (targets, ranks, sequences), timed in turn:

    base        the model as it is
    idle        fusion installed, no adapter active
    one         one adapter for all rows
    k=1..4      every row another mix of k of 8 adapters
    k=3 of N    the same of 26 and of 100 adapters
    k=3 beside 100   the traffic of k=3, with 100 adapters resident instead of 8

`ratio` is over base. The step is the model's forward pass over one token a sequence, 128 tokens in its cache.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.harness import compared, interleaved, report
from benchmarks.synthetic import TARGETS, load_model, random_adapter, under
from dlp_core.layers import Fusion, install
from dlp_core.ops.segments import Segment

CONTEXT = 128
RANKS = {"8": (8,), "16": (16,), "64": (64,), "mixed": (4, 8, 16, 32)}
FEW, MANY = 8, 100


class Models(NamedTuple):
    """Three copies of one model: as it is, and with few and many resident adapters."""

    plain: Any
    few: Any
    few_fusion: Fusion
    many: Any
    many_fusion: Fusion


class Decoder:
    """A batch in the middle of its generation."""

    def __init__(self, model: Any, sequences: int) -> None:
        random = torch.Generator().manual_seed(1)
        ids = torch.randint(3, model.config.vocab_size, (sequences, CONTEXT), generator=random)
        self._model = model
        self._token = ids[:, -1:]
        self._cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values

    def step(self) -> None:
        self._model(self._token, past_key_values=self._cache, use_cache=True)
        self._cache.crop(-1)


def mixes(sequences: int, k: int, adapters: int) -> list[Segment]:
    """A mix of k of so many adapters for each row, all different where there are enough."""
    random = Random(k)
    seen: set[frozenset[int]] = set()
    found = []
    for _ in range(sequences):
        for _ in range(20):
            chosen = random.sample(range(adapters), k)
            if frozenset(chosen) not in seen:
                break
        seen.add(frozenset(chosen))
        found.append(Segment(1, tuple((slot, 1 / k) for slot in sorted(chosen))))
    return found


def cell(models: Models, *, sequences: int, rounds: int, calls: int) -> list[dict[str, Any]]:
    base, few, many = (Decoder(model, sequences) for model in (models.plain, models.few, models.many))
    with_few, with_many = (partial(under, models.few_fusion, few.step), partial(under, models.many_fusion, many.step))
    sides = {"base": base.step, "idle": few.step, "one": with_few([Segment(1, ((0, 1.0),))] * sequences)}
    for k in (1, 2, 3, 4):
        sides[f"k={k}"] = with_few(mixes(sequences, k, FEW))
    sides[f"k=3 beside {MANY}"] = with_many(mixes(sequences, 3, FEW))
    for number in (26, MANY):
        sides[f"k=3 of {number}"] = with_many(mixes(sequences, 3, number))
    return compared(interleaved(sides, rounds=rounds, calls=calls), "base")


@torch.inference_mode()
def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    quick: Annotated[bool, typer.Option(help="q,v at rank 8 only, fewer rounds.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    plain, few, many = (load_model(model) for _ in range(3))
    models = Models(plain, few, install(few), many, install(many))
    result = []
    for targets, ranks in [("q,v", "8")] if quick else product(TARGETS, RANKS):
        for slot in range(MANY):
            rank = RANKS[ranks][slot % len(RANKS[ranks])]
            shapes = models.few_fusion.shapes
            adapter = random_adapter(f"a{slot}", shapes, targets=TARGETS[targets], rank=rank, seed=slot)
            models.many_fusion.load(slot, adapter)
            if slot < FEW:
                models.few_fusion.load(slot, adapter)
        for sequences in (1, 4, 16) if quick else (1, 4, 16, 64):
            found = cell(models, sequences=sequences, rounds=3 if quick else rounds, calls=max(2, 16 // sequences))
            result += [{"targets": targets, "rank": ranks, "sequences": sequences, **row} for row in found]
    report("decode step", result, out=out, model=model.name, dtype="bfloat16", context=CONTEXT)


if __name__ == "__main__":
    typer.run(main)
