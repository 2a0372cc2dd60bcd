"""Which tokens a forward pass computes, and where the keys and values of their requests lie.

A cache is rows of pages; row `page * page_tokens + offset` holds one token's keys (or values) of all heads. A request
has a list of blocks, each one page in every layer. Its position p lies in block `slot // page_tokens` at offset
`slot % page_tokens`, where slot is p itself, or p % window in layers with a sliding window, whose cache is a ring.

Shape letters: S requests, B blocks, T tokens, N tokens of a prompt, C cached tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pages(NamedTuple):
    """The pages of a batch's requests, in the layers that share them."""

    table_SB: NDArray[np.int32]
    """The page of each block. A request with fewer blocks than others leaves the rest of its row to anything."""
    window: int
    """Keys that a token sees, its own included, in layers with a sliding window; 0 if it sees all before it."""


class Request(NamedTuple):
    """One request in a batch."""

    past: int
    """Tokens whose keys and values are in the cache."""
    tokens: int
    """Tokens to compute: at the positions `past`, `past + 1`, ..."""


class Batch(NamedTuple):
    """The requests of one forward pass, whose tokens follow each other in this order."""

    requests: Sequence[Request]
    pages: Sequence[Pages]
    """Of each kind of layers."""
    page_tokens: int


def visible(request: Request, window: int) -> int:
    """The first position in the cache that any of the request's tokens sees."""
    return max(0, request.past - window + 1) if window else 0


def rows(pages: Pages, page_tokens: int, number: int, positions_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cache's rows that hold these positions of the batch's `number`th request: [C]."""
    slots_C = positions_C % pages.window if pages.window else positions_C
    pages_C = pages.table_SB[number, slots_C // page_tokens].astype(np.int64)
    found_C: NDArray[np.int64] = pages_C * page_tokens + slots_C % page_tokens
    return found_C


def new_rows(batch: Batch, kind: int) -> NDArray[np.int64]:
    """The cache's rows that the batch's new tokens go to: [T]. -1 for those that a later one of the same batch would
    overwrite, because it takes their place in the ring."""
    pages = batch.pages[kind]
    parts = [np.zeros(0, np.int64)]
    for number, (past, tokens) in enumerate(batch.requests):
        found = rows(pages, batch.page_tokens, number, np.arange(past, past + tokens))
        if pages.window:
            found[: -pages.window] = -1
        parts.append(found)
    return np.concatenate(parts)
