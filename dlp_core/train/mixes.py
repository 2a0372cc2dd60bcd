"""Learn the weights of a mix from a few rows: one weight for each adapter, which all layers share, as engines serve it.

The backbone and the adapters stay as they are. Their deltas are added by the layers that serve them, with an op through
which gradients reach the weights (dlp_core/fusion/learnt.py), under the loss of a LoRA training: answers alone count,
behind the chat template as served, and an activated adapter runs from its invocation on.

    hold back       a quarter of the rows judges, and is seen by nothing before
    look through    adapters that the router thinks possible, and those along which the loss falls most steeply from the
                    plain backbone, answer a few rows alone; the best of them are fitted
    fit             Adam, and each step also draws every weight towards zero by a fixed length: what does not help
                    steadily stays there
    prune, refit    weights near zero go, and all but the largest few; the others are fitted again without the pull
    judge           the rows held back, under the fitted mix, the best single adapter and the plain backbone
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import torch

from dlp_core.adapter.invocation import Invocation, begins_at
from dlp_core.adapter.weights import Adapter
from dlp_core.errors import InvalidRequest, NotFinite
from dlp_core.fusion.layers import install
from dlp_core.fusion.learnt import LearntOp
from dlp_core.fusion.segments import Segment
from dlp_core.mix import EMPTY_MIX, MAX_WEIGHT, Mix
from dlp_core.quiet import quiet_transformers
from dlp_core.store.model_folder import check_model_folder
from dlp_core.together import ANY, Together
from dlp_core.train.lora import answer_losses
from dlp_core.train.packing import IGNORED, Example, PackedBatch, batches, common_prefix, encode
from dlp_core.train.precision import training_dtype
from dlp_core.train.rows import Row

MIN_ROWS = 16
MAX_HELD_BACK = 64
_SAMPLE = 16
"""Rows on which adapters are looked through."""
_CHUNK = 32
"""Adapters that are on the device at once meanwhile."""
_MEASURED = 16
"""Adapters that answer them, each alone."""
_FITTED_BEST, _FITTED_STEEPEST = 5, 3
"""Adapters that the fit begins with: those that answer best alone, and those along which the loss falls most."""
_COMPARED = 3
"""The best on the sample answer all rows; the best of these is the single adapter to beat."""
_LEAST = 0.05
"""A weight below this is no part of a mix."""
_ROW_TOKENS = 512
_TAIL = 1 / 3
"""The steps at the end whose weights are averaged."""
_DECIMALS = 4

Load = Callable[[str], Adapter]
"""Reads an adapter by its name."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a mix is fitted."""

    max_adapters: int = 3
    """Adapters in it, at most."""
    hold_back: float = 0.25
    """The part of the rows that judges; MAX_HELD_BACK rows at most."""
    steps: int = 60
    """Of the fit; half as many more refit what is left."""
    lr: float = 0.1
    """Of Adam at the beginning; it falls to a tenth."""
    pull: float = 0.1
    """By which part of the learning rate each step draws a weight towards zero."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FitProgress:
    """Progress of a fit."""

    phase: str
    done: int
    total: int
    loss: float | None = None
    """Of the step, in nats a token."""
    seconds_left: float | None = None
    """Of the steps."""


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much a mix's loss is below another's on the rows held back, in nats a token: the mean over rows, and its
    standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, other: Sequence[float], own: Sequence[float]) -> Gain:
        gains = [before - after for before, after in zip(other, own, strict=True)]
        return cls(fmean(gains), stdev(gains) / math.sqrt(len(gains)))

    @property
    def counts(self) -> bool:
        """Whether it is more than its standard error."""
        return self.mean > self.error


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted mix, and how it does on the rows that were held back. Losses are means over rows, in nats a token."""

    mix: Mix
    rows: int
    held_back: int
    loss: float
    plain_loss: float
    best: str
    """The adapter that answers the other rows best alone."""
    best_loss: float
    over_plain: Gain
    over_best: Gain
    looked_through: Mapping[str, float]
    """The loss of each adapter that answered the sample alone, best first."""
    seconds: float

    @property
    def beats(self) -> bool:
        """Whether the mix is better than the best single adapter and than the plain backbone, by more than noise."""
        return bool(self.mix) and self.over_plain.counts and self.over_best.counts


