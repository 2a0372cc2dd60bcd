"""A tiny model, a bank of three adapters with a trained router, and a suite: all real, at a thousandth of the size."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from dlp_core.engine.config import EngineConfig
from dlp_core.engine.loading import Loaded, load
from dlp_core.eval.judged_bank import JudgedBank
from dlp_core.router import Router
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.train import train_router
from examples.tiny.build import BASE, TASKS
from examples.tiny.model import peft_model, tiny_backbone
from tests.support.router_rows import QUICK

SUITE = """
name: tiny
data: [rows.jsonl]
types:
  mcq: {metrics: [likelihood, accuracy], max_tokens: 6}
  qa: {metrics: [f1, exact_match, bleu, rouge1, rougeL], max_tokens: 6}
composite: {parts: [2, 3], prompts: 2}
"""


def write_base(folder: Path) -> Path:
    tiny_backbone(folder / BASE)
    return folder / BASE


def write_bank(folder: Path, base: Path, *, seeds: Mapping[str, int] | None = None, joint: bool = True) -> Path:
    """Write a bank folder; `seeds` gives adapters other weights."""
    from transformers import AutoModelForCausalLM

    names = [*TASKS, *(["joint"] if joint else [])]
    for number, name in enumerate(names):
        seed = (seeds or {}).get(name, number)
        peft_model(AutoModelForCausalLM.from_pretrained(base), seed).save_pretrained(folder / "adapters" / name)
    trained_router().save(folder / "router")
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE, "unrouted": ["joint"] if joint else []}))
    return folder


@cache
def trained_router() -> Router:
    """A router that is sure of the tasks' questions, with or without a full stop."""
    questions = [(task, text.format(number)) for task, text in TASKS.items() for number in range(60)]
    rows = [TaskRow(task, text + stop) for task, text in questions for stop in ("", ".")]
    return train_router(rows, QUICK)[0]


def write_suite(folder: Path, *, rows: int = 4, text: str = SUITE) -> Path:
    """Write a suite with its data beside it: multiple choice for cron, free text for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for task, question in TASKS.items():
        for number in range(rows):
            question_text = question.format(100 + number)
            if task == "cron":
                question_text += "\n(A) never\n(B) always"
            answer = "(B) always" if task == "cron" else f"answer {number}"
            kind = "mcq" if task == "cron" else "qa"
            records.append({"task": task, "type": kind, "input": question_text, "output": answer})
    write_rows(folder / "rows.jsonl", records)
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


def write_rows(path: Path, records: Sequence[Mapping[str, str | None]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@asynccontextmanager
async def running(base: Path, bank: JudgedBank) -> AsyncIterator[Loaded]:
    """An engine over the bank, in float32."""
    config = EngineConfig(slots=4, cache_tokens=4096)
    loaded = load(base, bank.source, config, dtype="float32", device="cpu")
    await loaded.engine.start()
    try:
        yield loaded
    finally:
        await loaded.engine.stop()
