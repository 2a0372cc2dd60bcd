"""What people say about answers: which adapter should have answered, and whether the answer was good.

Feedback is about a request of this server (`request_id`, the id of its reply) or about a prompt of its own (`text`).
What is not given is no opinion; `adapter` null is one: the prompt belongs to nobody. If one key says several things
about the same request or text, the last word on each point holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from dlp_core.bank.kept import KeptRecord
from dlp_core.store.records import Record

Rating = Literal["up", "down"]


class Feedback(KeptRecord):
    """One piece of feedback. `adapter` counts only if it was given: see `corrects`."""

    bank: str
    """The bank version that served then."""
    request_id: str | None = None
    text: str | None = None
    adapter: str | None = None
    rating: Rating | None = None
    comment: str | None = None

    @property
    def corrects(self) -> bool:
        """Whether it says which adapter should answer, or that none should."""
        return "adapter" in self.model_fields_set

    @property
    def negative(self) -> bool | None:
        """Whether the answer is called bad; None without a rating."""
        return None if self.rating is None else self.rating == "down"

    @property
    def target(self) -> tuple[str, str]:
        """What it is about."""
        return ("text", self.text or "") if self.request_id is None else ("request", self.request_id)

    def public(self) -> dict[str, Any]:
        """What was given, as JSON."""
        return self.model_dump(exclude_unset=True)


class AdapterShare(Record):
    adapter: str
    weight: float


class KeptRequest(KeptRecord):
    """A request whose adapters the router chose, and how it ended."""

    route: str
    text: str
    """What the router read and decided by, as much of it as it reads."""
    mix: tuple[AdapterShare, ...]
    """Empty for the plain backbone."""
    recipes: tuple[str, ...] = Field(default=(), exclude_if=lambda recipes: not recipes)
    """Those that the mix comes from, the heaviest first."""
    reason: str
    confidence: float | None
    bank: str
    router: str | None
    status: int
    error_code: str | None
    total_seconds: float
    decide_seconds: float | None
    first_token_seconds: float | None

    @property
    def adapter(self) -> str | None:
        """What answered: a recipe, or else the adapter with most weight; None for the plain backbone."""
        if self.recipes:
            return self.recipes[0]
        return max(self.mix, key=lambda share: share.weight).adapter if self.mix else None


@dataclass(frozen=True, slots=True)
class Row:
    """One line to train or evaluate a router with (dlp_core/router/rows.py reads `task` and `input`)."""

    task: str | None
    input: str
    feedback: str
    request: str | None
    created: float
    """When it was said, in seconds since 1970."""
    key: str
    """The name of the API key of whoever said it."""
    agreed: int = 1
    """Keys that say so."""


@dataclass(frozen=True, slots=True)
class Correction:
    """`count` requests that `served` answered belong to `should`; None is the plain backbone."""

    served: str | None
    should: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Opinions:
    """What was said of one adapter's answers, or of the plain backbone's."""

    adapter: str | None
    up: int
    down: int
    confirmed: int
    """It was named as the right one, and had answered."""
    lost: int
    """Another one was named in its place."""
    gained: int
    """It was named in place of another."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Feedback in numbers. What is about a text, or about a request that was not kept, has no adapter that answered."""

    feedback: int
    up: int
    down: int
    named: int
    """That name the right adapter, or none."""
    requests_known: int
    adapters: tuple[Opinions, ...]
    corrections: tuple[Correction, ...]
    """The most frequent first."""

    @property
    def abstentions_corrected(self) -> int:
        """Requests left to the plain backbone that belong to an adapter."""
        return sum(entry.count for entry in self.corrections if entry.served is None)

    @property
    def confusions(self) -> tuple[tuple[str, str, int], ...]:
        """Pairs of adapters of which one answered for the other, in either direction; the most frequent first."""
        pairs: Counter[tuple[str, str]] = Counter()
        for entry in self.corrections:
            if entry.served is not None and entry.should is not None:
                first, second = sorted((entry.served, entry.should))
                pairs[first, second] += entry.count
        return tuple((first, second, count) for (first, second), count in pairs.most_common())


