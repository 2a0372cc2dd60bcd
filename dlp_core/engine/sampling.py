"""Picks the next tokens of all rows of a batch that do not take the plain argmax.

Penalties, masks and draws of all rows are a few operations on the scores' device, and one wait for it. What can go
wrong in a row, its grammar above all, goes wrong in that row alone.

Shape letters: R rows, V vocabulary, E edits.
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


def pick(scores_RV: Tensor, rows: Sequence[Row]) -> list[int | Exception]:
    """Pick a token for each of these rows of the model's float32 scores, which are changed in place; or the error that
    ends its request."""
    failed: dict[int, Exception] = {}
    edits, draws = dict[int, Edits](), dict[int, Draw]()
    for n, row in enumerate(rows):
        with _failing(failed, n):
            if (edit := row.sampler.edits(row.token_ids)) is not None:
                edits[n] = edit
            if (drawn := row.sampler.next_draw()) is not None:
                draws[n] = drawn
    scored = [row for row in rows if row.sampler.alternatives is not None]
    logprobs_SV = scores_RV[[row.number for row in scored]].log_softmax(-1) if scored else None
    if edits:
        _edit(scores_RV, [rows[n].number for n in edits], list(edits.values()))
    for n, row in enumerate(rows):
        if row.sampler.guide is not None:
            with _failing(failed, n):
                scores_RV[row.number] = row.sampler.guide.mask(scores_RV[row.number])
    tokens = _tokens(scores_RV, rows, draws)
    for n, row in enumerate(rows):
        if row.sampler.guide is not None and n not in failed:
            with _failing(failed, n):
                row.sampler.guide.accept(tokens[n])
    if logprobs_SV is not None:
        chosen = [token for row, token in zip(rows, tokens, strict=True) if row.sampler.alternatives is not None]
        counts = [row.sampler.alternatives or 0 for row in scored]
        for row, logprob in zip(scored, logprobs_of(logprobs_SV, chosen, counts), strict=True):
            row.sampler.logprobs.append(logprob)
    return [failed.get(n, token) for n, token in enumerate(tokens)]


def _tokens(scores_RV: Tensor, rows: Sequence[Row], draws: Mapping[int, Draw]) -> list[int]:
    """The tokens of these rows: drawn, or the likeliest of those that have no draw. The only wait for the device."""
    greedy = [n for n in range(len(rows)) if n not in draws]
    tokens_R = torch.empty(len(rows), dtype=torch.int64, device=scores_RV.device)
    if greedy:
        tokens_R[greedy] = scores_RV[[rows[n].number for n in greedy]].argmax(-1)
    if draws:
        tokens_R[list(draws)] = draw(scores_RV[[rows[n].number for n in draws]], list(draws.values()))
    return [int(token) for token in tokens_R.tolist()]


@contextmanager
def _failing(failed: dict[int, Exception], n: int) -> Iterator[None]:
    """Note the error of a row, instead of raising it."""
    try:
        yield
    except Exception as error:
        failed[n] = error


def logprobs_of(logprobs_RV: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """For each row, the log-probability of its token, and those of as many of the likeliest as its count says."""
    tokens_R1 = torch.tensor(tokens, device=logprobs_RV.device)[:, None]
    likeliest = logprobs_RV.topk(min(max(counts), logprobs_RV.shape[1]), dim=1)
    own = logprobs_RV.gather(1, tokens_R1)[:, 0].tolist()
    top = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, (ids, values), count in zip(tokens, own, top, counts, strict=True)
    ]


def _edit(scores_RV: Tensor, indices: Sequence[int], edits: Sequence[Edits]) -> None:
    """Apply the edits of these rows, in place."""
    lengths = [len(own.tokens_E) for own in edits]
    where = np.stack([np.repeat(indices, lengths), np.concatenate([own.tokens_E for own in edits])])
    factors = np.array([own.factor for own in edits], np.float32)
    by = np.stack([np.repeat(factors, lengths), np.concatenate([own.less_E for own in edits])])
    row_E, token_E = torch.from_numpy(where).to(scores_RV.device)
    factor_E, less_E = torch.from_numpy(by).to(scores_RV.device)
    scores_E = scores_RV[row_E, token_E]
    scores_RV[row_E, token_E] = torch.where(scores_E < 0, scores_E * factor_E, scores_E / factor_E) - less_E
