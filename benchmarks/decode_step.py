"""One decode step of a batch: the plain model, ours under mixes, and what else runs LoRA on the same weights.

    .venv/bin/python -m benchmarks.decode_step MODEL_DIR [--quick] [--out FILE]

Sides of each cell (targets, ranks, sequences), timed in turn:

    base        the model as it is
    idle        fusion installed, no adapter active
    one         one adapter for all rows
    k=1..4      every row another mix of k of 8 adapters
    k=3 of N    the same of 26 and of 100 adapters
    k=3 beside 100   the traffic of k=3, with 100 adapters resident instead of 8
    loop        the traffic of k=3 by what the paper released (peers/loop.py)
    peft ...    PEFT's ways (peers/peft.py); only `peft rows` lets rows differ, by one adapter each

q,v at rank 8 has all sides, 16 sequences with all linear layers at rank 16 those of 8 adapters, the rest of the grid
base, one, k=1 and k=3. `ratio` is over base. The step is the model's forward pass over one token a sequence, 128 tokens
in its cache.
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

from benchmarks.measure.harness import Timing, compared, interleaved, model_folder, report, run
from benchmarks.measure.models import ADAPTERS, Models, Sides
from benchmarks.measure.synthetic import TARGETS, random_adapter, twin, under
from benchmarks.measure.targets import Target, judged
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
        """And the peers."""
        return self.has_many or self == ("all-linear", "16", 16)


def grid(quick: bool) -> list[Cell]:
    """Cells with the same adapters lie together."""
    if quick:
        return [*(Cell("q,v", "8", sequences) for sequences in (1, 4, 16)), Cell("all-linear", "16", 16)]
    cells = [Cell(*cell) for cell in product(TARGETS, RANKS, (1, 4, 16, 64))]
    return [cell for cell in cells if cell.sequences < 64 or cell.has_many]


class Decoding:
    """A batch in the middle of its generation, whichever model takes its next step."""

    def __init__(self, model: Any, sequences: int) -> None:
        random = torch.Generator().manual_seed(1)
        ids = torch.randint(3, model.config.vocab_size, (sequences, CONTEXT), generator=random)
        self._token = ids[:, -1:]
        self._cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def step(self, model: Any, **options: Any) -> None:
        model(input_ids=self._token, past_key_values=self._cache, use_cache=True, **options)
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


class Bench:
    """The models, and one more whose adapters are many."""

    def __init__(self, folder: Path) -> None:
        self._models = Models(folder)
        self._many = twin(self._models.plain)
        self._many_fusion = install(self._many)
        self._held: tuple[str, str, bool] | None = None

    def sides(self, cell: Cell) -> Sides:
        """What takes turns in this cell."""
        self._hold(cell)
        models, count = self._models, cell.sequences
        step = Decoding(models.plain, count).step
        fused = partial(under, models.fusion, partial(step, models.fused))
        sides: Sides = {"base": partial(step, models.plain), "one": fused([Segment(1, ((0, 1.0),))] * count)}
        if not cell.has_all_k:
            return sides | {f"k={k}": fused(mixes(count, k, ADAPTERS)) for k in (1, 3)}
        sides["idle"] = partial(step, models.fused)
        sides |= {f"k={k}": fused(mixes(count, k, ADAPTERS)) for k in (1, 2, 3, 4)}
        if cell.has_many:
            beside = partial(under, self._many_fusion, partial(step, self._many))
            sides[f"k=3 beside {MANY}"] = beside(mixes(count, 3, ADAPTERS))
            sides |= {f"k=3 of {number}": beside(mixes(count, 3, number)) for number in (26, MANY)}
        return sides | models.peers(step, mixes(count, 3, ADAPTERS), count)

    def _hold(self, cell: Cell) -> None:
        """Makes the adapters of this cell resident everywhere."""
        held = cell.targets, cell.ranks, cell.has_all_k
        if self._held == held:
            return
        self._held = held
        self._models.hold(cell.targets, RANKS[cell.ranks], peers=cell.has_all_k)
        for slot in range(MANY if cell.has_many else 0):
            rank = RANKS[cell.ranks][slot % len(RANKS[cell.ranks])]
            shapes = self._many_fusion.shapes
            adapter = random_adapter(f"a{slot}", shapes, targets=TARGETS[cell.targets], rank=rank, seed=slot)
            self._many_fusion.load(slot, adapter)


def promises(found: Mapping[Cell, Mapping[str, Timing]]) -> list[Target]:
    """The targets of what was measured."""
    targets = []
    for cell, sides in found.items():
        over = partial(_over, sides)
        if cell.has_many and cell.sequences <= 16:
            where = f"{cell.sequences} sequence{'s' * (cell.sequences > 1)}"
            targets += [
                Target(f"idle over base, {where}", over("idle", "base"), 1.01),
                Target(f"k=3 over base, {where}", over("k=3", "base"), 1.10),
                Target(f"k=3 over k=1, {where}", over("k=3", "k=1"), 1.03),
                Target(f"k=3 beside {MANY} over k=3, {where}", over(f"k=3 beside {MANY}", "k=3"), 1.03),
            ]
        elif cell.has_all_k and not cell.has_many:
            what = "k=2 over base, all linear layers at rank 16, 16 sequences"
            targets.append(Target(what, over("k=2", "base"), 1.6))
    return targets


def _over(sides: Mapping[str, Timing], side: str, base: str) -> float:
    return sides[side].over(sides[base])


@torch.inference_mode()
def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    quick: Annotated[bool, typer.Option(help="The cells that have a target, fewer rounds.")] = False,
    rounds: Annotated[int, typer.Option(min=2)] = 5,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    bench = Bench(model)
    found = {}
    for cell in grid(quick):
        calls = 2 if cell.has_all_k and not quick else 1
        found[cell] = interleaved(bench.sides(cell), rounds=3 if quick else rounds, calls=calls)
    rows = [
        {"targets": cell.targets, "rank": cell.ranks, "sequences": cell.sequences, **row}
        for cell, sides in found.items()
        for row in compared(sides, "base")
    ]
    kept = judged(promises(found))
    report("decode step", rows, out=out, model=model.name, dtype="bfloat16", context=CONTEXT, targets=kept)


if __name__ == "__main__":
    run(main)
