"""The same prompts one at a time and all at once, over HTTP: are the answers identical, and how fast are they?

    .venv/bin/python -m benchmarks.concurrent_streams --url http://127.0.0.1:8000 [--streams 32]

Prompts cycle through held-out rows of the demo tasks; every ninth fits no adapter. Prints one JSON object; exits 1 if
an answer or a mix differs. Sides alternate (alone, together, together, alone); times are medians.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import typer
from openai import AsyncOpenAI

from examples.bank.tasks import TASKS, rows

NO_TASK = ("What is the capital of France?", "Tell me a short joke.", "Why is the sky blue?", "Who are you?")


@dataclass(frozen=True, slots=True)
class Streamed:
    """One streamed answer. Times in seconds; `mix` is the mix reported in the reply."""

    text: str
    mix: str
    first_token: float
    total: float
    tokens: int


async def stream(client: AsyncOpenAI, prompt: str, max_tokens: int) -> Streamed:
    started = time.perf_counter()
    first = 0.0
    texts: list[str] = []
    last: Any = None
    chunks = await client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in chunks:
        last = chunk
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - started
            texts.append(chunk.choices[0].delta.content)
    mix = json.dumps(last.dlp["spans"][0]["mix"], sort_keys=True)
    return Streamed("".join(texts), mix, first, time.perf_counter() - started, last.usage.completion_tokens)


async def measure(url: str, streams: int, max_tokens: int) -> dict[str, Any]:
    per_task = -(-streams // len(TASKS))
    by_task = [[row["input"] for row in rows(task, "heldout", per_task)] for task in TASKS]
    task_prompts = itertools.chain.from_iterable(zip(*by_task, strict=True))
    prompts = [NO_TASK[i // 9 % 4] if i % 9 == 8 else next(task_prompts) for i in range(streams)]
    sides: dict[str, list[list[Streamed]]] = {"alone": [], "together": []}
    seconds: dict[str, list[float]] = {"alone": [], "together": []}
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for prompt in prompts:  # warm up, so that no side pays for loading adapters
            await stream(client, prompt, 1)
        for side in ("alone", "together", "together", "alone"):
            started = time.perf_counter()
            if side == "alone":
                answers = [await stream(client, prompt, max_tokens) for prompt in prompts]
            else:
                answers = list(await asyncio.gather(*(stream(client, prompt, max_tokens) for prompt in prompts)))
            seconds[side].append(time.perf_counter() - started)
            sides[side].append(answers)
    reference = [(answer.text, answer.mix) for answer in sides["alone"][0]]
    runs = [run for side in sides.values() for run in side]
    different = sorted({i for run in runs for i, a in enumerate(run) if (a.text, a.mix) != reference[i]})
    tokens = sum(answer.tokens for answer in sides["alone"][0])
    return {
        "streams": streams,
        "mixes": len({mix for _, mix in reference}),
        "different": [prompts[i] for i in different],
        "tokens": tokens,
        **{
            side: {
                "seconds": round(median(seconds[side]), 2),
                "tokens_per_s": round(tokens / median(seconds[side]), 1),
                "first_token_s": round(median(a.first_token for run in sides[side] for a in run), 3),
            }
            for side in sides
        },
    }


def main(
    url: Annotated[str, typer.Option(help="A running endpoint, as make demo prints it.")] = "http://127.0.0.1:8000",
    streams: Annotated[int, typer.Option(min=1, max=64)] = 32,
    max_tokens: Annotated[int, typer.Option(min=1)] = 48,
) -> None:
    result = asyncio.run(measure(url, streams, max_tokens))
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["different"]))


if __name__ == "__main__":
    typer.run(main)
