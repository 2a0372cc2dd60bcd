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

q,v at rank 8 has all sides, all linear layers at rank 16 those of 8 adapters, the rest of the grid `base`, `one`, k=1
and k=3. `ratio` is over base. The step is the model's forward pass over one token a sequence, 128 tokens in its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.harness import Timing, compared, interleaved, model_folder, report
from benchmarks.peers import installed
from benchmarks.peers.loop import factors, looped
from benchmarks.peft_folder import write_adapter
from benchmarks.synthetic import TARGETS, load_model, random_adapter, twin, under
from benchmarks.targets import Target, judged
from dlp_core.adapter import Adapter
from dlp_core.layers import install
from dlp_core.ops.segments import Segment

CONTEXT = 128
RANKS = {"8": (8,), "16": (16,), "64": (64,), "mixed": (4, 8, 16, 32)}
FEW, MANY = 8, 100
PEFT_MIX = {"a0": 0.5, "a1": 0.3, "a2": 0.2}

Sides = dict[str, Callable[[], object]]


class Cell(NamedTuple):
    targets: str
    ranks: str
    sequences: int

    @property
    def narrow(self) -> bool:
        """The adapters most banks have."""
        return (self.targets, self.ranks) == ("q,v", "8")

    @property
    def wide(self) -> bool:
        return (self.targets, self.ranks) == ("all-linear", "16")


def grid(quick: bool) -> list[Cell]:
    """Cells with the same adapters lie together."""
    if quick:
        return [*(Cell("q,v", "8", sequences) for sequences in (1, 4, 16)), Cell("all-linear", "16", 16)]
    cells = [Cell(*cell) for cell in product(TARGETS, RANKS, (1, 4, 16, 64))]
    return [cell for cell in cells if cell.sequences < 64 or cell.narrow or cell.wide]


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
    """One model's weights: as they are, with fusion over few and over many resident adapters, and as peers run them."""

    def __init__(self, folder: Path) -> None:
        self._plain = load_model(folder)
        self._few, self._many = twin(self._plain), twin(self._plain)
        self._few_fusion, self._many_fusion = install(self._few), install(self._many)
        self._has_peft = installed("peft")
        self._held: tuple[str, str] | None = None
        self._adapters: list[Adapter] = []
        self._peft: Any = None

    def sides(self, cell: Cell) -> Sides:
        """What takes turns in this cell."""
        self._hold(cell)
        count = cell.sequences
        step = partial(partial, Decoding(self._plain, count).step)
        with_few = partial(under, self._few_fusion, step(self._few))
        sides: Sides = {"base": step(self._plain), "one": with_few([Segment(1, ((0, 1.0),))] * count)}
        if not (cell.narrow or cell.wide):
            return sides | {f"k={k}": with_few(mixes(count, k, FEW)) for k in (1, 3)}
        sides["idle"] = step(self._few)
        sides |= {f"k={k}": with_few(mixes(count, k, FEW)) for k in (1, 2, 3, 4)}
        if cell.narrow:
            with_many = partial(under, self._many_fusion, step(self._many))
            sides[f"k=3 beside {MANY}"] = with_many(mixes(count, 3, FEW))
            sides |= {f"k=3 of {number}": with_many(mixes(count, 3, number)) for number in (26, MANY)}
        traffic = mixes(count, 3, FEW)
        adapters = {slot: factors(adapter, torch.bfloat16) for slot, adapter in enumerate(self._adapters)}
        sides["loop"] = step(looped(self._plain, adapters, traffic))
        if self._peft is not None:
            sides |= self._peft.sides(step(self._peft.model), count)
        return sides

    def _hold(self, cell: Cell) -> None:
        """Makes the adapters of this cell resident everywhere."""
        if self._held == (cell.targets, cell.ranks):
            return
        self._held = cell.targets, cell.ranks
        options = [
            {"targets": TARGETS[cell.targets], "rank": RANKS[cell.ranks][slot % len(RANKS[cell.ranks])], "seed": slot}
            for slot in range(MANY if cell.narrow else FEW)
        ]
        shapes = self._few_fusion.shapes
        adapters = [random_adapter(f"a{slot}", shapes, **those) for slot, those in enumerate(options)]
        self._adapters = adapters[:FEW]
        for slot, adapter in enumerate(adapters):
            self._many_fusion.load(slot, adapter)
        for slot, adapter in enumerate(self._adapters):
            self._few_fusion.load(slot, adapter)
        self._peft = None
        if self._has_peft and (cell.narrow or cell.wide):
            from benchmarks.peers.peft import Peft  # noqa: PLC0415

            with TemporaryDirectory() as root:
                folders = {adapter.name: Path(root) / adapter.name for adapter in self._adapters}
                for folder, those in zip(folders.values(), options, strict=False):
                    write_adapter(folder, shapes, **those)
                self._peft = Peft(self._plain, folders, PEFT_MIX)


def promises(found: Mapping[Cell, Mapping[str, Timing]]) -> list[Target]:
    """The targets of what was measured."""
    targets = []
    for cell, sides in found.items():
        over = partial(_over, sides)
        if cell.narrow and cell.sequences <= 16:
            where = f"{cell.sequences} sequences"
            targets += [
                Target(f"idle over base, {where}", over("idle", "base"), 1.02),
                Target(f"k=3 over base, {where}", over("k=3", "base"), 1.10),
                Target(f"k=3 over k=1, {where}", over("k=3", "k=1"), 1.05),
                Target(f"k=3 beside {MANY} over k=3, {where}", over(f"k=3 beside {MANY}", "k=3"), 1.05),
            ]
        if cell.wide and cell.sequences == 16:
            targets.append(
                Target("k=2 over base, all linear layers at rank 16, 16 sequences", over("k=2", "base"), 1.35)
            )
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
    found = {
        cell: interleaved(bench.sides(cell), rounds=3 if quick else rounds, calls=2 if cell.sequences < 64 else 1)
        for cell in grid(quick)
    }
    rows = [
        {"targets": cell.targets, "rank": cell.ranks, "sequences": cell.sequences, **row}
        for cell, sides in found.items()
        for row in compared(sides, "base")
    ]
    kept = judged(promises(found))
    report("decode step", rows, out=out, model=model.name, dtype="bfloat16", context=CONTEXT, targets=kept)


if __name__ == "__main__":
    typer.run(main)
