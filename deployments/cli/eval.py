"""`dlp eval`: evaluate a bank on a suite, gate a new bank against a baseline, compare two banks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape
from rich.table import Column, Table

from deployments import terminal
from deployments.cli.base_model import fetched
from deployments.cli.options import ROWS, Device, Json, SomeBaseModel
from deployments.extras import require
from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from dlp_core.eval.evaluation import Phase
    from dlp_core.eval.results import Difference, Results
    from dlp_core.eval.run import Setup
    from dlp_core.eval.suite import Suite

T = TypeVar("T")

app = typer.Typer(help="Evaluate banks on task suites.")

FINDINGS = "pairs.json"
"""Of `dlp eval pairs`, in --out."""

SuiteFile = Annotated[Path | None, typer.Option("--suite", help="YAML suite.", show_default=False)]
Bank = Annotated[
    str | None,
    typer.Option(
        envvar="DLP_BANK",
        metavar="URI|FOLDER",
        help="A published bank (#VERSION for a version that is not current), or an unpublished bank folder.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help=f"{ROWS}; with --suite, the folder of its data files if not its own.", show_default=False),
]
Rows = Annotated[int | None, typer.Option(min=1, help="Rows per task, and maximum number of composite prompts.")]
Out = Annotated[Path, typer.Option(help="Folder for answers, results.json, report.html and report.md.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float32 or float16.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the model.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Concurrent requests in the engine.")]
History = Annotated[str | None, typer.Option(metavar="URI", help="Store for the results; default: the bank's store.")]


@app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    *,
    suite: SuiteFile = None,
    bank: Bank = None,
    base_model: SomeBaseModel = None,
    arms: Annotated[
        str | None, typer.Option(help="Comma separated; see docs/evaluation.md. Default: the standard arms.")
    ] = None,
    data: Data = None,
    rows: Rows = None,
    out: Out = Path("eval"),
    dtype: Dtype = "bfloat16",
    device: Device = None,
    threads: Threads = None,
    at_once: AtOnce = 16,
    history: History = None,
    json: Json = False,
) -> None:
    """Evaluate a bank: every row of a suite with every arm. An interrupted run resumes where it stopped."""
    if context.invoked_subcommand is not None:
        return
    require("jinja2", "matplotlib", "rouge_score", "sacrebleu")
    from deployments.args import CacheArgs
    from dlp_core.eval.headline import sentence
    from dlp_core.eval.report import write_html, write_markdown
    from dlp_core.eval.run import run_evaluation
    from dlp_core.store.opening import open_store

    judged = read_suite(suite, data, rows)
    setup = read_setup(base_model, dtype, device, threads, at_once)
    location = require_option(bank, "--bank", "DLP_BANK")
    with phases() as phase:
        results = run_evaluation(
            judged,
            arms.split(",") if arms else None,
            location,
            setup,
            cache=CacheArgs().open(),
            journal=out / "answers.jsonl",
            phase=phase,
            history=open_store(history) if history else None,
        )
    (out / "results.json").write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_html(results, out / "report.html")
    write_markdown(results, out)
    if json:
        summary = {"judged": str(results.bank), "verdict": sentence(results)}
        terminal.print_json(summary | results.model_dump(mode="json", exclude={"rows"}))
        return
    _show(results)
    terminal.say(escape(f"Judged: {results.bank}."))
    terminal.say(escape(sentence(results)))
    terminal.say(f"{escape(str(out / 'report.html'))}, {escape(str(out / 'results.json'))}")


@app.command()
def gate(
    *,
    suite: SuiteFile = None,
    bank: Bank = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="URI|FOLDER|FILE", help="The previous bank, or its results.")
    ] = None,
    max_drop: Annotated[float, typer.Option(min=0, help="Points a task or the mean may lose.")] = 1.0,
    arm: Annotated[str, typer.Option(help="The arm to compare; default: what a server runs.")] = "top-p=0.9",
    base_model: SomeBaseModel = None,
    data: Data = None,
    rows: Rows = None,
    out: Out = Path("eval"),
    dtype: Dtype = "bfloat16",
    device: Device = None,
    threads: Threads = None,
    at_once: AtOnce = 16,
    json: Json = False,
) -> None:
    """Exit 1 if the bank is worse than the baseline by more than --max-drop and more than noise, or mixes adapters that
    `dlp eval pairs` found to spoil each other; names the tasks and pairs."""
    require("rouge_score", "sacrebleu")
    from deployments.args import CacheArgs
    from dlp_core.eval.arms import parse
    from dlp_core.eval.gate import judge

    chosen = parse(arm).name
    judged = read_suite(suite, data, rows)
    setup = read_setup(base_model, dtype, device, threads, at_once)
    location, old_location = (
        require_option(bank, "--bank", "DLP_BANK"),
        require_option(baseline, "--baseline"),
    )
    with phases() as phase:
        verdict = judge(
            judged,
            chosen,
            location,
            old_location,
            setup,
            max_drop=max_drop,
            cache=CacheArgs().open(),
            journal=out / "answers.jsonl",
            pairs=out / FINDINGS,
            phase=phase,
        )
    old, new, difference = verdict.old, verdict.new, verdict.difference
    failed, dropped = verdict.worse, verdict.mean_worse
    if json:
        terminal.print_json(
            {
                "passed": verdict.passed,
                "worse": failed,
                "mean_worse": dropped,
                "spoiled": verdict.spoiled,
                "max_drop": max_drop,
                "arm": chosen,
                "suite": judged.settings.name,
                "bank": new.bank.version,
                "baseline": old.bank.version,
                "mean": difference.overall.model_dump(),
                "tasks": {task: interval.model_dump() for task, interval in difference.tasks.items()},
            }
        )
    else:
        _show_difference(difference, old, new, chosen)
        for task in failed:
            terminal.say(
                f"[red]worse: {task} {difference.tasks[task].mean:+.1f}, more than the allowed loss of {max_drop:g}[/]"
            )
        if dropped:
            terminal.say(
                f"[red]worse: the mean {difference.overall.mean:+.1f}, more than the allowed loss of {max_drop:g}[/]"
            )
        for one, other in verdict.spoiled:
            terminal.say(
                f"[red]spoiled: {one} with {other}, by `dlp eval pairs`, and this bank lets them be mixed[/]; leave "
                "the pair out of allowed_together"
            )
        if verdict.passed:
            terminal.say(f"[green]passed[/]: no task lost more than {max_drop:g} points and more than its noise")
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A bank version with results in the store, or a results.json.")],
    b: Annotated[str, typer.Argument(help="The bank or results to compare it with.")],
    *,
    bank: Bank = None,
    suite: Annotated[str | None, typer.Option(help="Name of the suite, if there are results of several.")] = None,
    arm: Annotated[str, typer.Option(help="The arm to compare.")] = "top-p=0.9",
    json: Json = False,
) -> None:
    """Show two banks side by side: every task, the gain of B over A, and whether it is significant."""
    from dlp_core.eval.arms import parse
    from dlp_core.eval.results import compare_banks, latest, read
    from dlp_core.store.opening import open_store

    chosen = parse(arm).name

    def results_of(where: str) -> Results:
        if where.endswith(".json"):
            return read(Path(where))
        return latest(open_store(require_option(bank, "--bank", "DLP_BANK")), where, suite=suite, arms=[chosen])

    old, new = results_of(a), results_of(b)
    difference = compare_banks(new, old, chosen)
    if json:
        terminal.print_json(
            {
                "arm": chosen,
                "suite": new.suite.name,
                "a": {"bank": old.bank.version, "score": old.arm(chosen).score.model_dump()},
                "b": {"bank": new.bank.version, "score": new.arm(chosen).score.model_dump()},
                "difference": difference.overall.model_dump(),
                "tasks": {task: interval.model_dump() for task, interval in difference.tasks.items()},
                "better": difference.better,
                "worse": difference.worse(0),
            }
        )
        return
    _show_difference(difference, old, new, chosen)


def read_suite(path: Path | None, data: Path | None, rows: int | None) -> Suite:
    from dlp_core.eval.suite import load_suite, suite_of_rows

    if path is None:
        return suite_of_rows(require_option(data, "--data' or '--suite"), rows=rows)
    if data is not None and not data.is_dir():
        raise InvalidRequest(f"--data is {data}; with --suite it is the folder of the suite's data files")
    return load_suite(path, data=data, rows=rows)


def read_setup(base_model: str | None, dtype: str, device: str | None, threads: int | None, at_once: int) -> Setup:
    from dlp_core.eval.run import Setup

    if dtype not in ("bfloat16", "float32", "float16"):
        raise InvalidRequest(f"--dtype is {dtype!r}; it must be bfloat16, float32 or float16")
    folder = fetched(require_option(base_model, "--base-model", "DLP_BASE_MODEL"))
    device = terminal.device(device)
    if device == "cpu":
        return Setup(folder, dtype, device, threads, at_once)
    return Setup(folder, dtype, device, threads, at_once, cache_tokens=131_072, batch_tokens=4096)


def require_option(value: T | None, option: str, variable: str | None = None) -> T:
    """The value of an option that not all of these commands need. Raises InvalidRequest, in Typer's words, without."""
    if value is None:
        raise InvalidRequest(f"Missing option '{option}'" + (f" (env var: '{variable}')" if variable else ""))
    return value


