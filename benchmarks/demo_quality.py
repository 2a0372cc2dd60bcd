"""Exact match of the demo bank: the plain backbone, the named adapter, and routed (`auto`).

    python -m benchmarks.demo_quality --url http://127.0.0.1:8000/v1     against a running server
    python -m benchmarks.demo_quality --base .demo/SmolLM2-135M-Instruct   in this process, with PEFT

Greedy decoding; an answer is exact if it equals the expected one after stripping whitespace. Rows: the held-out split
of the generators in examples/bank/tasks (people, products, cities, tables, files and dates that training did not see),
and the handwritten examples/bank/handwritten.jsonl. Prints a table and writes every answer as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from openai import OpenAI
from rich.table import Table

from deployments import terminal
from dlp_core.adapter.names import AUTO
from dlp_core.store.tables import read_objects
from examples.bank.tasks import TASKS, background_rows, rows

ROOT = Path(__file__).resolve().parent.parent
BANK = ROOT / "examples/bank"
HANDWRITTEN = "handwritten"
NO_TASK = "of no task"
NAMED = "named"

Row = Mapping[str, str | None]


class Answerer(Protocol):
    """Answers prompts; implemented by `Server` and by `in_process.InProcess`."""

    def answer(self, prompts: Sequence[str], models: Sequence[str], max_tokens: int) -> list[tuple[str, str]]:
        """One (answer, mix) per prompt. A model is `auto`, the base model's name or an adapter's name; a mix reads
        `name=0.80,other=0.20`, or `base`."""
        ...


class Server:
    """A running server, reached through its OpenAI endpoint."""

    def __init__(self, url: str, parallel: int) -> None:
        self._client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=600)
        self._parallel = parallel

    def answer(self, prompts: Sequence[str], models: Sequence[str], max_tokens: int) -> list[tuple[str, str]]:
        def complete(prompt: str, model: str) -> tuple[str, str]:
            reply = self._client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=max_tokens,
            )
            return reply.parse().choices[0].message.content or "", reply.headers["x-dlp-adapters"]

        with ThreadPoolExecutor(self._parallel) as pool:
            return list(pool.map(complete, prompts, models))


def measure(
    answerer: Answerer, suites: Mapping[str, Sequence[Row]], arms: Sequence[str], base: str
) -> list[dict[str, Any]]:
    """One record per suite and arm: the share of exact answers, the share routed to the right task, and all rows."""
    records = []
    for suite, suite_rows in suites.items():
        # An answer longer than every expected one cannot be right, so stopping there loses nothing.
        limit = 8 + max(len(row.get("output") or "") for row in suite_rows) * 2 // 3
        for arm in arms if suite != NO_TASK else [AUTO] * (AUTO in arms):
            started = time.perf_counter()
            models = [str(row["task"]) if arm == NAMED else AUTO if arm == AUTO else base for row in suite_rows]
            answers = answerer.answer([str(row["input"]) for row in suite_rows], models, limit)
            scored = [
                {
                    **row,
                    "answer": text,
                    "mix": mix,
                    "exact": text.strip() == row.get("output"),
                    "routed": mix.partition("=")[0] == (row["task"] or "base"),
                }
                for row, (text, mix) in zip(suite_rows, answers, strict=True)
            ]
            record = {
                "suite": suite,
                "arm": arm,
                "exact": sum(row["exact"] for row in scored) / len(scored) if suite != NO_TASK else None,
                "routed": sum(row["routed"] for row in scored) / len(scored) if arm == AUTO else None,
                "seconds": round(time.perf_counter() - started, 2),
                "rows": scored,
            }
            records.append(record)
            terminal.err.print(f"{suite} {arm}: exact {record['exact']}, routed {record['routed']}", highlight=False)
    return records


def table(records: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> Table:
    """A table with a row for each suite and a column for each arm."""
    table_ = Table("rows", *arms, *(["routed right"] if AUTO in arms else []))
    for suite in dict.fromkeys(record["suite"] for record in records):
        by_arm = {record["arm"]: record for record in records if record["suite"] == suite}
        exact = [_share(by_arm[arm]["exact"]) if arm in by_arm else "" for arm in arms]
        table_.add_row(suite, *exact, *([_share(by_arm[AUTO]["routed"])] if AUTO in by_arm else []))
    return table_


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(
    *,
    url: Annotated[str | None, typer.Option(help="OpenAI endpoint of a running server.")] = None,
    base: Annotated[Path | None, typer.Option(help="Backbone folder, to measure in this process.")] = None,
    adapters: Annotated[Path, typer.Option(help="Adapter folders, with --base.")] = BANK / "adapters",
    router: Annotated[Path, typer.Option(help="Router folder, with --base.")] = BANK / "router",
    suite: Annotated[
        list[str] | None, typer.Option(help="Only these rows: a task, 'handwritten', 'of no task'.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only these arms: base, named, auto.")] = None,
    count: Annotated[int, typer.Option("--rows", min=1, help="Held-out rows per task.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the held-out rows.")] = 0,
    parallel: Annotated[int, typer.Option(min=1, help="Requests at a time, with --url.")] = 16,
    out: Annotated[Path, typer.Option(help="Where the raw answers go.")] = ROOT
    / "benchmarks/results/demo_quality.json",
) -> None:
    """Measure the demo bank on held-out rows."""
    if (base is None) == (url is None):
        raise typer.BadParameter("give either --url or --base")
    arms = arm or ["base", NAMED, AUTO]
    handwritten = [row for _, row in read_objects(BANK / "handwritten.jsonl")]
    suites: dict[str, Sequence[Row]] = {task: rows(task, "heldout", count, seed=seed) for task in TASKS}
    suites[HANDWRITTEN] = [row for row in handwritten if row["task"]]
    suites[NO_TASK] = [*background_rows("heldout", count, seed=seed), *(row for row in handwritten if not row["task"])]
    suites = {name: suites[name] for name in suite or suites}
    answerer: Answerer
    if url is not None:
        answerer = Server(url, parallel)
    else:
        from benchmarks.measure.in_process import InProcess  # noqa: PLC0415 - needs torch and PEFT; a client does not

        assert base is not None
        answerer = InProcess(base, sorted(adapters.iterdir()), router if AUTO in arms else None)
    records = measure(answerer, suites, arms, json.loads((BANK / "bank.json").read_text())["base_model"])
    terminal.out.print(table(records, arms))
    about = {
        "over": "http" if url else "transformers and PEFT, bf16",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "rows": count,
        "seed": seed,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "records": records}, indent=1, ensure_ascii=False) + "\n")
    terminal.out.print(f"raw answers: {out}")


if __name__ == "__main__":
    typer.run(main)