def fit_mix(
    base: Path,
    rows: Sequence[Row],
    names: Sequence[str],
    load: Load,
    settings: FitSettings,
    *,
    likely: Sequence[str] = (),
    together: Together = ANY,
    device: str = "cpu",
    dtype: str | None = None,
    report: Callable[[FitProgress], None] = lambda _: None,
) -> Fit:
    """Fit a mix of the adapters `names` of the model folder `base` on `rows`; `load` reads one. `likely` are those that
    the bank's router thinks possible, the likeliest first. Those that may not run `together` with one that answers
    better alone are not mixed. `dtype` is the model's in the fit, by default that of
    training_dtype.

    The same rows, settings and number of threads give the same mix. Nothing is written.

    Raises InvalidRequest if `base` is not a model folder, there are fewer than MIN_ROWS rows or no adapters, NotFinite,
    naming the adapter, if a loss is not a number, and what `load` and loading an adapter raise.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_folder(base)
    if len(rows) < MIN_ROWS:
        raise InvalidRequest(f"{len(rows)} rows are too few to fit a mix and to judge it; give {MIN_ROWS} or more")
    if not names:
        raise InvalidRequest("no adapter to mix was named")
    began = time.perf_counter()
    shuffled = Random(settings.seed).sample(list(rows), len(rows))
    held_back_rows = min(MAX_HELD_BACK, round(settings.hold_back * len(rows)))
    examples = encode(shuffled, AutoTokenizer.from_pretrained(base))
    held_back, training = examples[:held_back_rows], examples[held_back_rows:]
    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, dtype) if dtype else training_dtype(device)
        ).to(device)
    mixed = _MixedModel(model.eval(), load)

    sample = training[:_SAMPLE]
    slopes = _slopes(mixed, names, sample, report)
    steepest = sorted(names, key=lambda name: slopes[name])
    possible = list(dict.fromkeys([*(name for name in likely if name in slopes), *steepest]))[:_MEASURED]
    alone = _alone(mixed, possible, sample, report)
    compared = {name: fmean(mixed.losses(Mix.of({name: 1.0}), training)) for name in list(alone)[:_COMPARED]}
    best = min(compared, key=compared.__getitem__)
    chosen = list(dict.fromkeys([*list(alone)[:_FITTED_BEST], *(name for name in steepest if name in alone)]))

    allowed, _ = together.chosen(dict.fromkeys([best, *chosen]))
    chosen = [name for name in chosen if name in allowed]
    weights = {name: 1.0 if name == best else 0.0 for name in chosen[: _FITTED_BEST + _FITTED_STEEPEST]}
    descent = _Descent(mixed, training, settings, report)
    weights = _largest(descent.run(weights, settings.steps, pull=settings.pull), settings.max_adapters)
    if weights:
        weights = _largest(descent.run(weights, settings.steps // 2, pull=0.0), settings.max_adapters)
    mix = Mix.of({name: round(weight, _DECIMALS) for name, weight in weights.items()})

    own, single, plain = (mixed.losses(each, held_back) for each in (mix, Mix.of({best: 1.0}), EMPTY_MIX))
    return Fit(
        mix=mix,
        rows=len(rows),
        held_back=held_back_rows,
        loss=fmean(own),
        plain_loss=fmean(plain),
        best=best,
        best_loss=fmean(single),
        over_plain=Gain.of(plain, own),
        over_best=Gain.of(single, own),
        looked_through=alone,
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True, slots=True)
class _Batch:
    """A pass over one packed row, and where in it each adapter runs."""

    packed: PackedBatch
    runs: Mapping[str, torch.Tensor]
    """By adapter: bool, for each token."""


class _MixedModel:
    """The frozen backbone under mixes whose weights may be learnt."""

    def __init__(self, model: Any, load: Load) -> None:
        model.requires_grad_(requires_grad=False)
        self._model, self._load = model, load
        self._op = LearntOp(model.dtype, _CHUNK, model.device)
        self._fusion = install(model, self._op)
        self._slots: dict[str, int] = {}
        self._invocations: dict[str, Invocation | None] = {}

    def batches(self, examples: Sequence[Example], names: Sequence[str]) -> list[_Batch]:
        """The examples in order, packed into rows of one batch each, for mixes of these adapters, which are loaded."""
        longest = max(len(example.prompt) + len(example.answer) for example in examples)
        begun = {
            invocation: [_begun(example, invocation) for example in examples]
            for invocation in {None, *(self._invocations[name] for name in names)}
        }
        prefix = min(map(common_prefix, begun.values()))
        packed = {
            invocation: list(batches(own, prefix=prefix, rows=1, row_tokens=max(_ROW_TOKENS, longest)))
            for invocation, own in begun.items()
        }
        return [
            _Batch(
                batch.to(self._model.device),
                {name: packed[self._invocations[name]][number].active_BT.flatten() for name in names},
            )
            for number, batch in enumerate(packed[None])
        ]

    @torch.no_grad()
    def losses(self, mix: Mix, examples: Sequence[Example]) -> list[float]:
        """The mean loss over the answer's tokens of each example. Raises NotFinite, naming the mix."""
        with self.mixing(mix.names) as weights_K:
            for part in mix.adapters:
                weights_K[self._slots[part.name]] = part.weight
            found = torch.cat([self.token_losses(batch) for batch in self.batches(examples, mix.names)])
        parts = found.split([len(example.answer) for example in examples])  # type: ignore[no-untyped-call]
        return [_finite(float(part.mean()), str(mix)) for part in parts]

    def token_losses(self, batch: _Batch) -> torch.Tensor:
        tokens = batch.packed.input_ids_BT.numel()
        slots = [(self._slots[name], 1.0) for name in batch.runs]  # the op has the weights
        of_token = torch.stack([*batch.runs.values()], 1).tolist() if batch.runs else [[]] * tokens
        segments = tuple(
            Segment(len(list(run)), tuple(slot for slot, here in zip(slots, active, strict=True) if here))
            for active, run in groupby(of_token)
        )
        answers = (batch.packed.labels_BT.flatten() != IGNORED).nonzero().flatten().tolist()
        with self._fusion.batch(segments, answers):
            return answer_losses(self._model, batch.packed)

    @contextmanager
    def mixing(self, names: Sequence[str]) -> Iterator[torch.Tensor]:
        """The weights of all slots, zero but for what the block sets, with these adapters loaded; see `slot`."""
        if len(names) > _CHUNK:
            raise ValueError(f"{len(names)} adapters are more than {_CHUNK}")
        if missing := [name for name in names if name not in self._slots]:
            if len(self._slots) + len(missing) > _CHUNK:
                self._slots = {}
                missing = list(names)
            for name in missing:
                adapter = self._load(name)
                self._slots[name] = len(self._slots)
                self._invocations[name] = adapter.invocation
                self._fusion.load(self._slots[name], adapter)
        weights_K = self._op.weights_K
        with torch.no_grad():
            weights_K.zero_()
        weights_K.grad = None
        yield weights_K

    def slot(self, name: str) -> int:
        return self._slots[name]


