"""What every engine asks of a request before it takes it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import EngineFull, InvalidRequest, PromptTooLong


def token_limit(prompt_ids: Sequence[int], plan: Plan, sampling: Sampling, *, vocabulary: int, context: int) -> int:
    """How many tokens the completion may have, in a context window of `context` tokens.

    Raises InvalidRequest for an empty prompt, token ids outside the vocabulary or spans that do not fit the prompt, and
    PromptTooLong.
    """
    if not prompt_ids:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if not all(0 <= token < vocabulary for token in prompt_ids):
        raise InvalidRequest(f"the prompt has token ids outside 0..{vocabulary - 1}", param="prompt")
    max_tokens = sampling.max_tokens or max(1, context - len(prompt_ids))
    if len(prompt_ids) + max_tokens > context:
        raise PromptTooLong(
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {max_tokens}; together they may be at most "
            f"{context}",
            param="prompt",
        )
    plan.check(len(prompt_ids))
    return max_tokens


def check_places(taken: int, places: int) -> None:
    """Raise EngineFull if every place of an engine is taken."""
    if taken >= places:
        raise EngineFull(
            f"this replica is at its limit of {places} requests; try again shortly",
            retry_after=1.0,
        )
