"""Chats that change their adapter every turn: what is left of the prefix cache, and what that is worth.

    .venv/bin/python -m benchmarks.turns MODEL_DIR [--history 2048] [--chats 16] [--turns 8] [--dtype bfloat16]
                                         [--quick] [--out FILE]

All chats of a side take each turn together: every one sends its history, the turns so far and a new user turn of 32
tokens, and gets an answer of 16. `--history` is what a chat has before its first turn; it may be given several times.
The sides, which take each turn one after another:

    plain         no adapter: nothing ever changes
    ordinary      another ordinary adapter each turn, which runs from the first token on
    activated     the same weights as an activated adapter (aLoRA), invoked by the first tokens of a user turn
    activated k=2 a mix of two of those, another one each turn

No side finds anything of another's in the cache. The first turn finds nothing at all, so it has a column of its own,
`first_s`. The others are of the turns after it: `ttft` is the time to the first token in seconds, as percentiles over
all chats and turns, `hits` the share of prompt tokens that were in the cache, `tokens_per_s` the completion's, over
whole turns. `speedup` is the ordinary side's median time to the first token over this one's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from benchmarks.measure.harness import model_folder, report, run
from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.service import percentiles
from benchmarks.measure.synthetic import TARGETS, load_model
from benchmarks.measure.targets import Target, target_rows
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Sampling
from dlp_core.fusion.layers import install
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource

ADAPTERS = 8
TURN, ANSWER = 32, 16
INVOCATION = (3, 4)
"""Tokens that begin each user turn, and are nowhere else."""
HISTORIES = (256, 2048)
HITS, SPEEDUP = 0.95, 5.0
"""Targets at the longest history."""


class Side(NamedTuple):
    name: str
    k: int
    prefix: str = ""

    def mix(self, number: int) -> Mix:
        if not self.k:
            return EMPTY_MIX
        return Mix.of([(f"{self.prefix}{(number + other) % ADAPTERS}", 1 / self.k) for other in range(self.k)])


SIDES = (Side("plain", 0), Side("ordinary", 1, "o"), Side("activated", 1, "a"), Side("activated k=2", 2, "a"))


class Turn(NamedTuple):
    """One turn of all chats: seconds to each first token, tokens of prompts and those found in the cache, seconds."""

    first: list[float]
    prompts: int
    shared: int
    seconds: float


class Chats:
    """Chats of one side on one engine."""

    def __init__(self, engine: FusedEngine, side: Side, *, count: int, history: int, seed: int) -> None:
        self._engine, self._side, self._seed = engine, side, seed
        self._random = np.random.default_rng(seed)
        self._said = [self._words(history) for _ in range(count)]
        self._turns = 0

    async def turn(self) -> Turn:
        for said in self._said:
            said += [*INVOCATION, *self._words(TURN - len(INVOCATION))]
        before, started = self._engine.stats().shared_tokens, time.perf_counter()
        prompts = sum(map(len, self._said))
        first = await asyncio.gather(*(self._answer(number) for number in range(len(self._said))))
        seconds = time.perf_counter() - started
        self._turns += 1
        return Turn(list(first), prompts, self._engine.stats().shared_tokens - before, seconds)

    async def _answer(self, number: int) -> float:
        mix = self._side.mix(number + self._turns)
        started, first = time.perf_counter(), 0.0
        said: list[int] = []
        request = f"{self._side.name}-{self._seed}-{self._turns}-{number}"
        sampling = Sampling(max_tokens=ANSWER, ignore_eos=True)
        async for event in self._engine.submit(self._said[number], mix, sampling, request_id=request):
            if event.token_ids and not said:
                first = time.perf_counter() - started
            said += event.token_ids
        self._said[number] = [*self._said[number], *said]
        return first

    def _words(self, count: int) -> list[int]:
        words: list[int] = self._random.integers(1 + max(INVOCATION), self._engine.vocabulary, count).tolist()
        return words


@asynccontextmanager
async def serving(
    base: Path, cache_tokens: int, chats: int, dtype: torch.dtype = torch.float32
) -> AsyncIterator[FusedEngine]:
    model = load_model(base, dtype)
    fusion = install(model)
    with TemporaryDirectory(prefix="dlp-turns-") as temporary:
        folders = {}
        for number in range(ADAPTERS):
            for prefix, config in (("o", {}), ("a", {"alora_invocation_tokens": INVOCATION, "task_type": "CAUSAL_LM"})):
                folder = folders[f"{prefix}{number}"] = Path(temporary, f"{prefix}{number}")
                write_adapter(folder, fusion.shapes, targets=TARGETS["q,v"], rank=8, seed=number, **config)
        config = EngineConfig(slots=ADAPTERS, max_requests=chats, cache_tokens=cache_tokens)
        engine = FusedEngine(model, fusion, Residency(FolderSource(folders), fusion, ADAPTERS), config)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


async def measure(
    base: Path, histories: Sequence[int], *, chats: int, turns: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    longest = max(histories) + turns * (TURN + ANSWER)
    rows: list[dict[str, Any]] = []
    # the sides' chats, and once more those of the ordinary side, which finds nothing of the turn before
    async with serving(base, (len(SIDES) + 1) * chats * longest, chats, dtype) as engine:
        for history in histories:
            sides = [
                Chats(engine, side, count=chats, history=history, seed=history * len(SIDES) + seed)
                for seed, side in enumerate(SIDES)
            ]
            taken: dict[str, list[Turn]] = {side.name: [] for side in SIDES}
            for _ in range(turns):
                for side, conversations in zip(SIDES, sides, strict=True):
                    await engine.preload(sorted({name for n in range(ADAPTERS) for name in side.mix(n).names}))
                    taken[side.name].append(await conversations.turn())
            rows += summary(history, taken)
    return rows


def summary(history: int, taken: dict[str, list[Turn]]) -> list[dict[str, Any]]:
    """A row for each side."""
    firsts = {name: [second for turn in sides[1:] for second in turn.first] for name, sides in taken.items()}
    rows = []
    for name, (cold, *warm) in taken.items():
        half, tail = percentiles(firsts[name])
        tokens = ANSWER * sum(len(turn.first) for turn in warm)
        rows.append(
            {
                "history": history,
                "side": name,
                "requests": len(firsts[name]),
                "first_s": round(median(cold.first), 3),
                "ttft_p50": round(half, 3),
                "ttft_p99": round(tail, 3),
                "hits": round(sum(turn.shared for turn in warm) / sum(turn.prompts for turn in warm), 3),
                "tokens_per_s": round(tokens / sum(turn.seconds for turn in warm), 1),
                "speedup": round(median(firsts["ordinary"]) / half, 2),
            }
        )
    return rows


def targets_of(rows: Sequence[dict[str, Any]]) -> list[Target]:
    """What is promised of activated adapters, at the longest history."""
    longest = max(row["history"] for row in rows)
    [row] = [row for row in rows if row["history"] == longest and row["side"] == "activated"]
    return [
        Target(f"time to the first token, ordinary over activated, {longest} tokens", row["speedup"], SPEEDUP, True),
        Target(f"prompt tokens found in the cache, {longest} tokens", row["hits"], HITS, True),
    ]


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    *,
    history: Annotated[list[int] | None, typer.Option(min=1, help="Tokens before the first turn.")] = None,
    chats: Annotated[int, typer.Option(min=1, help="At once.")] = 16,
    turns: Annotated[int, typer.Option(min=2)] = 8,
    dtype: Annotated[str, typer.Option(help="Precision of all sides.")] = "float32",
    quick: Annotated[bool, typer.Option(help="4 chats of 3 turns, the shortest history.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    histories = history or list(HISTORIES)
    if quick:
        histories, chats, turns = [min(histories)], 4, 3
    rows = asyncio.run(measure(model, histories, chats=chats, turns=turns, dtype=getattr(torch, dtype)))
    report(
        "turns",
        rows,
        out=out,
        model=model.name,
        dtype=dtype,
        chats=chats,
        turns=turns,
        turn_tokens=TURN,
        answer_tokens=ANSWER,
        adapters=ADAPTERS,
        targets=target_rows(targets_of(rows)),
    )


if __name__ == "__main__":
    run(main)
