"""`dlp router`: train, tune and evaluate the router of a bank, add adapters to it and remove them."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.eval import Dtype, Threads, read_setup
from deployments.cli.interrupts import resumable_training
from deployments.cli.options import ROWS, BaseModel, Device, Json, Resume, Seed
from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from dlp_core.router import Router
    from dlp_core.router.training.progress import TrainProgress

app = typer.Typer(help="Train, tune, evaluate, extend and shrink routers.", no_args_is_help=True)

KEPT = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
"""Points of the curve that are shown."""

Data = Annotated[
    list[Path],
    typer.Option(
        help=f'{ROWS}, each with "task": an adapter\'s name, or null for a prompt that fits none; or rows as '
        "`dlp router label` writes them."
    ),
]
Folder = Annotated[Path, typer.Option(help="Folder of a trained router.")]
Keep = Annotated[
    float | None,
    typer.Option(
        help="Fraction of the prompts of its tasks to keep; the higher, the more strangers get in.",
        show_default="as strangers allow",
    ),
]
Coverage = Annotated[
    float | None,
    typer.Option(help="How often a mix must hold the right adapter, at least.", show_default="mixes of top-p 0.9"),
]
Out = Annotated[Path | None, typer.Option(help="Folder to write to; default: the router's folder.")]


@app.command()
def train(
    data: Data,
    *,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Bank folder that gets the router. Adapters without rows are routed by their description, if any."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the router to, without --into.", show_default=False)
    ] = None,
    keep: Keep = None,
    coverage: Coverage = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of a Hugging Face or sentence-transformers encoder, in place of the built-in one."),
    ] = None,
    tuned_layers: Annotated[
        int,
        typer.Option(
            min=0, help="How many layers of that encoder, from the last, are trained on the rows; 0: it stays as it is."
        ),
    ] = 3,
    seed: Seed = 0,
    device: Device = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train a router on rows of two or more tasks. Rows with "task": null teach it which prompts fit no adapter."""
    if (into is None) == (out is None):
        raise InvalidRequest("give either --into BANK_FOLDER or --out FOLDER")
    out = Path(into or Path(), "router") if out is None else out
    with resumable_training(out) as stop:
        from dlp_core.bank.teaching import plan_teaching
        from dlp_core.router.rows import adapters_of, read_task_rows
        from dlp_core.router.training.train import TrainSettings, checkpoints_of, train_router

        rows = read_task_rows(data)
        rest = None if into is None else plan_teaching(into, adapters_of(rows))
        settings = TrainSettings(
            seed=seed,
            keep=keep,
            coverage=coverage,
            encoder=encoder,
            tuned_layers=tuned_layers,
            device=terminal.device(device, default="cpu", mps=True),
        )
        checkpoints = checkpoints_of(out, rows, settings, resume=resume, stop=stop)
        if settings.teacher is None and encoder is None:
            terminal.warn(
                "the teacher is not installed, so this router knows no words but those of its rows; for better routing "
                "of what people write: pip install 'dlp-serve[train]'"
            )
        with terminal.progress(f"train router on {len(rows):,} rows", total=100) as bar:

            def report(state: TrainProgress) -> None:
                bar.update(round(100 * state.fraction), title=f"train router: {_described(state)}")

            router, summary = train_router(rows, settings, checkpoints=checkpoints, report=report)
        if rest is not None:
            router = rest.complete(router)
        router.save(out)
        checkpoints.remove()
    described, by_name = ([], []) if rest is None else (list(rest.described), list(rest.by_name))
    if json:
        untaught = {"by_description": described, "by_name": by_name}
        terminal.print_json({"router": str(out), **summary.as_dict(), **untaught, "curve": _curve(router)})
        return
    if described:
        terminal.say(f"routed by their description: {escape(', '.join(described))}")
    if by_name:
        terminal.say(f"called by name alone, without rows or description: {escape(', '.join(by_name))}")
    for warning in summary.warnings:
        terminal.warn(warning)
    terminal.out.print(_curve_table(router))
    terminal.out.print(
        f"[bold]{out}[/]: {summary.adapters} adapters, {summary.parameters:,} parameters, {summary.seconds:.0f} s; "
        f"of {summary.held_back:,} rows held back {summary.accuracy:.2%} right, {summary.kept:.2%} kept, "
        f"calibration error {summary.ece:.4f}"
    )


