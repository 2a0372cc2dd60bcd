"""Rebuild the demo bank from the generators in tasks/ and the recipe in recipe.py.

python -m examples.bank.build rows OUT         the data, in the format of `dlp adapter train` and `dlp router train`
python -m examples.bank.build heldout OUT      rows that nothing was trained on, for heldout.yaml
python -m examples.bank.build adapters BASE    all adapters, about five minutes each on two idle cores; of some, an
                                               activated one is then made in a few steps
python -m examples.bank.build router           the router, about a minute
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from deployments import terminal
from dlp_core.adapter.contents import CONFIG_FILE
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.train import train_router
from dlp_core.text.chat import Message
from dlp_core.train.lora import TrainProgress, TrainSettings, train_adapter
from dlp_core.train.rows import Row
from examples.bank.recipe import (
    ADAPTERS,
    BACKGROUND_ROWS,
    CHAT_EVERY,
    HELDOUT_TEST,
    HELDOUT_TRAIN,
    ORDINARY,
    ROUTER,
    ROUTER_ROWS,
    ROWS,
)
from examples.bank.tasks import rows as task_rows
from examples.bank.tasks.router_rows import router_rows

HERE = Path(__file__).parent

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Rebuild the demo bank.")


@app.command()
def rows(
    out: Annotated[Path, typer.Argument(help="Folder for one .jsonl per task, and router.jsonl.")],
) -> None:
    """Write the training rows as JSON lines."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ADAPTERS:
        _write(out / f"{name}.jsonl", task_rows(name, "train", ROWS))
    _write(out / "router.jsonl", router_rows("train", ROUTER_ROWS, BACKGROUND_ROWS))


@app.command()
def heldout(
    out: Annotated[Path, typer.Argument(help="Folder for train.jsonl.gz and test.jsonl.gz.")],
) -> None:
    """Write rows of each task that neither adapters nor router have seen: to fit mixes and labels on, and to test."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = {name: task_rows(name, "heldout", HELDOUT_TEST + HELDOUT_TRAIN) for name in ADAPTERS}
    _write(out / "test.jsonl.gz", (row for rows in drawn.values() for row in rows[:HELDOUT_TEST]))
    _write(out / "train.jsonl.gz", (row for rows in drawn.values() for row in rows[HELDOUT_TEST:]))


@app.command()
def adapters(
    base: Annotated[Path, typer.Argument(help="Folder of SmolLM2-135M-Instruct.")],
    only: Annotated[list[str] | None, typer.Option(help="Train only these.")] = None,
    ordinary: Annotated[
        Path, typer.Option(help="Folder for what activated adapters are made from; what it has is not trained again.")
    ] = Path(".demo/ordinary"),
    out: Annotated[Path, typer.Option(help="Folder for one folder per adapter.")] = HERE / "adapters",
) -> None:
    """Train the adapters one after another and print a JSON line for each training."""
    for name in only or ADAPTERS:
        training = [Row(row["input"], row["output"]) for row in task_rows(name, "train", ROWS)]
        if not ADAPTERS[name].activated:
            _train(base, training, out / name, ADAPTERS[name])
            continue
        if not (ordinary / name / CONFIG_FILE).exists():
            _train(base, training, ordinary / name, ORDINARY[name])
        _train(base, in_chats(name, training), out / name, ADAPTERS[name], init_from=ordinary / name)


def in_chats(name: str, training: Sequence[Row]) -> list[Row]:
    """The rows of a task, every so many after a turn of another one."""
    others = [other for other in ADAPTERS if other != name]
    count = -(-len(training) // (CHAT_EVERY * len(others)))
    turns = [
        turn for rows in zip(*(task_rows(other, "train", count) for other in others), strict=True) for turn in rows
    ]
    before = iter(turns)
    return [
        row if number % CHAT_EVERY else Row((*_turn(next(before)), *row.turns), row.output)
        for number, row in enumerate(training)
    ]


def _turn(row: Mapping[str, str]) -> tuple[Message, Message]:
    return Message("user", row["input"]), Message("assistant", row["output"])


def _train(base: Path, rows: Sequence[Row], out: Path, settings: TrainSettings, init_from: Path | None = None) -> None:
    with terminal.progress(f"train {out.name}", total=settings.steps) as bar:

        def report(progress: TrainProgress) -> None:
            bar.update(progress.step, title=f"train {out.name} loss {progress.loss:.3f}")

        summary = train_adapter(base, rows, out, settings, init_from=init_from, report=report)
    terminal.print_json({"adapter": out.name, "activated": settings.activated, **summary.as_dict()})


@app.command()
def router(
    out: Annotated[Path, typer.Option(help="Folder of the router.")] = HERE / "router",
) -> None:
    """Train the router and print a JSON line."""
    training = [TaskRow(row["task"], str(row["input"])) for row in router_rows("train", ROUTER_ROWS, BACKGROUND_ROWS)]
    with terminal.progress("train router", total=100) as bar:
        trained, summary = train_router(
            training, ROUTER, report=lambda state: bar.update(round(100 * state.fraction), title=state.phase)
        )
    trained.save(out)
    terminal.print_json({"router": out.name, **summary.as_dict()})


def _write(path: Path, lines: Iterable[Mapping[str, str | None]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


if __name__ == "__main__":
    app()
