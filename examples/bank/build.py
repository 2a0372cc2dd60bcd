"""Trains the adapters of the demo bank from nothing but the generators: `python -m examples.bank.build BASE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments import console
from dlp_core.train.lora import TrainProgress, train_adapter
from dlp_core.train.rows import Row
from examples.bank.recipe import ADAPTERS, ROWS
from examples.bank.tasks import rows

HERE = Path(__file__).parent


def build(
    base: Annotated[Path, typer.Argument(help="Folder of SmolLM2-135M-Instruct.")],
    only: Annotated[list[str] | None, typer.Option(help="Train these adapters only.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that gets one folder per adapter.")] = HERE / "adapters",
) -> None:
    """Generate the rows of each task and train its adapter, one after the other; prints a JSON line for each."""
    for name in only or ADAPTERS:
        settings = ADAPTERS[name]
        training = [Row(row["input"], row["output"]) for row in rows(name, "train", ROWS)]
        with console.progress(f"train {name}", total=settings.steps) as bar:

            def report(now: TrainProgress) -> None:
                bar.update(now.step)
                if now.validation_loss is not None:
                    print(json.dumps({"step": now.step, "validation_loss": now.validation_loss}), file=sys.stderr)

            summary = train_adapter(base, training, out / name, settings, report=report)
        console.print_json({"adapter": name, **summary.as_dict()})


if __name__ == "__main__":
    typer.run(build)
