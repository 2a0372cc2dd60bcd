"""Log-probabilities of a prompt's own tokens, collected as its chunks are computed. Used on the generation thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from dlp_core.engine.request import TokenLogprob
from dlp_core.engine.sampling import logprobs_of


class PromptScores:
    """The log-probability of each token of one prompt after those before it. The first has none."""

    def __init__(self, prompt_ids: Sequence[int], count: int) -> None:
        """`count` is how many of the likeliest tokens to report at each position."""
        self._ids = prompt_ids
        self._count = count
        self._logprobs: list[TokenLogprob | None] = [None] * len(prompt_ids)

    @property
    def complete(self) -> bool:
        return None not in self._logprobs[1:]

    @property
    def logprobs(self) -> tuple[TokenLogprob | None, ...]:
        return tuple(self._logprobs)

    def missing(self, start: int, length: int) -> Iterator[int]:
        """Positions from `start` on whose logits score the next token of the prompt, which has no score yet."""
        for position in range(start, min(start + length, len(self._ids) - 1)):
            if self._logprobs[position + 1] is None:
                yield position

    def add(self, position: int, logits_V: Tensor) -> None:
        """Take the float32 logits of a position."""
        logprobs_1V = logits_V.log_softmax(-1)[None]
        [self._logprobs[position + 1]] = logprobs_of(logprobs_1V, [self._ids[position + 1]], [self._count])