def _slopes(
    mixed: _MixedModel, names: Sequence[str], sample: Sequence[Example], report: Callable[[FitProgress], None]
) -> dict[str, float]:
    """How the loss changes with each adapter's weight, from the plain backbone on."""
    slopes: dict[str, float] = {}
    for start in range(0, len(names), _CHUNK):
        report(FitProgress("look through the adapters", start, len(names)))
        chunk = names[start : start + _CHUNK]
        found = _slopes_together(mixed, chunk, sample)
        if not all(map(math.isfinite, found.values())):  # one of them spoils the others'
            found = {name: _finite(_slopes_together(mixed, [name], sample)[name], name) for name in chunk}
        slopes |= found
    return slopes


def _slopes_together(mixed: _MixedModel, names: Sequence[str], sample: Sequence[Example]) -> dict[str, float]:
    with mixed.mixing(names) as weights_K:
        for batch in mixed.batches(sample, names):
            mixed.token_losses(batch).sum().backward()  # type: ignore[no-untyped-call]
        assert weights_K.grad is not None
        return {name: float(weights_K.grad[mixed.slot(name)]) for name in names}


def _alone(
    mixed: _MixedModel, names: Sequence[str], sample: Sequence[Example], report: Callable[[FitProgress], None]
) -> dict[str, float]:
    """The mean loss under each adapter alone, best first."""
    losses: dict[str, float] = {}
    for number, name in enumerate(names):
        report(FitProgress("answer a few rows with each", number, len(names)))
        losses[name] = fmean(mixed.losses(Mix.of({name: 1.0}), sample))
    return dict(sorted(losses.items(), key=lambda item: item[1]))


