"""The rows of a run: what people said, beside the owner's own rows, and which of both are held back.

Rows of feedback add up from run to run, so that what a router learnt is still taught when the feedback itself is past
its retention. A prompt has one row: what was said of it last. Which rows are held back is a hash of their text, so no
run is ever trained on a row that judges another.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from dlp_core.bank.feedback import Feedback, KeptRequest, Row, confirmations, rows
from dlp_core.bank.kept import FEEDBACK, REQUESTS, KeptRecord, parse, read
from dlp_core.errors import BankError, Conflict, NotFound
from dlp_core.improve.run import PREFIX, Run
from dlp_core.router.rows import TaskRow
from dlp_core.store.protocol import AdapterStore

HELD_BACK = 0.15
FEW = 60
"""Rows of the owner's for a task, under which all are trained on."""
ROWS = "rows.jsonl"


class FeedbackRow(KeptRecord):
    """A row that somebody's feedback gave, as it is stored. `id` and `key` are those of the feedback."""

    task: str | None
    """The adapter; None for the plain backbone."""
    input: str
    request_id: str | None
    request_key: str | None
    """The name of the API key of whoever sent the request."""
    agreed: int
    """Keys that say so."""
    confirmed: bool
    """It was answered by this adapter, and called good."""
    suspect: str | None = None
    """Why the label seems wrong; None if it does not."""

    @property
    def row(self) -> TaskRow:
        return TaskRow(self.task, self.input)

    @property
    def held_back(self) -> bool:
        return is_held_back(self.input)


def said_by(store: AdapterStore, until: float) -> list[FeedbackRow]:
    """The rows of all feedback that is kept, as of `until` in seconds since 1970, one a prompt: a correction before a
    confirmation, then the later. Raises StoreUnavailable."""
    feedback = [entry for entry in read(store, FEEDBACK, Feedback) if entry.created <= until]
    about = {entry.request_id for entry in feedback if entry.request_id is not None}
    requests = {request.id: request for request in read(store, REQUESTS, KeptRequest, ids=about)}
    found = [_stored(row, requests, confirmed=True) for row in confirmations(feedback, requests)]
    found += [_stored(row, requests, confirmed=False) for row in rows(feedback, requests)]
    return one_a_prompt(found)


def one_a_prompt(found: Iterable[FeedbackRow]) -> list[FeedbackRow]:
    """One row for each prompt, by age: a correction before a confirmation, then what most keys say, then the last."""
    kept: dict[str, FeedbackRow] = {}
    for row in found:
        other = kept.get(normalised(row.input))
        if other is None or _rank(row) >= _rank(other):
            kept[normalised(row.input)] = row
    return sorted(kept.values(), key=lambda row: (row.created, row.id))


def read_rows(store: AdapterStore, run: Run) -> list[FeedbackRow]:
    """The rows of a run; none if they were purged. Raises StoreUnavailable."""
    with suppress(NotFound):
        stored = store.get(run.key(ROWS))
        return list(parse(FeedbackRow, stored.data, f"{run.key(ROWS)} in {store.uri}"))
    return []


def write_rows(store: AdapterStore, run: Run, found: Sequence[FeedbackRow]) -> None:
    store.put(run.key(ROWS), "".join(f"{row.model_dump_json()}\n" for row in found).encode())


def save_base(store: AdapterStore, base: Sequence[TaskRow]) -> str:
    """Keep the owner's rows in the store; returns their digest. Raises StoreUnavailable."""
    lines = "".join(json.dumps({"task": row.task, "input": row.input}, ensure_ascii=False) + "\n" for row in base)
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    with suppress(Conflict):  # they are there
        store.put(_base_key(digest), gzip.compress(lines.encode(), mtime=0), if_none_match=True)
    return digest


def read_base(store: AdapterStore, digest: str) -> list[TaskRow]:
    """The owner's rows. Raises BankError if they are gone or damaged."""
    try:
        lines = gzip.decompress(store.get(_base_key(digest)).data).decode()
        found = [json.loads(line) for line in lines.splitlines()]
    except (NotFound, OSError, EOFError, ValueError) as error:
        raise BankError(
            f"{_base_key(digest)} in {store.uri} cannot be read ({error}); give the rows again with --data"
        ) from None
    return [TaskRow(line["task"], line["input"]) for line in found]


def split_base(base: Sequence[TaskRow]) -> tuple[list[TaskRow], list[TaskRow]]:
    """The owner's rows to train on, and those held back. A task with FEW rows keeps all of them."""
    counts = Counter(row.task for row in base)
    training: list[TaskRow] = []
    held_back: list[TaskRow] = []
    for row in base:
        (held_back if counts[row.task] >= FEW and is_held_back(row.input) else training).append(row)
    return training, held_back


def is_held_back(text: str) -> bool:
    digest = hashlib.blake2b(normalised(text).encode(), digest_size=6).digest()
    return int.from_bytes(digest) < HELD_BACK * 2**48


def normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _base_key(digest: str) -> str:
    return f"{PREFIX}base/{digest}.jsonl.gz"


def _rank(row: FeedbackRow) -> tuple[bool, int, float]:
    return not row.confirmed, row.agreed, row.created


def _stored(row: Row, requests: Mapping[str, KeptRequest], *, confirmed: bool) -> FeedbackRow:
    request = requests.get(row.request or "")
    return FeedbackRow(
        id=row.feedback,
        created=row.created,
        key=row.key,
        task=row.task,
        input=row.input,
        request_id=row.request,
        request_key=None if request is None else request.key,
        agreed=row.agreed,
        confirmed=confirmed,
    )
