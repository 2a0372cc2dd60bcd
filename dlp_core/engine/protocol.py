"""What every engine does: FusedEngine in this package, VllmEngine in dlp_core/vllm. No torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from dlp_core.engine.request import Plan, Sampling, TokenEvent
from dlp_core.engine.stats import EngineStats
from dlp_core.mix import Mix


class Engine(Protocol):
    """A frozen model with the adapters of one source in its slots. For use on one event loop."""

    vocabulary: int
    context: int
    """Limit on the tokens of prompt and completion together."""

    async def start(self) -> None:
        """Start, and return once requests are accepted. Raises EngineFailed if it does not start, for instance because
        the cache does not fit into memory."""

    async def stop(self) -> None:
        """Stop generating; requests in flight get EngineFailed."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        mix: Mix | Plan,
        sampling: Sampling,
        *,
        request_id: str,
        prompt_logprobs: int | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        """Generate from `prompt_ids` under `mix`, or under the mixes of a plan, and yield tokens as they come; the last
        event has a finish reason.

        With `prompt_logprobs`, the first event has the log-probability of each token of the prompt, and those of that
        many of the likeliest tokens there. The prompt is then computed whole, whatever the cache holds.

        Closing the iterator aborts the request. However the request ends, its adapters are unpinned and its cache
        blocks freed. Raises InvalidRequest, PromptTooLong, UnknownModel, AdapterRefused, AdapterUnavailable,
        EngineFull, EngineFailed, and RequestAborted after `abort`.
        """

    async def keep(self, names: Sequence[str]) -> None:
        """Load these adapters and keep them on the device, replacing those kept before. Raises UnknownModel,
        AdapterRefused, AdapterUnavailable, or InvalidRequest if there are more of them than slots."""

    async def preload(self, names: Sequence[str]) -> None:
        """Load these adapters ahead of the requests that will use them. Raises what `keep` raises."""

    def abort(self, request_id: str) -> None:
        """Abort a request from outside: its stream raises RequestAborted. Unknown ids are ignored."""

    def stats(self) -> EngineStats: ...

    def check_health(self) -> None:
        """Raise EngineFailed if generation has ended, or has not moved for too long while requests run."""
