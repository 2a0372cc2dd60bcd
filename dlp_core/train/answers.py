"""What a server will answer with a freshly trained adapter: its prompts, its engine, greedy, in bfloat16."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.request import Sampling
from dlp_core.generation.engines import load_engine
from dlp_core.generation.generator import Generator
from dlp_core.mix import Mix
from dlp_core.quiet import quiet_transformers
from dlp_core.residency.sources import FolderSource
from dlp_core.train.rows import Row

MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a held-back row."""

    prompt: str
    """The last message of it."""
    expected: str
    answer: str
    """At most MAX_TOKENS tokens of it."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def answer_rows(base: Path, adapter: Path, rows: Sequence[Row], *, device: str = "cpu") -> list[Answer]:
    """Answer these rows with the adapter in a folder alone, as a server does. `device` is "cpu" or "cuda".

    Raises what loading the engine and generating raise.
    """
    return asyncio.run(_answer(base, adapter, rows, device))


async def _answer(base: Path, adapter: Path, rows: Sequence[Row], device: str) -> list[Answer]:
    config = EngineConfig(slots=1, max_requests=max(1, len(rows)), cuda_graphs=False)
    source = FolderSource({adapter.name: adapter})
    with quiet_transformers():
        loaded = load_engine(base, source, config, dtype="bfloat16", device=device)
    generator = Generator(loaded.engine, loaded.codec, default_max_tokens=MAX_TOKENS)
    mix = Mix.of({adapter.name: 1.0})

    async def answer(number: int, row: Row) -> Answer:
        completion = await generator.complete(row.turns, mix, Sampling(), request_id=f"row-{number}")
        return Answer(row.turns[-1].content, row.output, completion.text)

    await loaded.engine.start()
    try:
        return list(await asyncio.gather(*(answer(number, row) for number, row in enumerate(rows))))
    finally:
        await loaded.engine.stop()
