"""Who shares cached prompts with whom. A shared prefix is computed faster, and whoever shares can tell by the time."""

from __future__ import annotations

import json
from typing import Literal

from deployments.http.access import Caller

Share = Literal["key", "all", "none"]


def salt_of(share: Share, caller: Caller, cache_salt: str | None, request_id: str) -> str:
    """The salt of a request: requests share cached blocks if theirs are equal.

    `key` shares within an API key, `all` between all of them, `none` not at all. A `cache_salt` in the body, as vLLM
    has it, narrows that: it shares with requests of the same `cache_salt` only.
    """
    if share == "none":
        return request_id
    return json.dumps([caller.name if share == "key" and caller.limited else None, cache_salt])
