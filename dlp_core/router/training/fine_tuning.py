"""Trains the upper layers of an encoder on the rows, before the router learns from it or is put behind it.

Plain classification with a linear head on the unit embeddings, which is thrown away: what follows learns from what the
encoder then makes of texts. Lower layers hold what all texts have in common, and stay as they are, which also saves
half of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import nn
from torch.nn import functional

from dlp_core.errors import InvalidRequest
from dlp_core.router.augment import mistype
from dlp_core.router.sentence_encoder import SentenceEncoder
from dlp_core.router.training.examples import Example
from dlp_core.store.transfers import Progress, silent

CHARACTERS = 256
"""Of a row that are read: what it is about shows early."""

_MOST_STEPS = 1500
_BATCH = 64
_SORTED = 32  # batches whose rows are sorted by length, so that little of a batch is padding
_LR, _HEAD_LR, _WEIGHT_DECAY = 1e-4, 2e-3, 0.01
_WARM_UP = 0.1  # of the steps
_SMOOTHING = 0.1
_MISTYPED, _MOST_TYPOS = 0.2, 0.1  # of the rows, and of the characters of such a row
_SCALE = 16.0  # of the unit embeddings before the head


def fine_tune(
    encoder: SentenceEncoder,
    examples: Sequence[Example],
    adapters: int,
    rng: Random,
    *,
    layers: int,
    epochs: int,
    min_steps: int = 0,
    report: Progress = silent,
) -> None:
    """Train the last `layers` layers of `encoder`, in place, on the examples that have a task: so many epochs, and at
    least `min_steps` steps. `report` gets (steps done, all steps).

    Raises InvalidRequest if the encoder has not so many layers.
    """
    rows = [example for example in examples if example.tasks]
    steps = min(max(epochs * len(rows) // _BATCH, min_steps), _MOST_STEPS)
    if not steps:  # too few rows to say anything
        return
    trained = _last(encoder.model, layers)
    head = nn.Linear(encoder.width, adapters)
    encoder.model.requires_grad_(False)
    trained.requires_grad_(True)
    parameters = list(trained.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "lr": _LR, "weight_decay": _WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "lr": _LR, "weight_decay": 0.0},
            {"params": list(head.parameters()), "lr": _HEAD_LR, "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (_WARM_UP * steps), 1.0) * (1.0 - step / steps)
    )
    trained.train()
    batches = _batches(rows, rng)
    for step in range(steps):
        batch = next(batches)
        embedded = encoder.embed([_typed(example.text[:CHARACTERS], rng) for example in batch])
        tasks = torch.tensor([example.tasks[0] for example in batch])
        loss = functional.cross_entropy(head(_SCALE * embedded), tasks, label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        report(step + 1, steps)
    encoder.model.requires_grad_(False).eval()


def _last(model: nn.Module, count: int) -> nn.ModuleList:
    """The last layers of a transformer: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=nn.ModuleList())
    if len(layers) < count:
        raise InvalidRequest(f"the encoder has {len(layers)} layers; {count} of them cannot be trained")
    return nn.ModuleList(list(layers)[-count:])


def _batches(rows: Sequence[Example], rng: Random) -> Iterator[list[Example]]:
    """Batches of rows of about the same length, over and over."""
    while True:
        shuffled = rng.sample(rows, len(rows))
        for start in range(0, len(shuffled), _SORTED * _BATCH):
            part = sorted(shuffled[start : start + _SORTED * _BATCH], key=lambda example: len(example.text))
            batches = [part[first : first + _BATCH] for first in range(0, len(part), _BATCH)]
            rng.shuffle(batches)
            yield from batches


def _typed(text: str, rng: Random) -> str:
    """The text, sometimes with typos."""
    return mistype(text, rng, rng.uniform(0.0, _MOST_TYPOS)) if rng.random() < _MISTYPED else text
