"""Log-probabilities of a prompt's own tokens, collected as its chunks are computed. Used on the generation thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dlp_core.engine.request import TokenLogprob


class PromptScores:
    """The log-probability of each token of one prompt after those before it. The first has none."""

    def __init__(self, prompt_ids: Sequence[int], count: int) -> None:
        self.count = count
        """How many of the likeliest tokens to report at each position."""
        self._ids = prompt_ids
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

    def token(self, position: int) -> int:
        """The token whose log-probability the logits of a position give."""
        return self._ids[position + 1]

    def add(self, position: int, logprob: TokenLogprob) -> None:
        """Take the log-probability of `token(position)`."""
        self._logprobs[position + 1] = logprob
