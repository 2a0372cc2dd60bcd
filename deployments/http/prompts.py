"""The prompts of a completion request, in the four shapes of OpenAI's API: text, token ids, or a list of either."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from dlp_core.generation.messages import TokenIds

MAX_PROMPTS = 128
"""Prompts of one completion request, and its completions in all."""


def _is_token_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and all(type(token) is int and 0 <= token < 2**31 for token in prompt)


def _prompts_of(prompt: object) -> tuple[str | TokenIds, ...]:
    single = isinstance(prompt, str) or (prompt != [] and _is_token_ids(prompt))
    prompts = [prompt] if single else prompt
    if not isinstance(prompts, list) or not all(isinstance(one, str) or _is_token_ids(one) for one in prompts):
        raise PydanticCustomError("prompt", "a prompt must be text or token ids, or a list of such prompts")
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise PydanticCustomError("prompts", "there must be 1 to {most} prompts", {"most": MAX_PROMPTS})
    if any(not one for one in prompts):
        raise PydanticCustomError("prompt", "a prompt must not be empty")
    return tuple(one if isinstance(one, str) else TokenIds(tuple(one)) for one in prompts)


_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _IDS_SCHEMA,
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_PROMPTS},
        {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}

Prompts: TypeAlias = Annotated[tuple[str | TokenIds, ...], PlainValidator(_prompts_of), WithJsonSchema(_PROMPT_SCHEMA)]
"""The type of a field that takes them."""