class _Descent:
    """The steps of a fit."""

    def __init__(
        self,
        mixed: _MixedModel,
        examples: Sequence[Example],
        settings: FitSettings,
        report: Callable[[FitProgress], None],
    ) -> None:
        self._mixed, self._examples, self._settings, self._report = mixed, list(examples), settings, report
        self._rng = Random(settings.seed)
        self._total = settings.steps + settings.steps // 2
        self._done = 0
        self._began = time.perf_counter()

    def run(self, weights: Mapping[str, float], steps: int, *, pull: float) -> dict[str, float]:
        """The weights after so many steps: the mean of those at the end."""
        names = list(weights)
        with self._mixed.mixing(names) as weights_K:
            slots = [self._mixed.slot(name) for name in names]
            with torch.no_grad():
                weights_K[slots] = torch.tensor([weights[name] for name in names], device=weights_K.device)
            optimizer = torch.optim.Adam([weights_K], lr=self._settings.lr, betas=(0.9, 0.95))
            tail: list[torch.Tensor] = []
            packed = self._endless(names)
            for step in range(steps):
                rate = self._settings.lr * (1 - 0.9 * step / max(1, steps - 1))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad()
                loss = self._mixed.token_losses(next(packed)).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    shrunk_K = weights_K.sign() * (weights_K.abs() - pull * rate).clamp(min=0, max=MAX_WEIGHT)
                    weights_K.copy_(shrunk_K)
                if steps - step <= max(1, round(steps * _TAIL)):
                    tail.append(weights_K.detach()[slots].clone())
                self._tell(_finite(loss.item(), ", ".join(names)))
            return dict(zip(names, torch.stack(tail).mean(0).tolist(), strict=True))

    def _endless(self, names: Sequence[str]) -> Iterator[_Batch]:
        while True:
            yield from self._mixed.batches(self._rng.sample(self._examples, len(self._examples)), names)

    def _tell(self, loss: float) -> None:
        self._done += 1
        left = (time.perf_counter() - self._began) / self._done * (self._total - self._done)
        self._report(FitProgress("fit", self._done, self._total, loss, left))


def _begun(example: Example, invocation: Invocation | None) -> Example:
    """The example as an adapter of this invocation runs in it."""
    return example if invocation is None else replace(example, begins=begins_at(example.prompt, invocation))


def _largest(weights: Mapping[str, float], count: int) -> dict[str, float]:
    """The largest weights, and none near zero."""
    names = sorted(weights, key=lambda name: -abs(weights[name]))[:count]
    return {name: weights[name] for name in names if abs(weights[name]) >= _LEAST}


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise NotFinite(f"the loss under {what} is not finite; leave that out, or train it again")
    return value
