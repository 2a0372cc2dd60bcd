"""Adapters that a bank may lack: the prompts that none of its adapters serves, by topic.

A prompt has no adapter if people say so, if the router chose none, or if it was not sure (below SURE) and nobody named
one. A topic is a proposal and nothing more: whether it is worth an adapter is for its owner to say. What is stored of a
prompt is its id, so that its text is where `dlp feedback purge` finds it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dlp_core.bank.feedback import KeptRequest
from dlp_core.bank.kept import REQUESTS, read
from dlp_core.improve.clusters import clusters, cohesion
from dlp_core.improve.meaning import Meaning
from dlp_core.improve.rows import FeedbackRow, normalised
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record

SURE = 0.5
"""Confidence below which a router is not sure."""
LEAST = 10
"""Prompts of a topic, at least."""
MOST = 2000
"""Latest prompts that are looked at."""
SHOWN = 3

_ALIKE = 0.2  # mean cosine of the teacher's embeddings within a topic; benchmarks/drift.py has one to find
_WORDS = 6
_WORD = re.compile(r"[^\W\d_]{3,}")


class Proposal(Record):
    """A topic that no adapter serves."""

    prompts: int
    words: tuple[str, ...]
    """The most typical first: in many of its prompts, in few of the others."""
    cohesion: float
    """Mean cosine of two of its prompts."""
    requests: tuple[str, ...]
    """Ids of its prompts' requests, or of the feedback that brought them; the most typical first."""


class Proposals(Record):
    """What no adapter serves, the largest topic first."""

    looked_at: int
    topics: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class Homeless:
    """A prompt that no adapter serves."""

    id: str
    text: str


def homeless(store: AdapterStore, rows: Iterable[FeedbackRow], until: float) -> list[Homeless]:
    """The prompts without an adapter, each once, the latest MOST; kept requests as of `until`, in seconds since 1970,
    and `rows` that say so. Raises StoreUnavailable."""
    said = {normalised(row.input): row for row in rows if row.suspect is None}
    found: dict[str, Homeless] = {}
    for request in read(store, REQUESTS, KeptRequest):
        unsure = not request.mix or (request.confidence is not None and request.confidence < SURE)
        text = normalised(request.text)
        if request.created <= until and unsure and text and request.status < 400:
            row = said.get(text)
            if row is None or row.task is None:
                found[text] = Homeless(request.id, request.text)
    for text, row in said.items():
        if row.task is None:
            found.setdefault(text, Homeless(row.request_id or row.id, row.input))
    return list(found.values())[-MOST:]


def propose(prompts: Sequence[Homeless], meaning: Meaning) -> Proposals:
    """The topics of at least LEAST prompts."""
    x_BD = meaning([prompt.text for prompt in prompts])
    words = [set(_WORD.findall(prompt.text.casefold())) for prompt in prompts]
    everywhere = Counter(word for own in words for word in own)
    topics = []
    for group in clusters(x_BD, least=_ALIKE):
        if len(group) < LEAST:
            break
        centre = x_BD[group].mean(axis=0)
        typical = sorted(group, key=lambda row: -float(x_BD[row] @ centre))
        topics.append(
            Proposal(
                prompts=len(group),
                words=_typical_words([words[row] for row in group], everywhere, len(prompts)),
                cohesion=round(cohesion(x_BD[group]), 3),
                requests=tuple(prompts[row].id for row in typical),
            )
        )
    return Proposals(looked_at=len(prompts), topics=tuple(topics))


def texts_of(store: AdapterStore, rows: Iterable[FeedbackRow]) -> Mapping[str, str]:
    """The prompts that a proposal's ids stand for, as far as they are still kept. Raises StoreUnavailable."""
    texts = {row.request_id or row.id: row.input for row in rows}
    return texts | {request.id: request.text for request in read(store, REQUESTS, KeptRequest)}


def _typical_words(own: Sequence[set[str]], everywhere: Mapping[str, int], prompts: int) -> tuple[str, ...]:
    """Words by how much more frequent they are in these prompts than in the others, weighted by how many have them."""
    counts = Counter(word for words in own for word in words)

    def weight(word: str) -> float:
        others = (everywhere[word] - counts[word] + 0.5) / (prompts - len(own) + 1)
        share = counts[word] / len(own)
        return share * (share - others)

    chosen = sorted(counts, key=lambda word: (-weight(word), word))
    return tuple(word for word in chosen[:_WORDS] if weight(word) > 0)
