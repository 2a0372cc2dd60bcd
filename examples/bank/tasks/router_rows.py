"""The router's training rows: the adapters' rows, some reworded, some about other things.

An adapter sees a prompt only if the router picks it, so the router must know more phrasings than the adapters were
trained with. And it must not learn that songs mean music: any task may be about anything.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from examples.bank.tasks import TASKS, background_rows, rows, spoken
from examples.bank.tasks.pools import Split, entries

WANTED = {
    "cron": entries("cron expression|crontab line|cron schedule|cron syntax|crontab entry|crontab|cron job"),
    "iso_date": entries("ISO date|ISO 8601 date|date as YYYY-MM-DD|ISO format|yyyy-mm-dd|ISO"),
    "json_extract": entries("JSON|JSON object|JSON record|structured data|fields as JSON|facts as JSON"),
    "sentiment": entries("sentiment|positive or negative|sentiment label|tone|mood|good or bad"),
    "shell": entries("shell command|bash command|command line|terminal command|linux command|bash|linux"),
    "text_to_sql": entries("SQL|SQL query|query|select statement|SQL statement"),
    "ticket_triage": entries("category and priority|ticket triage|support category|priority|triage|classify ticket"),
    "tool_call": entries("function call|tool call|API call|function and arguments|tool"),
}
FORMS = entries("""
VERB WANTED for TEXT|VERB the WANTED for TEXT|VERB a WANTED: TEXT|TEXT -> WANTED|TEXT => WANTED|VERB WANTED: TEXT
TEXT. VERB WANTED.|TEXT, WANTED please|WANTED? TEXT|TEXT (WANTED)|VERB WANTED. TEXT|how would I write 'TEXT' as WANTED?
what is TEXT in WANTED?|TEXT. Give WANTED.|TEXT as WANTED|TEXT to WANTED|WANTED of: 'TEXT'|WANTED: TEXT|WANTED - TEXT
turn TEXT into WANTED|convert TEXT to WANTED|VERB the WANTED of "TEXT"|I have this: TEXT. VERB WANTED|'TEXT'|TEXT?
what's the WANTED for TEXT|how do I TEXT|how to TEXT|OPENING TEXT|OPENING TEXT thanks
given: TEXT. VERB WANTED
""")
VERBS = entries("""
write|give me|generate|create|produce|make|output|return|show me|tell me|what is|I need|find|figure out|work out|get me
help me with|can I have|extract|parse|determine|print|build|provide|suggest|come up with|reply with|classify as|select
""")
OPENINGS = ("hi,", "hello,", "ok,", "so", "well,", "next:", "another one:", "and now", "now", "task:", "input:",
            "I want",
            "can you", "could you", "would you", "please", "hey", "yo", "user:", "quick question:")  # fmt: skip

_SPOKEN_SHARE = 0.25
_RARE_SHARE = 0.03
"""A word in a smaller share of a task's prompts belongs to a thing, not to the task."""


def router_rows(split: Split, count: int, background: int, *, seed: int = 0) -> list[dict[str, str | None]]:
    """`count` rows of each task and `background` rows of no task."""
    rng = random.Random(f"router/{split}/{seed}")
    prompts: dict[str | None, list[str]] = {
        task: [row["input"] for row in rows(task, split, count, seed=seed)] for task in TASKS
    }
    prompts[None] = [str(row["input"]) for row in background_rows(split, background, seed=seed)]
    things = {task: _things(texts) for task, texts in prompts.items()}
    # With repetitions, so that a word that is frequent in one task becomes frequent in the others, too.
    all_things = [
        word for task, texts in prompts.items() for text in texts for word in _words(text) if word in things[task]
    ]
    result: list[dict[str, str | None]] = []
    for task, texts in prompts.items():
        for prompt in texts:
            if task is not None and split == "train" and rng.random() < _SPOKEN_SHARE:
                result.append({"task": task, "input": spoken.prompt(rng, task)})
                continue
            text = prompt if task is None or rng.random() < 0.5 else _reword(rng, task, split)
            if rng.random() < 0.5:
                text = _swap_things(rng, text, things[task], all_things)
            result.append({"task": task, "input": text})
    return result


def _reword(rng: random.Random, task: str, split: Split) -> str:
    text, _ = TASKS[task].row(rng, split)
    if rng.random() < 0.5:
        text = text[0].lower() + text[1:].rstrip(".")
    form = rng.choice(FORMS).replace("VERB", rng.choice(VERBS)).replace("OPENING", rng.choice(OPENINGS))
    form = form.replace("WANTED", rng.choice(WANTED[task]))
    if rng.random() < 0.5:
        form = form[0].upper() + form[1:]
    return form.replace("TEXT", text)


def _things(prompts: Sequence[str]) -> set[str]:
    """The rare words of a task's prompts."""
    counts = Counter(word for prompt in prompts for word in set(_words(prompt)))
    return {word for word, count in counts.items() if count < _RARE_SHARE * len(prompts)}


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]{3,}", text)


def _swap_things(rng: random.Random, text: str, things: set[str], all_things: Sequence[str]) -> str:
    """`text` with most of its things replaced by random things of all prompts."""
    swapped = {word: rng.choice(all_things) for word in sorted(set(_words(text)) & things) if rng.random() < 0.6}
    return re.sub(r"[A-Za-z]{3,}", lambda match: swapped.get(match[0], match[0]), text)
