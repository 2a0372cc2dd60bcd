"""`dlp router`: train and evaluate the router of a bank, add adapters to it and remove them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deployments import terminal
from deployments.cli.options import Json, Seed

app = typer.Typer(help="Train, evaluate, extend and shrink routers.", no_args_is_help=True)

Data = Annotated[
    list[Path],
    typer.Option(help='JSON lines {"task": adapter name or null, "input": text}, plain or .gz.'),
]
Folder = Annotated[Path, typer.Option(help="Folder of a trained router.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write to; default: the router's folder.")]


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write router.json and router.safetensors to.")],
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a router on rows of two or more tasks. Rows with "task": null teach it which prompts fit no adapter."""
    from dlp_core.router.rows import read_task_rows
    from dlp_core.router.training.train import TrainSettings, train_router

    rows = read_task_rows(data)
    with terminal.progress(f"train router on {len(rows):,} rows") as bar:
        router, summary = train_router(rows, TrainSettings(seed=seed), report=bar.report)
    router.save(out)
    if json:
        terminal.print_json({"router": str(out), **summary.as_dict()})
        return
    terminal.out.print(
        f"[bold]{out}[/]: {summary.adapters} adapters, {summary.parameters:,} parameters, {summary.seconds:.0f} s; "
        f"of {summary.held_back:,} rows held back {summary.accuracy:.2%} right, {summary.kept:.2%} kept, "
        f"calibration error {summary.ece:.4f}"
    )


@app.command("eval")
def evaluate(
    router: Folder,
    data: Data,
    train_data: Annotated[
        list[Path] | None,
        typer.Option(help="Its training rows: also retrain it, leaving out 4 tasks at a time. Takes minutes."),
    ] = None,
    json: Json = False,
) -> None:
    """Evaluate a router: accuracy, calibration, robustness, latency. It should reject rows of unknown tasks."""
    # Latencies are measured on one thread. OpenBLAS reads this when numpy is first imported, below.
    os.environ["OMP_NUM_THREADS"] = "1"
    from dlp_core.router import Router
    from dlp_core.router.evaluation import evaluate as judge
    from dlp_core.router.rows import read_task_rows

    judged, rows = Router.load(router), read_task_rows(data)
    result = judge(judged, rows).as_dict()
    if train_data is not None:
        from dlp_core.router.training.retrain import retrain

        with terminal.progress("train without 4 tasks at a time") as bar:
            again = retrain(judged, read_task_rows(train_data), rows, report=bar.report)
        result |= again.as_dict()
    if json:
        terminal.print_json(result)
        return
    table = Table("measure", "value", title=str(router))
    for name, value in result.items():
        text = "none to judge by" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name, text)
    terminal.out.print(table)


@app.command()
def add(
    router: Folder,
    adapter: Annotated[str, typer.Option(help="Name of the adapter to add.")],
    examples: Annotated[Path, typer.Option(help='JSON lines {"input": text}, 16 or more, plain or .gz.')],
    out: Out = None,
    json: Json = False,
) -> None:
    """Teach a router one more adapter from a few prompts, without retraining. Takes a second."""
    from dlp_core.router import Router
    from dlp_core.router.growth import add_adapter
    from dlp_core.router.rows import read_examples

    grown, summary = add_adapter(Router.load(router), adapter, read_examples(examples, adapter))
    grown.save(out or router)
    if json:
        terminal.print_json({"router": str(out or router), **summary.as_dict()})
        return
    mistaken = f", most others to {summary.mistaken_for}" if summary.mistaken_for else ""
    terminal.say(
        f"[bold]{out or router}[/]: {summary.adapters} adapters; of {summary.examples} examples of {adapter}, each "
        f"judged without itself, {summary.right:.0%} right{mistaken}, {summary.kept:.0%} kept"
    )


@app.command()
def remove(
    router: Folder,
    adapter: Annotated[str, typer.Option(help="Name of the adapter to remove.")],
    out: Out = None,
    json: Json = False,
) -> None:
    """Remove an adapter from a router, without retraining."""
    from dlp_core.router import Router
    from dlp_core.router.growth import remove_adapter

    smaller = remove_adapter(Router.load(router), adapter)
    smaller.save(out or router)
    if json:
        terminal.print_json({"router": str(out or router), "removed": adapter, "adapters": len(smaller.labels)})
        return
    terminal.say(f"[bold]{out or router}[/]: {len(smaller.labels)} adapters, without {adapter}")