@contextmanager
def phases() -> Iterator[Phase]:
    """One progress bar for the successive phases of an evaluation."""
    with terminal.progress("load") as bar:
        yield lambda title: lambda done, total: bar.update(done, total=total, title=title)


def _show(results: Results) -> None:
    table = Table(
        Column("arm", no_wrap=True),
        title=f"{results.suite.name}, {results.suite.rows} rows",
    )
    for column in ("score", "95% interval", "adapters", "plain"):
        table.add_column(column, justify="right")
    for name, same in results.distinct().items():
        arm, score = results.arm(name), results.arm(name).score
        table.add_row(
            "\n".join([name, *(f"[dim]= {other}[/]" for other in same)]),
            f"{score.mean:.1f}",
            f"{score.low:.1f} to {score.high:.1f}",
            f"{arm.adapters:.2f}",
            f"{arm.plain:.1%}",
        )
    terminal.out.print(table)
    if results.composites:
        parts = sorted({composite.parts for composite in results.composites})
        table = Table("several questions in a prompt", *map(str, parts))
        for way in dict.fromkeys(composite.arm for composite in results.composites):
            scores = {composite.parts: composite.score for composite in results.composites if composite.arm == way}
            table.add_row(way, *(f"{scores[n].mean:.1f} ({scores[n].low:.1f}-{scores[n].high:.1f})" for n in parts))
        terminal.out.print(table)


def _show_difference(difference: Difference, old: Results, new: Results, arm: str) -> None:
    before, after = old.arm(arm), new.arm(arm)
    table = Table(Column("task", no_wrap=True), title=f"{new.suite.name}, {arm}")
    for column in (old.bank.version, new.bank.version, "difference", "interval", ""):
        table.add_column(column, justify="right")
    worse, better = difference.worse(0), difference.better
    for task, interval in sorted(difference.tasks.items(), key=lambda item: item[1].mean):
        table.add_row(
            task,
            f"{before.tasks[task].score.mean:.1f}",
            f"{after.tasks[task].score.mean:.1f}",
            f"{interval.mean:+.1f}",
            f"{interval.low:+.1f} to {interval.high:+.1f}",
            "[red]worse[/]" if task in worse else "[green]better[/]" if task in better else "",
        )
    table.add_section()
    mean = difference.overall
    table.add_row(
        "mean over tasks",
        f"{before.score.mean:.1f}",
        f"{after.score.mean:.1f}",
        f"{mean.mean:+.1f}",
        f"{mean.low:+.1f} to {mean.high:+.1f}",
        "[red]worse[/]" if mean.high < 0 else "[green]better[/]" if mean.low > 0 else "",
    )
    terminal.out.print(table)
