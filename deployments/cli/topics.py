"""Topics that no adapter serves, as `dlp improve propose` shows and writes them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from deployments import terminal

if TYPE_CHECKING:
    from dlp_core.improve.proposals import Proposals
    from dlp_core.store.protocol import AdapterStore


def proposed(store: AdapterStore) -> tuple[Proposals, dict[str, str]]:
    """The last run's proposals, or those of now, and the prompts."""
    from dlp_core.errors import NotFound
    from dlp_core.improve import run as runs
    from dlp_core.improve.meaning import by_router, by_teacher
    from dlp_core.improve.proposals import Proposals, texts_of
    from dlp_core.improve.rows import read_rows, said_by
    from dlp_core.improve.steps import proposals
    from dlp_core.router.training.teacher import packaged_teacher

    last = runs.latest(store)
    if last is not None and not last[0].over and last[0].proposals is not None:
        try:
            found = Proposals.model_validate_json(store.get(last[0].key("proposals.json")).data)
            return found, dict(texts_of(store, read_rows(store, last[0])))
        except NotFound:
            pass
    from dlp_core.bank.revision import download_router

    teacher = packaged_teacher()
    meaning = by_router(download_router(store)) if teacher is None else by_teacher(teacher)
    rows = said_by(store, time.time())
    return proposals(store, rows, meaning, until=time.time()), dict(texts_of(store, rows))


def as_json(found: Proposals, texts: dict[str, str]) -> dict[str, Any]:
    return {
        "looked_at": found.looked_at,
        "topics": [
            {**topic.model_dump(mode="json"), "examples": [texts[id] for id in topic.requests if id in texts]}
            for topic in found.topics
        ],
    }


def say(found: Proposals, texts: dict[str, str]) -> None:
    from dlp_core.improve.proposals import SHOWN

    terminal.say(f"{found.looked_at} prompts without an adapter, {len(found.topics)} topics among them")
    if not found.topics:
        return
    table = Table("prompts", "words", "alike", "such as")
    for topic in found.topics:
        examples = [" ".join(texts[id].split())[:80] for id in topic.requests if id in texts][:SHOWN]
        table.add_row(str(topic.prompts), " ".join(topic.words), f"{topic.cohesion:.2f}", escape("\n".join(examples)))
    terminal.out.print(table)


def write(found: Proposals, texts: dict[str, str], out: Path) -> None:
    """A file for each topic, which `dlp adapter train --data` reads once its answers are written."""
    out.mkdir(parents=True, exist_ok=True)
    for number, topic in enumerate(found.topics, 1):
        name = "-".join([f"{number:02}", *topic.words[:3]])
        lines = [{"input": texts[id], "output": ""} for id in topic.requests if id in texts]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
