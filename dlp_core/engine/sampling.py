"""Picks the next tokens of all rows of a batch that do not take the plain argmax.

Penalties, masks and draws of all rows are a few operations on the scores' device. The engine waits for them together
with whatever else it wants to know of the pass. What can go wrong in a row, its grammar above all, goes wrong in that
row alone.

Shape letters: R rows, S rows with log-probabilities, D rows that are drawn, V vocabulary, E edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlp_core.engine.draws import Draw, draw
from dlp_core.engine.request import Sampling, TokenLogprob
from dlp_core.engine.transfer import to_device

if TYPE_CHECKING:
    from dlp_core.engine.grammar import Guide


class _Occurrences:
    """The tokens of a request so far, each once, with how often it occurs in the completion."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._read = 0
        self._index: dict[int, int] = {}
        self._counts: list[int] = []

    def update(self, token_ids: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Take in what is new in prompt and completion so far; returns tokens and counts."""
        for position in range(self._read, len(token_ids)):
            index = self._index.setdefault(token_ids[position], len(self._counts))
            if index == len(self._counts):
                self._counts.append(0)
            self._counts[index] += position >= self._prompt_tokens
        self._read = len(token_ids)
        return list(self._index), self._counts


class Edits(NamedTuple):
    """Changes of single scores: s -> (s * factor if s < 0 else s / factor) - less."""

    tokens_E: np.ndarray
    factor: float
    less_E: np.ndarray


class Sampler:
    """How one request picks its tokens, one after another. Used on the generation thread only."""

    def __init__(self, sampling: Sampling, prompt_tokens: int, eos: frozenset[int], guide: Guide | None = None) -> None:
        self.logprobs: list[TokenLogprob] = []
        """One for each token picked so far, if the request wants them."""
        self.guide = guide
        self.alternatives = sampling.logprobs
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens
        self._eos = sorted(eos) if sampling.min_tokens and not sampling.ignore_eos else []
        penalised = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        self._occurrences = _Occurrences(prompt_tokens) if penalised else None
        self._edits = penalised or self._eos
        self.is_argmax = sampling.greedy and not self._edits and sampling.logprobs is None and guide is None
        """Whether every pick is the plain argmax, so that the sampler may be skipped."""
        self._generator: torch.Generator | None = None
        if not sampling.greedy:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def edits(self, token_ids: Sequence[int]) -> Edits | None:
        """What to change in the scores of the token after `token_ids`, prompt and completion so far; None if nothing.

        Repetition is transformers' penalty, of prompt and completion; presence and frequency are OpenAI's, of the
        completion.
        """
        if not self._edits:
            return None
        sampling, tokens, counts = self._sampling, list[int](), list[int]()
        if self._occurrences is not None:
            tokens, counts = map(list, self._occurrences.update(token_ids))
        count_E = np.array(counts, np.float32)
        less_E = sampling.presence_penalty * (count_E > 0) + sampling.frequency_penalty * count_E
        if len(token_ids) - self._prompt_tokens < sampling.min_tokens and self._eos:
            held = dict(zip(tokens, less_E.tolist(), strict=True)) | dict.fromkeys(self._eos, np.inf)
            tokens, less_E = list(held), np.array(list(held.values()))
        return Edits(np.array(tokens, np.int64), sampling.repetition_penalty, less_E.astype(np.float32))

    def next_draw(self) -> Draw | None:
        """How the next token is drawn; None for the likeliest."""
        if self._generator is None:
            return None
        uniform = float(torch.rand((), dtype=torch.float64, generator=self._generator))
        return Draw(self._sampling.temperature, self._sampling.top_k, self._sampling.top_p, uniform)


class Row(NamedTuple):
    """A row of scores, and whose it is."""

    number: int
    sampler: Sampler
    token_ids: Sequence[int]
    """Prompt and completion so far."""


class Picks:
    """The tokens of these rows, on their way: what the device has to do is in its queue, and nobody has waited."""

    def __init__(self, scores_RV: Tensor, rows: Sequence[Row]) -> None:
        """`scores_RV` are the model's, float32, and are changed in place. `rows` is not empty."""
        self._rows = rows
        self._failed: dict[int, Exception] = {}
        edits, draws = dict[int, Edits](), dict[int, Draw]()
        for n, row in enumerate(rows):
            with self._failing(n):
                if (edit := row.sampler.edits(row.token_ids)) is not None:
                    edits[n] = edit
                if (drawn := row.sampler.next_draw()) is not None:
                    draws[n] = drawn
        numbers_R = to_device([row.number for row in rows], scores_RV)
        self._scored = [n for n, row in enumerate(rows) if row.sampler.alternatives is not None]
        if self._scored:
            scored_S = to_device(self._scored, scores_RV)
            logprobs_SV = scores_RV[numbers_R[scored_S]].log_softmax(-1)
        if edits:
            _edit(scores_RV, [rows[n].number for n in edits], list(edits.values()))
        for n, row in enumerate(rows):
            if row.sampler.guide is not None:
                with self._failing(n):
                    scores_RV[row.number] = row.sampler.guide.mask(scores_RV[row.number])
        self.tokens_R = _tokens(scores_RV, numbers_R, draws)
        """On the device."""
        self._likeliest: Likeliest | None = None
        if self._scored:
            counts = [rows[n].sampler.alternatives or 0 for n in self._scored]
            self._likeliest = Likeliest(logprobs_SV, self.tokens_R[scored_S], counts)

    @property
    def tensors(self) -> list[Tensor]:
        """What `finish` wants of the device."""
        return [self.tokens_R, *(self._likeliest.tensors if self._likeliest is not None else ())]

    def finish(self, tensors: Sequence[Tensor]) -> list[int | Exception]:
        """The tokens, or the error that ends a row's request. `tensors` are `self.tensors`, on the host."""
        tokens: list[int] = tensors[0].tolist()
        for n, row in enumerate(self._rows):
            if row.sampler.guide is not None and n not in self._failed:
                with self._failing(n):
                    row.sampler.guide.accept(tokens[n])
        if self._likeliest is not None:
            for n, logprob in zip(self._scored, self._likeliest.finish(tensors[1:]), strict=True):
                self._rows[n].sampler.logprobs.append(logprob)
        return [self._failed.get(n, token) for n, token in enumerate(tokens)]

    @contextmanager
    def _failing(self, n: int) -> Iterator[None]:
        """Note the error of a row, instead of raising it."""
        try:
            yield
        except Exception as error:
            self._failed[n] = error


def _tokens(scores_RV: Tensor, numbers_R: Tensor, draws: Mapping[int, Draw]) -> Tensor:
    """The tokens of these rows: drawn, or the likeliest of those that have no draw."""
    if len(draws) == len(numbers_R):
        return draw(scores_RV[numbers_R], [draws[n] for n in range(len(numbers_R))])
    tokens_R = scores_RV[numbers_R].argmax(-1)
    if draws:
        drawn_D = to_device(list(draws), scores_RV)
        tokens_R[drawn_D] = draw(scores_RV[numbers_R[drawn_D]], list(draws.values()))
    return tokens_R


class Likeliest:
    """Log-probabilities of some tokens and of those that were likeliest in their place, on their way to the host."""

    def __init__(self, logprobs_RV: Tensor, tokens_R: Tensor, counts: Sequence[int]) -> None:
        """`counts` is how many of the likeliest to report of each row."""
        self._counts = counts
        likeliest = logprobs_RV.topk(min(max(counts), logprobs_RV.shape[1]), dim=1)
        own_R = logprobs_RV.gather(1, tokens_R[:, None])[:, 0]
        self.tensors = [tokens_R, own_R, likeliest.indices, likeliest.values]

    def finish(self, tensors: Sequence[Tensor]) -> list[TokenLogprob]:
        """`tensors` are `self.tensors`, on the host."""
        rows = zip(*(tensor.tolist() for tensor in tensors), self._counts, strict=True)
        return [
            TokenLogprob(token, own, tuple(zip(ids[:count], values[:count], strict=True)))
            for token, own, ids, values, count in rows
        ]


def _edit(scores_RV: Tensor, indices: Sequence[int], edits: Sequence[Edits]) -> None:
    """Apply the edits of these rows, in place."""
    lengths = [len(own.tokens_E) for own in edits]
    where = np.stack([np.repeat(indices, lengths), np.concatenate([own.tokens_E for own in edits])])
    factors = np.array([own.factor for own in edits], np.float32)
    by = np.stack([np.repeat(factors, lengths), np.concatenate([own.less_E for own in edits])])
    row_E, token_E = to_device(where, scores_RV)
    factor_E, less_E = to_device(by, scores_RV)
    scores_E = scores_RV[row_E, token_E]
    scores_RV[row_E, token_E] = torch.where(scores_E < 0, scores_E * factor_E, scores_E / factor_E) - less_E
