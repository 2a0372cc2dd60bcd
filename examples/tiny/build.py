"""Writes a random model, three adapters for it and a router that tells their prompts apart, in seconds, from nothing.

    python -m examples.tiny.build OUT

Every file is what any bank has; only the answers are noise. Needs the `train` extra.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dlp_core.quiet import quiet_transformers
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.net import NetSettings
from dlp_core.router.training.train import TrainSettings, train_router
from examples.tiny.model import peft_model, tiny_backbone, tiny_model

BASE = "tiny-llama"
TASKS = {
    "cron": "write a cron schedule for every {} minutes at night",
    "dates": "which calendar date comes {} days after christmas",
    "sql": "select the {} newest rows from this database table",
}
"""What prompts of each adapter ask, with a number to fill in."""

OPENINGS = ("", "please ", "could you ", "now ", "quickly ")
LORA: Mapping[str, Mapping[str, Any]] = {
    "cron": {"r": 2, "lora_alpha": 6},
    "dates": {"r": 8, "use_rslora": True, "target_modules": ["q_proj", "o_proj", "down_proj"]},
    "sql": {},
}
"""What of each adapter's PEFT config differs from the others'."""


def write_bank(folder: Path) -> None:
    """Writes the model to `folder / BASE` and a bank for it to `folder / "bank"`."""
    tiny_backbone(folder / BASE)
    for seed, (name, lora) in enumerate(LORA.items(), start=1):
        write_adapter(folder / "bank/adapters" / name, tiny_model(), seed, **lora)
    (folder / "bank/bank.json").write_text(json.dumps({"base_model": BASE}))
    rows = [
        TaskRow(task, f"{opening}{text.format(number)}")
        for task, text in TASKS.items()
        for opening in OPENINGS
        for number in range(12)
    ]
    net = NetSettings(min_steps=100, batch=32, widths=(32,))
    router, _ = train_router(rows, TrainSettings(teacher=None, pieces=16, grams=16, net=net))
    router.save(folder / "bank/router")


def write_adapter(folder: Path, model: Any, seed: int, **lora: Any) -> None:
    """A random PEFT adapter of the model, which is changed: PEFT puts its layers into it."""
    peft_model(model, seed, **lora).save_pretrained(folder)
    (folder / "README.md").unlink()


def main(out: Annotated[Path, typer.Argument(help="Folder that gets the model's folder and the bank's.")]) -> None:
    """Write a tiny model and a bank for it."""
    with quiet_transformers():
        write_bank(out)
    print(json.dumps({"base_model": str(out / BASE), "bank": str(out / "bank")}))


if __name__ == "__main__":
    typer.run(main)
