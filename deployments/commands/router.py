"""`dlp router`: train the router of a bank, or judge one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deployments import console

app = typer.Typer(help="Train and judge routers.", no_args_is_help=True)

Data = Annotated[
    list[Path],
    typer.Option(help='JSON lines {"task": adapter name or null, "input": text}, plain or .gz.'),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write router.json and router.safetensors to.")],
    seed: Annotated[int, typer.Option(min=0, help="Same rows and same seed give the same bytes.")] = 0,
    json: Json = False,
) -> None:
    """Train a router on rows of two or more tasks. Rows with "task": null teach it what fits no adapter."""
    from dlp_core.router.rows import read_task_rows
    from dlp_core.router.training import TrainSettings, train_router

    rows = read_task_rows(data)
    with console.progress(f"train router on {len(rows):,} rows") as bar:

        def report(done: int, total: int) -> None:
            bar.update(done, total=total)

        router, summary = train_router(rows, TrainSettings(seed=seed), report=report)
    router.save(out)
    if json:
        console.print_json({"router": str(out), **summary.as_dict()})
        return
    console.out.print(
        f"[bold]{out}[/]: {summary.adapters} adapters, {summary.parameters:,} parameters, {summary.seconds:.0f} s; "
        f"of {summary.held_back:,} rows held back {summary.accuracy:.2%} right, {summary.kept:.2%} kept, "
        f"calibration error {summary.ece:.4f}"
    )


@app.command("eval")
def evaluate(
    router: Annotated[Path, typer.Option(help="Folder of a trained router.")],
    data: Data,
    json: Json = False,
) -> None:
    """Judge a router on rows: right, calibrated, quick. Rows of tasks it does not know should be refused."""
    # The latencies are those of one thread. OpenBLAS reads this when numpy is first imported, which is below.
    os.environ["OMP_NUM_THREADS"] = "1"
    from dlp_core.router import Router
    from dlp_core.router.evaluation import evaluate as judge
    from dlp_core.router.rows import read_task_rows

    result = judge(Router.load(router), read_task_rows(data)).as_dict()
    if json:
        console.print_json(result)
        return
    table = Table("measure", "value", title=str(router))
    for name, value in result.items():
        text = "none to judge by" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name, text)
    console.out.print(table)
