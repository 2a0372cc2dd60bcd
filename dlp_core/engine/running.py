"""What the engine knows of a request in its batch, and what it reports of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers.generation.continuous_batching.requests import RequestState

from dlp_core.engine.prompt_scores import PromptScores
from dlp_core.engine.request import TokenLogprob
from dlp_core.engine.sampling import Sampler
from dlp_core.engine.timeline import Timeline
from dlp_core.mix import Mix


@dataclass(frozen=True, slots=True)
class Output:
    """All tokens of a request so far. Each output includes the earlier ones, so the newest is enough."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finished: bool
    error: Exception | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


@dataclass(frozen=True, slots=True)
class NeedsAdapters:
    """The request waits, out of the batch, until these adapters are pinned and `resume` is called."""

    names: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Running:
    """What transformers does not know about a request."""

    timeline: Timeline
    sampler: Sampler
    notify: Callable[[Output | NeedsAdapters], object]
    follow: Callable[[int], Mix | None] | None
    followed_tokens: int
    """Tokens that are not passed to `follow` any more: the prompt's, and those it has seen."""
    cached_tokens: int | None = None
    """Of its prompt, found in the cache when it first came into the batch; None before."""
    prompt_scores: PromptScores | None = None
    """The log-probabilities of its prompt, if it wants them."""
    failed: bool = False
    """Whether it has ended with an error of its own. It stays in the batch until it is cancelled, but nothing of it is
    delivered or shared any more."""
    step_failed: bool = False
    """Whether it was in the batch whose step raised."""
    parked: tuple[RequestState, int, Mix] | None = None
    """While it is out of the batch: its state, the position where its mix changes, and the new mix."""
