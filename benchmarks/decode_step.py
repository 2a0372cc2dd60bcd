"""One decode step of a batch: the plain model, ours under mixes, and the peers on the same weights.

    .venv/bin/python -m benchmarks.decode_step MODEL_DIR [--quick] [--out FILE]

Sides of each cell (targets, ranks, sequences), timed in turn:

    base        the plain model
    idle        fusion installed, no adapter active
    one         one adapter for all rows
    k=1..4      a different mix of k of 8 adapters for every row
    k=3 of N    the same with mixes of 26 and of 100 adapters
    k=3 beside 100   the mixes of k=3, with 100 adapters resident instead of 8
    loop        the mixes of k=3 in the paper's released code (peers/loop.py)
    peft ...    PEFT's ways (peers/peft.py); only in `peft rows` can rows differ, by one adapter each

q,v at rank 8 has all sides; all linear layers at rank 16 with 16 sequences have those of 8 adapters; the rest of the
grid has base, one, k=1 and k=3. `ratio` is relative to base. A step is the model's forward pass over one token per
sequence with 128 tokens in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.measure.harness import Timing, comparison_rows, model_folder, report, run, time_interleaved
from benchmarks.measure.models import ADAPTERS, Models, Sides
from benchmarks.measure.synthetic import TARGETS, fused_pass, random_adapter, twin
from benchmarks.measure.targets import Target, target_rows
from dlp_core.fusion.layers import install
from dlp_core.fusion.segments import Segment

CONTEXT = 128
RANKS = {"8": (8,), "16": (16,), "64": (64,), "mixed": (4, 8, 16, 32)}
MANY = 100


class Cell(NamedTuple):
    targets: str
    ranks: str
    sequences: int

    @property
    def has_many(self) -> bool:
        return (self.targets, self.ranks) == ("q,v", "8")

    @property
    def has_all_k(self) -> bool:
        """Whether it has every k from 1 to 4, and the peers."""
        return self.has_many or self == ("all-linear", "16", 16)


def grid(quick: bool) -> list[Cell]:
    """Cells of the grid; those with the same adapters are adjacent."""
    if quick:
        return [*(Cell("q,v", "8", sequences) for sequences in (1, 4, 16)), Cell("all-linear", "16", 16)]
    cells = [Cell(*cell) for cell in product(TARGETS, RANKS, (1, 4, 16, 64))]
    return [cell for cell in cells if cell.sequences < 64 or cell.has_many]


class Decoding:
    """A batch in the middle of generation; any model with the same weights can take its next step."""

    def __init__(self, model: Any, sequences: int) -> None:
        random = torch.Generator().manual_seed(1)
        ids = torch.randint(3, model.config.vocab_size, (sequences, CONTEXT), generator=random)
        self._token = ids[:, -1:]
        self._cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def step(self, model: Any, **options: Any) -> None:
        model(input_ids=self._token, past_key_values=self._cache, use_cache=True, **options)
        self._cache.crop(-1)


def mixes(sequences: int, k: int, adapters: int) -> list[Segment]:
    """A mix of k of `adapters` adapters for each row, distinct as far as there are enough."""
    random = Random(k)
    seen: set[frozenset[int]] = set()
    segments = []
    for _ in range(sequences):
        for _ in range(20):
            chosen = random.sample(range(adapters), k)
            if frozenset(chosen) not in seen:
                break
        seen.add(frozenset(chosen))
        segments.append(Segment(1, tuple((slot, 1 / k) for slot in sorted(chosen))))
    return segments


class Bench:
    """The models, and another one with many adapters."""

    def __init__(self, folder: Path) -> None:
        self._models = Models(folder)
        self._many = twin(self._models.plain)
        self._many_fusion = install(self._many)
        self._loaded: tuple[str, str, bool] | None = None

    def sides(self, cell: Cell) -> Sides:
        """The sides of this cell."""
        self._load_adapters(cell)
        models, count = self._models, cell.sequences
        step = Decoding(models.plain, count).step
        fused = partial(fused_pass, models.fusion, partial(step, models.fused))
        sides: Sides = {"base": partial(step, models.plain), "one": fused([Segment(1, ((0, 1.0),))] * count)}
        if not cell.has_all_k:
            return sides | {f"k={k}": fused(mixes(count, k, ADAPTERS)) for k in (1, 3)}
        sides["idle"] = partial(step, models.fused)
        sides |= {f"k={k}": fused(mixes(count, k, ADAPTERS)) for k in (1, 2, 3, 4)}
        if cell.has_many:
            fused_many = partial(fused_pass, self._many_fusion, partial(step, self._many))
            sides[f"k=3 beside {MANY}"] = fused_many(mixes(count, 3, ADAPTERS))
            sides |= {f"k=3 of {number}": fused_many(mixes(count, 3, number)) for number in (26, MANY)}
        return sides | models.peers(step, mixes(count, 3, ADAPTERS), count)

    def _load_adapters(self, cell: Cell) -> None:
        """Make the adapters of this cell resident in all models."""
        adapters = cell.targets, cell.ranks, cell.has_all_k
        if self._loaded == adapters:
            return
        self._loaded = adapters
        self._models.load_adapters(cell.targets, RANKS[cell.ranks], peers=cell.has_all_k)
        for slot in range(MANY if cell.has_many else 0):
            rank = RANKS[cell.ranks][slot % len(RANKS[cell.ranks])]
            shapes = self._many_fusion.shapes
            adapter = random_adapter(f"a{slot}", shapes, targets=TARGETS[cell.targets], rank=rank, seed=slot)
            self._many_fusion.load(slot, adapter)


def targets_of(timings: Mapping[Cell, Mapping[str, Timing]]) -> list[Target]:
    """The targets of the measured cells."""
    targets = []
    for cell, sides in timings.items():
        ratio = partial(_ratio, sides)
        if cell.has_many and cell.sequences <= 16:
            sequences = f"{cell.sequences} sequence{'s' * (cell.sequences > 1)}"
            targets += [
                Target(f"idle over base, {sequences}", ratio("idle", "base"), 1.01),
                Target(f"k=3 over base, {sequences}", ratio("k=3", "base"), 1.10),
                Target(f"k=3 over k=1, {sequences}", ratio("k=3", "k=1"), 1.03),
                Target(f"k=3 beside {MANY} over k=3, {sequences}", ratio(f"k=3 beside {MANY}", "k=3"), 1.03),
            ]
        elif cell.has_all_k and not cell.has_many:
            what = "k=2 over base, all linear layers at rank 16, 16 sequences"
            targets.append(Target(what, ratio("k=2", "base"), 1.6))
    return targets


def _ratio(sides: Mapping[str, Timing], side: str, base: str) -> float:
    return sides[side].ratio_to(sides[base])


@torch.inference_mode()
def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    quick: Annotated[bool, typer.Option(help="The cells that have a target, fewer rounds.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 5,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    bench = Bench(model)
    timings = {}
    for cell in grid(quick):
        calls = 2 if cell.has_all_k and not quick else 1
        timings[cell] = time_interleaved(bench.sides(cell), rounds=3 if quick else rounds, calls=calls)
    rows = [
        {"targets": cell.targets, "rank": cell.ranks, "sequences": cell.sequences, **row}
        for cell, sides in timings.items()
        for row in comparison_rows(sides, "base")
    ]
    targets = target_rows(targets_of(timings))
    report("decode step", rows, out=out, model=model.name, dtype="bfloat16", context=CONTEXT, targets=targets)


if __name__ == "__main__":
    run(main)