def standing(feedback: Iterable[Feedback]) -> list[Feedback]:
    """One for each key and target: the last word on each point, under the id and time of the last one."""
    merged: dict[tuple[str, tuple[str, str]], dict[str, Any]] = {}
    for entry in sorted(feedback, key=lambda entry: entry.created):
        place = (entry.key, entry.target)
        merged[place] = merged.pop(place, {}) | entry.public()
    return [Feedback.model_validate(fields) for fields in merged.values()]


def by_request(feedback: Iterable[Feedback]) -> dict[str, list[Feedback]]:
    """What stands, by the request it is about."""
    found: dict[str, list[Feedback]] = {}
    for entry in standing(feedback):
        if entry.request_id is not None:
            found.setdefault(entry.request_id, []).append(entry)
    return found


def rows(feedback: Iterable[Feedback], requests: Mapping[str, KeptRequest]) -> list[Row]:
    """A row for each request or text whose adapter was named and whose text is known; `requests` by id. Where several
    keys name one for the same request or text, the one that most name counts, of equally many the one named last.
    Ratings alone make no rows."""
    said: dict[tuple[str, str], list[Feedback]] = {}
    for entry in standing(entry for entry in feedback if entry.corrects):
        said.setdefault(entry.target, []).append(entry)
    found = []
    for entries in said.values():
        votes = Counter(entry.adapter for entry in entries)
        last = max(entries, key=lambda entry: (votes[entry.adapter], entry.created))
        text = _text_of(last, requests)
        if text is not None:
            found.append(_row(last, last.adapter, text, votes[last.adapter]))
    return found


def confirmations(feedback: Iterable[Feedback], requests: Mapping[str, KeptRequest]) -> list[Row]:
    """A row for each request whose answer one adapter gave, that somebody called good and nobody bad, and of which
    nobody said which adapter is right; `requests` by id."""
    confirmed = []
    for id, entries in by_request(feedback).items():
        request = requests.get(id)
        rated = [entry for entry in entries if entry.negative is not None]
        if request is None or not rated or any(entry.negative or entry.corrects for entry in entries):
            continue
        if len(request.mix) == 1 and request.reason == "routed" and request.text.strip():
            confirmed.append(_row(rated[-1], request.adapter, request.text, len(rated)))
    return confirmed


def _text_of(entry: Feedback, requests: Mapping[str, KeptRequest]) -> str | None:
    """The prompt that feedback is about; None if it is not known, or blank."""
    known = requests.get(entry.request_id or "")
    text = entry.text if entry.request_id is None else known and known.text
    return text if text and text.strip() else None


def _row(entry: Feedback, task: str | None, text: str, agreed: int) -> Row:
    return Row(task, text, entry.id, entry.request_id, entry.created, entry.key, agreed)


def summarise(feedback: Sequence[Feedback], requests: Mapping[str, KeptRequest]) -> Summary:
    """Count what stands; `requests` by id."""
    entries = standing(feedback)
    up: Counter[str | None] = Counter()
    down: Counter[str | None] = Counter()
    named: Counter[tuple[str | None, str | None]] = Counter()
    for entry in entries:
        request = requests.get(entry.request_id or "")
        if request is None:
            continue
        if entry.rating is not None:
            (up if entry.rating == "up" else down)[request.adapter] += 1
        if entry.corrects:
            named[request.adapter, entry.adapter] += 1
    seen = {*up, *down, *(adapter for pair in named for adapter in pair)}
    moved = {pair: count for pair, count in named.items() if pair[0] != pair[1]}
    return Summary(
        feedback=len(entries),
        up=sum(entry.rating == "up" for entry in entries),
        down=sum(entry.rating == "down" for entry in entries),
        named=sum(entry.corrects for entry in entries),
        requests_known=sum(entry.request_id in requests for entry in entries),
        adapters=tuple(
            Opinions(
                adapter,
                up[adapter],
                down[adapter],
                confirmed=named[adapter, adapter],
                lost=sum(count for (served, _), count in moved.items() if served == adapter),
                gained=sum(count for (_, should), count in moved.items() if should == adapter),
            )
            for adapter in sorted(seen, key=lambda name: (name is None, name or ""))
        ),
        corrections=tuple(Correction(*pair, count) for pair, count in Counter(moved).most_common()),
    )
