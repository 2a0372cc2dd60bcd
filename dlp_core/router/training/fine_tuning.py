"""Trains the upper layers of an encoder on the rows, before the router learns from it or is put behind it.

Plain classification with a linear head on the unit embeddings, which is thrown away: what follows learns from what the
encoder then makes of texts. Lower layers hold what all texts have in common, and stay as they are, which also saves
half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dlp_core.errors import InvalidRequest
from dlp_core.router.augment import mistype
from dlp_core.router.sentence_encoder import SentenceEncoder
from dlp_core.router.training.examples import Example
from dlp_core.router.training.progress import CHECKPOINT_STEPS, Watch
from dlp_core.store.checkpoints import random_state, restore_random_state

CHARACTERS = 256
"""Of a row that are read: what it is about shows early."""

_PHASE = "tuning"
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
    watch: Watch,
    part: tuple[float, float],
) -> None:
    """Train the last `layers` layers of `encoder`, in place, on the examples that have a task: so many epochs, and at
    least `min_steps` steps. It is `part` of all the work, from and to.

    Raises InvalidRequest if the encoder has not so many layers.
    """
    rows = [example for example in examples if example.tasks]
    steps = min(max(epochs * len(rows) // _BATCH, min_steps), _MOST_STEPS)
    if not steps:  # too few rows to say anything
        return
    trained = _last(encoder.model, layers)
    device = encoder.model.device
    head = nn.Linear(encoder.width, adapters).to(device)
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
    batches = _Batches(rows, rng)
    modules = nn.ModuleDict({"layers": trained, "head": head})
    first = 0
    if (state := watch.checkpoints.load(_PHASE)) is not None:
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        batches.restore(state["batches"])
        rng.setstate(state["rng"])
        restore_random_state(device.type, state["random"])
        first = state["step"]
    report = watch.steps("tune the encoder", *part, _BATCH)
    for step in range(first, steps):
        batch = next(batches)
        embedded = encoder.embed([_typed(example.text[:CHARACTERS], rng) for example in batch])
        tasks = torch.tensor([example.tasks[0] for example in batch], device=device)
        loss = functional.cross_entropy(head(_SCALE * embedded), tasks, label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        done = step + 1
        stopping = watch.checkpoints.stopping()
        if done % CHECKPOINT_STEPS == 0 or done == steps or stopping:
            watch.checkpoints.save(
                _PHASE,
                {
                    "modules": modules.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "batches": batches.state(),
                    "rng": rng.getstate(),
                    "random": random_state(device.type),
                    "step": done,
                },
            )
        report(done, steps, loss.item(), None)
        if stopping:
            raise watch.interrupted()
    encoder.model.requires_grad_(False).eval()


def _last(model: nn.Module, count: int) -> nn.ModuleList:
    """The last layers of a transformer: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=nn.ModuleList())
    if len(layers) < count:
        raise InvalidRequest(f"the encoder has {len(layers)} layers; {count} of them cannot be trained")
    return nn.ModuleList(list(layers)[-count:])


class _Batches:
    """Batches of rows of about the same length, over and over."""

    def __init__(self, rows: Sequence[Example], rng: Random) -> None:
        self._rows, self._rng = rows, rng
        self._shuffled: list[int] = []
        self._sorted: list[list[int]] = []

    def __next__(self) -> list[Example]:
        if not self._sorted:
            if not self._shuffled:
                self._shuffled = self._rng.sample(range(len(self._rows)), len(self._rows))
            part, self._shuffled = self._shuffled[: _SORTED * _BATCH], self._shuffled[_SORTED * _BATCH :]
            part.sort(key=lambda row: len(self._rows[row].text))
            self._sorted = [part[first : first + _BATCH] for first in range(0, len(part), _BATCH)]
            self._rng.shuffle(self._sorted)
        return [self._rows[row] for row in self._sorted.pop(0)]

    def state(self) -> dict[str, Any]:
        """What is left of the epoch."""
        return {"shuffled": self._shuffled, "sorted": self._sorted}

    def restore(self, state: dict[str, Any]) -> None:
        self._shuffled, self._sorted = state["shuffled"], state["sorted"]


def _typed(text: str, rng: Random) -> str:
    """The text, sometimes with typos."""
    return mistype(text, rng, rng.uniform(0.0, _MOST_TYPOS)) if rng.random() < _MISTYPED else text
