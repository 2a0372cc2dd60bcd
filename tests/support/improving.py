"""A published bank whose router knows the four made-up tasks in one wording, and feedback on other wordings of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from dlp_core.bank.feedback import AdapterShare, Feedback, KeptRequest
from dlp_core.bank.kept import FEEDBACK, REQUESTS, KeptRecord
from dlp_core.bank.publish import publish
from dlp_core.improve.steps import Tools
from dlp_core.router import Router
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.train import train_router
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import BASE_ID, write_adapter
from tests.support.router_rows import QUICK, TASKS, make_rows

ROWS = 70
"""Of the owner, for each task."""

_WORDS = "ash birch cedar dune elm fern grove heath ivy juniper kelp larch moss nettle oak pine reed sage thyme".split()
_OTHERS: dict[str, Callable[[random.Random], str]] = {
    "word_sorting": lambda rng: f"a to z please, {', '.join(rng.sample(_WORDS, 4))}",
    "sum_numbers": lambda rng: f"add up {rng.randint(2, 99)} and {rng.randint(2, 99)} and {rng.randint(2, 99)}",
    "object_owner": lambda rng: (
        f"who ends up with it: {rng.choice(_WORDS)} handed over twice, then {rng.choice(_WORDS)}"
    ),
    "flight_json": lambda rng: f"book me a plane seat, {rng.choice(_WORDS)} airport, day {rng.randint(1, 28)}",
}


def other_words(per_task: int, *, seed: int) -> list[TaskRow]:
    """The same tasks in words that the router was not trained on, each prompt once."""
    rng = random.Random(seed)
    found: dict[str, TaskRow] = {}
    for task, make in _OTHERS.items():
        end = len(found) + per_task
        while len(found) < end:
            text = make(rng)
            found.setdefault(text, TaskRow(task, text))
    return list(found.values())


def strangers(count: int, *, seed: int) -> list[TaskRow]:
    rng = random.Random(seed)
    texts = {f"does {rng.choice(_WORDS)} tea help against {rng.choice(_WORDS)} fever number {n}" for n in range(count)}
    return [TaskRow(None, text) for text in sorted(texts)]


def base_rows() -> list[TaskRow]:
    return [*make_rows(ROWS, seed=0), *strangers(ROWS, seed=1)]


@cache
def first_router() -> Router:
    return train_router(base_rows(), QUICK)[0]


def publish_first(store: AdapterStore, folder: Path, router: Router | None = None) -> str:
    """Publish the bank, with the first router unless there is another; its version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE_ID}))
    for seed, name in enumerate(TASKS):
        write_adapter(folder / "adapters" / name, seed=seed)
    (router or first_router()).save(folder / "router")
    return publish(store, folder).version


def tools(store: AdapterStore, folder: Path) -> Tools:
    return Tools(store, folder / "work", settings=QUICK, max_drop=8.0)


def request(id: str, text: str, *mix: str, confidence: float = 0.9, created: float = 1.0) -> KeptRequest:
    return KeptRequest(
        id=id,
        created=created,
        key="app",
        route="/v1/completions",
        text=text,
        mix=tuple(AdapterShare(adapter=name, weight=1.0) for name in mix),
        reason="routed" if mix else "none_of_these",
        confidence=confidence,
        bank="b",
        router="r",
        status=200,
        error_code=None,
        total_seconds=0.1,
        decide_seconds=0.01,
        first_token_seconds=None,
    )


def said(id: str, *, key: str = "reviewer", created: float = 2.0, **given: object) -> Feedback:
    return Feedback.model_validate({"id": id, "created": created, "key": key, "bank": "b", **given})


def give(store: AdapterStore, *records: KeptRecord, file: str = "a") -> None:
    for prefix, kind in ((REQUESTS, KeptRequest), (FEEDBACK, Feedback)):
        own = [record.line() for record in records if isinstance(record, kind)]
        if own:
            store.put(f"{prefix}2026-11-27/{file}.jsonl", ("\n".join(own) + "\n").encode())


def give_rows(store: AdapterStore, rows: list[TaskRow], *, file: str = "a") -> None:
    """Feedback on texts, one for each row."""
    give(store, *(said(f"{file}-{n}", text=row.input, adapter=row.task) for n, row in enumerate(rows)), file=file)
