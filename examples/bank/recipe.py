"""The recipe of the demo bank: every number that shapes it, in one place."""

from __future__ import annotations

from dataclasses import replace

from dlp_core.router.training.train import TrainSettings as RouterSettings
from dlp_core.train.lora import TrainSettings

ROWS = 5_000
"""Training rows generated per task, for its adapter."""
ROUTER_ROWS = 2_000
"""Training rows generated per task for the router, a quarter of them as people speak."""

DEFAULT = TrainSettings(rank=8, alpha=16.0, targets=("q_proj", "v_proj"), steps=200, lr=2e-3)
ATTENTION = replace(DEFAULT, rank=4, alpha=8.0, targets=("q_proj", "k_proj", "v_proj", "o_proj"))

ORDINARY: dict[str, TrainSettings] = {
    "cron": replace(ATTENTION, steps=500),
    "iso_date": replace(DEFAULT, steps=300),
    "json_extract": replace(ATTENTION, steps=800),
    "sentiment": replace(DEFAULT, rank=4, alpha=8.0, steps=150),
    "shell": replace(DEFAULT, steps=250),
    "text_to_sql": replace(ATTENTION, steps=250),
    "ticket_triage": replace(DEFAULT, steps=150),
    "tool_call": replace(ATTENTION, steps=250),
}
"""The adapters as they are trained first, to run on the whole prompt. Ranks and targets differ on purpose, because real
banks are seldom uniform."""

ACTIVATED: dict[str, tuple[int, float]] = {
    "cron": (0, 0.0),
    "sentiment": (40, 5e-4),
    "text_to_sql": (0, 0.0),
    "tool_call": (20, 2e-4),
}
"""Those that become activated adapters, in so many steps at that learning rate; 0 for what loses nothing as it is. The
others stay ordinary: docs/caching.md says what was tried."""

ADAPTERS: dict[str, TrainSettings] = ORDINARY | {
    name: replace(
        ORDINARY[name],
        activated=True,
        steps=steps,
        lr=lr,
        batch_rows=1,
        row_tokens=384,
        validation_rows=32,
        validate_every=20,
    )
    for name, (steps, lr) in ACTIVATED.items()
}
"""The bank's adapters."""

CHAT_EVERY = 3
"""Of the rows that an activated adapter is trained on, every third follows on a turn of another task."""

BACKGROUND_ROWS = 8_000
"""Number of prompts of no task in the router's training data."""

HELDOUT_TEST, HELDOUT_TRAIN = 100, 80
"""Rows of each task that nothing was trained on, of heldout.yaml: to answer, and to fit mixes and labels on."""

ROUTER = RouterSettings()