@app.command()
def label(
    data: Annotated[list[Path], typer.Option(help=f"{ROWS}. A row's task may be an adapter, another name, or none.")],
    bank: Annotated[
        str,
        typer.Option(
            envvar="DLP_BANK",
            metavar="URI|FOLDER",
            help="A published bank (#VERSION for a version that is not current), or an unpublished bank folder.",
            show_default=False,
        ),
    ],
    base_model: BaseModel,
    out: Annotated[Path, typer.Option(help="File to write: the rows with their labels, JSON lines.")],
    *,
    candidates: Annotated[
        int, typer.Option(min=1, help="How many adapters to ask for a row: the router's likeliest, and the row's own.")
    ] = 8,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Nats of gain that make a label clear; the smaller, the harder labels get.")
    ] = 0.25,
    dtype: Dtype = "bfloat16",
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure how much each adapter helps on each row, for `dlp router train --data`. Goes on where it was interrupted.

    A row's right answer is scored under the plain backbone and under the adapters; docs/router.md has the formula.
    """
    from deployments.args import CacheArgs
    from dlp_core.eval.labelling import label_rows, summary, write
    from dlp_core.store.checkpoints import checkpoint_folder
    from dlp_core.text.rows import read_rows

    if out.is_dir() or out.resolve() in {path.resolve() for path in data}:
        raise InvalidRequest(f"--out is {out}; it must be another file, for the labels")
    rows = [row for path in data for row in read_rows(path)]
    setup = read_setup(base_model, dtype, device, threads, at_once=1)
    folder = checkpoint_folder(out)
    with resumable_training(out, option=None) as stop, terminal.progress("load the model", total=len(rows)) as bar:
        began: tuple[int, float] | None = None

        def report(done: int, total: int) -> None:
            nonlocal began
            began = (done, time.monotonic()) if began is None else began
            rate = (done - began[0]) / max(time.monotonic() - began[1], 1e-9)
            left = f", {terminal.duration((total - done) / rate)} left" if rate else ""
            bar.update(done, total=total, title=f"label rows{left}")

        labelled = label_rows(
            rows,
            bank,
            setup,
            cache=CacheArgs().open(),
            journal=folder / "scores.jsonl",
            candidates=candidates,
            temperature=temperature,
            report=report,
            stop=stop,
        )
        write(labelled, out)
        shutil.rmtree(folder, ignore_errors=True)
    found = summary(labelled)
    if json:
        terminal.print_json({"labels": str(out), **found})
        return
    table = Table("best adapter", "rows", title=f"{len(labelled):,} rows labelled by benefit")
    for name, count in found["best"].items():
        table.add_row(escape(name), f"{count:,}")
    table.add_row("none of these", f"{found['none']:,}")
    terminal.out.print(table)
    terminal.say(
        f"[bold]{escape(str(out))}[/]: of {found['rows']:,} rows, {found['own']:,} are served best by their own "
        f"adapter, {found['other']:,} by another, {found['none']:,} by none; next: dlp router train --data "
        f"{escape(shlex.quote(str(out)))}"
    )


@app.command()
def tune(
    router: Folder,
    *,
    keep: Keep = None,
    coverage: Coverage = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Rows that the router was not trained on, to tune by; default: what the training held back."),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Move a router's threshold, or its top-p, without training it again."""
    from dlp_core.router import Router
    from dlp_core.router.rows import read_task_rows
    from dlp_core.router.tuning import tuned

    rows = None if data is None else read_task_rows(data)
    changed = tuned(Router.load(router), keep=keep, coverage=coverage, rows=rows)
    changed.save(out or router)
    if json:
        calibration = changed.calibration
        terminal.print_json(
            {
                "router": str(out or router),
                "threshold": calibration.threshold,
                "top_p": calibration.top_p,
                "kept": changed.curve.kept(calibration.threshold),
                "refused": changed.curve.refused(calibration.threshold),
                "curve": _curve(changed),
            }
        )
        return
    terminal.out.print(_curve_table(changed))
    terminal.say(f"[bold]{out or router}[/]: mixes of top-p {changed.calibration.top_p:.3g}")


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
    """Evaluate a router: accuracy, calibration, other wordings, strangers, latency. docs/router.md explains each."""
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
    for warning in result.pop("warnings"):
        terminal.warn(warning)
    table = Table("measure", "value", title=str(router))
    for name, value in result.items():
        text = "none to judge by" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name, text)
    terminal.out.print(table)


@app.command()
def add(
    router: Folder,
    adapter: Annotated[str, typer.Option(help="Name of the adapter to add.")],
    *,
    examples: Annotated[Path | None, typer.Option(help=f"{ROWS}; 16 are good, 4 will do.")] = None,
    describe: Annotated[
        str | None,
        typer.Option(help="What the adapter is for, in a sentence; or its folder, if that has a description.txt."),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Teach a router one more adapter from a few prompts, a description, or both. Takes a second."""
    from dlp_core.bank.folder import checked_description, read_description
    from dlp_core.router import Router
    from dlp_core.router.growth import add_adapter
    from dlp_core.router.rows import read_examples

    texts = [] if examples is None else read_examples(examples, adapter)
    about = describe and (
        read_description(Path(describe)) if Path(describe).is_dir() else checked_description(describe)
    )
    grown, summary = add_adapter(Router.load(router), adapter, texts, description=about)
    grown.save(out or router)
    if json:
        terminal.print_json({"router": str(out or router), **summary.as_dict()})
        return
    line = f"[bold]{out or router}[/]: {summary.adapters} adapters"
    if summary.right is not None and summary.kept is not None:
        mistaken = f", most others to {summary.mistaken_for}" if summary.mistaken_for else ""
        line += (
            f"; of {summary.examples} examples of {adapter}, each judged without itself, {summary.right:.0%} "
            f"right{mistaken}, {summary.kept:.0%} kept"
        )
    terminal.say(f"{line}; takes {summary.taken:.1%} of what the others remember")


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


def _described(state: TrainProgress) -> str:
    if state.loss is None:
        return state.phase
    assert state.texts_per_s is not None
    assert state.seconds_left is not None
    held_back = "" if state.held_back_loss is None else f", held back {state.held_back_loss:.3f}"
    left = terminal.duration(state.seconds_left)
    return f"{state.phase}: loss {state.loss:.3f}{held_back}, {state.texts_per_s:,.0f} texts/s, {left} left"


def _curve(router: Router) -> list[dict[str, float | None]]:
    """What each fraction kept costs: the fraction of strangers refused."""
    curve = router.curve
    return [
        {"keep": keep, "threshold": (threshold := curve.threshold(keep)), "refused": curve.refused(threshold)}
        for keep in KEPT
    ]


def _curve_table(router: Router) -> Table:
    kept, auroc = router.curve.kept(router.calibration.threshold), router.curve.auroc
    separation = "no rows of no task to tell it by" if auroc is None else f"AUROC {auroc:.4f}"
    table = Table("--keep", "strangers refused", title=f"keeping {kept:.1%} of its tasks; {separation}")
    for point in _curve(router):
        refused = point["refused"]
        table.add_row(f"{point['keep']:g}", "" if refused is None else f"{refused:.1%}")
    return table
