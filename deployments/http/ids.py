"""Ids of replies, which say whose they are: feedback about a request is taken from the key that sent it alone.

    chatcmpl-<8 hex digits, seconds since the epoch><12, random><16, an HMAC of both under the caller's key>

Every replica can check an id without asking anybody. Whoever changes a key can no longer give feedback on what was sent
with the old one. Without keys there is one tenant, and only the shape is checked, as it is for the admin token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from functools import lru_cache
from typing import Literal

from deployments.http.access import Caller

Kind = Literal["chatcmpl", "cmpl", "route"]

_ID = re.compile(r"(?:chatcmpl|cmpl|route)-([0-9a-f]{20})([0-9a-f]{16})")


def issue(kind: Kind, caller: Caller) -> str:
    """A new id for a reply to this caller."""
    own = f"{int(time.time()):08x}{secrets.token_hex(6)}"
    return f"{kind}-{own}{_tag(caller, own)}"


def issued_to(caller: Caller, id: str) -> bool:
    """Whether a reply to this caller may have had this id."""
    shape = _ID.fullmatch(id)
    if shape is None:
        return False
    own, tag = shape.groups()
    return not caller.limited or hmac.compare_digest(tag, _tag(caller, own))


def issued_at(id: str) -> float:
    """When a reply got this id, in seconds since the epoch. Raises ValueError unless it has the shape of one."""
    shape = _ID.fullmatch(id)
    if shape is None:
        raise ValueError(f"{id!r} is no id of a reply")
    return float(int(shape[1][:8], 16))


def _tag(caller: Caller, own: str) -> str:
    return hmac.new(_signing_key(caller.digest), own.encode(), hashlib.sha256).hexdigest()[:16]


@lru_cache(maxsize=4096)
def _signing_key(digest: bytes) -> bytes:
    """Slow to compute (10 ms, once a key), because ids are seen by many: nobody shall find a weak key by trying keys on
    one."""
    return hashlib.scrypt(digest, salt=b"dlp reply ids", n=2**12, r=8, p=1, dklen=32)
