"""Mixes in the keys of vLLM's prefix cache, so that requests share blocks as far as tokens and mixes agree.

    register()      vLLM calls it in each of its processes, because pyproject.toml lists it in `vllm.general_plugins`
    active(llm)     whether it did so in the process that keys blocks, which the workers and this process say nothing of

Without it, blocks are keyed by their tokens, and a salt of the whole plan keeps requests apart (plans.salt_of).
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.engine.core import EngineCore

from dlp_core.vllm.plans import KEY, block_keys

_QUESTION = "dlp_keys_blocks"
"""A method that EngineCore has where the plugin is active."""

_library_keys = kv_cache_utils.generate_block_hash_extra_keys


@wraps(_library_keys)
def _keys(request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int) -> tuple[Any, int]:
    keys, mm_idx = _library_keys(request, start_token_idx, end_token_idx, start_mm_idx)
    extra = (request.sampling_params and request.sampling_params.extra_args) or {}
    if KEY in extra:
        keys = (*(keys or ()), *block_keys(extra[KEY], start_token_idx, end_token_idx)) or None
    return keys, mm_idx


def _keys_blocks(core: Any) -> bool:
    return kv_cache_utils.generate_block_hash_extra_keys is _keys


def register() -> None:
    """Key blocks by their mixes in this process. Requests without a plan keep the keys they have."""
    for module in (kv_cache_utils, block_pool):  # which took the name over when it was imported
        module.generate_block_hash_extra_keys = _keys
    setattr(EngineCore, _QUESTION, _keys_blocks)


async def active(llm: Any) -> bool:
    """Whether the engine core of this AsyncLLM keys blocks by their mixes."""
    ask = llm.engine_core.call_utility_async
    # to call a method that is not there would put a traceback into the log
    return _QUESTION in await ask("__dir__") and await ask(_QUESTION)
