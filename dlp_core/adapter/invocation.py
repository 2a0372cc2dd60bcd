"""The invocation sequence of an activated LoRA (aLoRA, arXiv 2504.12397): the tokens that switch it on in a prompt.

PEFT's rule (peft/tuners/lora/variants.py, `calculate_alora_offsets`), which this file mirrors:

    the prompt has the sequence      the adapter runs from the first token of its last occurrence on, to the end of the
                                     completion; everything before is the plain model's
    the prompt does not have it      the adapter does not run at all, whatever the completion writes
    the sequence is empty or null    it is an ordinary LoRA

PEFT searches what it is given: the whole prompt in `generate`, whatever of it is cached. So is it here.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from dlp_core.errors import AdapterRefused

Invocation: TypeAlias = tuple[int, ...]
"""Token ids, at least one."""

FIELD = "alora_invocation_tokens"
"""Of PEFT's LoraConfig."""

MAX_TOKENS = 1024
"""Of an invocation sequence."""

NEVER = sys.maxsize
"""Where an adapter begins that is not invoked."""


def read_invocation(value: Any) -> Invocation | None:
    """What PEFT's config has in FIELD; None for an ordinary LoRA. Raises ValueError."""
    if not value:
        return None
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise ValueError("it must be a list of token ids")
    if len(value) > MAX_TOKENS:
        raise ValueError(f"it has {len(value):,} tokens; at most {MAX_TOKENS:,} are read")
    return tuple(value)


def check_spoken(name: str, invocation: Invocation | None, token_ids: Collection[int]) -> None:
    """Raise AdapterRefused for an adapter whose invocation has a token that is not among the base model's."""
    for token in invocation or ():
        if token not in token_ids:
            raise AdapterRefused(
                f"adapter {name!r}: {FIELD} has token {token}, which the base model's tokenizer does not have: no "
                "prompt could invoke it; train it with the base model's tokenizer"
            )


def begins_at(prompt_ids: Sequence[int], invocation: Invocation) -> int:
    """The position from which an adapter runs: that of the last occurrence of its invocation, or NEVER."""
    ids, sought = list(prompt_ids), list(invocation)
    for start in range(len(ids) - len(sought), -1, -1):
        if ids[start] == sought[0] and ids[start : start + len(sought)] == sought:
            return start
    return NEVER
