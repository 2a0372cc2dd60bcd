"""`dlp improve`: what people said becomes a better router, step by step, each tried before it serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli import topics
from deployments.cli.interrupts import resumable_training
from deployments.cli.options import ROWS, Device, Json, Seed, SomeBaseModel
from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from dlp_core.improve.loop import Demand
    from dlp_core.improve.run import AnswersJudged, Run
    from dlp_core.improve.steps import Tools, Waiting
    from dlp_core.store.protocol import AdapterStore

app = typer.Typer(help="Improve a bank's router with feedback.")

WORK = Path("~/.cache/dlp/improve")
"""Where trainings keep their checkpoints."""
SHOWN_SUSPECTS = 10

Bank = Annotated[
    str | None,
    typer.Option(envvar="DLP_BANK", metavar="URI", help="Store of the published bank.", show_default=False),
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        help=f'{ROWS}: what the router is trained with, each with "task". Kept in the store, so only needed once.',
        show_default="those of the last run",
    ),
]
MinRows = Annotated[int, typer.Option(min=1, help="New rows of feedback that a run begins with.")]
MaxDrop = Annotated[float, typer.Option(min=0, help="Points that the gate lets the new router lose.")]
SuiteFile = Annotated[
    Path | None,
    typer.Option("--suite", help="YAML suite: the gate judges answers too. Needs --base-model.", show_default=False),
]
Share = Annotated[float, typer.Option(help="The canary's share of the requests, between 0 and 1.")]
AfterRequests = Annotated[
    int, typer.Option("--promote-after-requests", min=1, help="Promote after so many requests without an alarm.")
]
AfterHours = Annotated[
    float | None, typer.Option("--promote-after-hours", min=0.01, help="And not before so many hours.")
]


@app.callback(invoke_without_command=True)
def improve(
    context: typer.Context,
    *,
    bank: Bank = None,
    data: Data = None,
    min_rows: MinRows = 50,
    seed: Seed = 0,
    device: Device = None,
    max_drop: MaxDrop = 1.0,
    suite: SuiteFile = None,
    base_model: SomeBaseModel = None,
    share: Share = 0.05,
    promote_after_requests: AfterRequests = 500,
    promote_after_hours: AfterHours = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on for ever: follow canaries, begin again.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 300.0,
    json: Json = False,
) -> None:
    """Take every step that is due: collect, propose, train, gate, canary. A run that was interrupted goes on."""
    if context.invoked_subcommand is not None:
        return
    from dlp_core.improve.loop import until_waiting
    from dlp_core.improve.loop import watch as watch_store

    store = _store(bank)
    demand = _demand(data, min_rows, seed)
    answers = _answers(store, suite, base_model, max_drop)
    with resumable_training(_work(store), option=None) as stop:
        tools = _tools(store, stop, device=device, max_drop=max_drop, answers=answers, share=share) | {
            "promote_after_requests": promote_after_requests,
            "promote_after_hours": promote_after_hours,
        }
        with terminal.progress("improve", total=100) as bar:
            made = _made(tools, bar)

            def wait() -> bool:
                end = time.monotonic() + every
                while (left := end - time.monotonic()) > 0 and not stop():
                    time.sleep(min(left, 0.2))
                return not stop()

            outcomes = watch_store(made, demand, wait=wait) if watch else until_waiting(made, demand)
            for outcome in outcomes:
                if watch or not json:
                    bar.pause()
                    _say_outcome(outcome, json=json)
    if not watch:
        _status(store, json=json, brief=not json)


@app.command()
def collect(
    *, bank: Bank = None, data: Data = None, min_rows: MinRows = 50, seed: Seed = 0, json: Json = False
) -> None:
    """Begin a run: turn feedback into rows, and set aside those whose label seems wrong."""
    from dlp_core.improve.loop import turn
    from dlp_core.improve.steps import Waiting

    store = _store(bank)
    if not _expect(store, "collect", begins=True):
        _status(store, json=json)
        return
    demand = _demand(data, min_rows, seed)
    tools = _made(_tools(store, lambda: False), None)
    outcome = turn(tools, demand)
    if outcome is not None and not isinstance(outcome, Waiting) and outcome.state == "begun":
        outcome = turn(tools, demand)
    if isinstance(outcome, Waiting):
        if json:
            terminal.print_json({"bank": store.uri, "waiting": {"new": outcome.new, "needed": outcome.needed}})
        else:
            _say_outcome(outcome, json=False)
        return
    _status(store, json=json)


@app.command()
def propose(
    *,
    bank: Bank = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for one file of rows per topic, whose answers are left for you to write."),
    ] = None,
    json: Json = False,
) -> None:
    """Show the topics that no adapter serves. A proposal: nothing is made of it."""
    from dlp_core.improve import run as runs

    store = _store(bank)
    last = runs.latest(store)
    if last is not None and last[0].next_step == "propose":
        from dlp_core.improve.steps import take_step

        take_step(_made(_tools(store, lambda: False), None), *last)
    found, texts = topics.proposed(store)
    if out is not None:
        topics.write(found, texts, out)
    if json:
        terminal.print_json({"bank": store.uri, **topics.as_json(found, texts)})
        return
    topics.say(found, texts)


@app.command()
def train(*, bank: Bank = None, device: Device = None, json: Json = False) -> None:
    """Train the run's router and store it in a bank version that does not serve."""
    store = _store(bank)
    _take(store, "train", json=json, device=device)


@app.command()
def gate(
    *,
    bank: Bank = None,
    max_drop: MaxDrop = 1.0,
    suite: SuiteFile = None,
    base_model: SomeBaseModel = None,
    json: Json = False,
) -> None:
    """Compare both routers on rows that neither was trained on. Exit 1 if the new one is refused."""
    store = _store(bank)
    answers = _answers(store, suite, base_model, max_drop)
    run = _take(store, "gate", json=json, max_drop=max_drop, answers=answers)
    if run.state == "refused":
        raise typer.Exit(1)


@app.command()
def canary(
    *,
    bank: Bank = None,
    share: Share = 0.05,
    promote_after_requests: AfterRequests = 500,
    promote_after_hours: AfterHours = None,
    json: Json = False,
) -> None:
    """Start the canary, or look how it ended."""
    store = _store(bank)
    _take(
        store,
        "canary",
        json=json,
        share=share,
        promote_after_requests=promote_after_requests,
        promote_after_hours=promote_after_hours,
    )


@app.command()
def status(*, bank: Bank = None, json: Json = False) -> None:
    """Show how far the last run is, why, and which rows wait for review."""
    _status(_store(bank), json=json)


def _store(bank: str | None) -> AdapterStore:
    from dlp_core.store.opening import open_store

    if bank is None:
        raise InvalidRequest("Missing option '--bank' (env var: 'DLP_BANK')")
    return open_store(bank)


def _demand(data: list[Path] | None, min_rows: int, seed: int) -> Demand:
    from dlp_core.improve.loop import Demand
    from dlp_core.router.rows import read_task_rows

    return Demand(read_task_rows(data) if data else None, min_rows, seed)


def _work(store: AdapterStore) -> Path:
    """The folder for the checkpoints of this store's runs."""
    import hashlib

    return WORK.expanduser() / hashlib.sha256(store.uri.encode()).hexdigest()[:16]


def _tools(store: AdapterStore, stop: Any, *, device: str | None = None, **fields: Any) -> dict[str, Any]:
    from dlp_core.router.training.train import TrainSettings

    settings = TrainSettings(device=terminal.device(device, default="cpu", mps=True))
    if settings.teacher is None:
        terminal.warn(
            "the teacher is not installed: what prompts mean is judged by the router's own words; for better rows, "
            "topics and routing: pip install 'dlp-serve[train]'"
        )
    return {"store": store, "folder": _work(store), "settings": settings, "stop": stop, **fields}


def _made(fields: dict[str, Any], bar: terminal.ProgressBar | None) -> Tools:
    from dlp_core.improve.steps import Tools
    from dlp_core.router.training.progress import TrainProgress

    def report(state: TrainProgress) -> None:
        if bar is not None:
            bar.update(round(100 * state.fraction), title=f"train: {state.phase}")

    return Tools(report=report, **fields)


def _answers(store: AdapterStore, suite: Path | None, base_model: str | None, max_drop: float) -> Any:
    """The gate of answers, None without a suite."""
    if suite is None:
        return None
    from deployments.args import CacheArgs
    from deployments.cli.eval import read_setup, read_suite
    from deployments.extras import require
    from dlp_core.eval.gate import judge
    from dlp_core.improve.run import AnswersJudged

    require("rouge_score", "sacrebleu")
    judged, setup = read_suite(suite, None, None), read_setup(base_model, "bfloat16", None, None, 16)

    def answers(version: str, baseline: str) -> AnswersJudged:
        verdict = judge(
            judged,
            "top-p=0.9",
            f"{store.uri}#{version}",
            f"{store.uri}#{baseline}",
            setup,
            max_drop=max_drop,
            cache=CacheArgs().open(),
            journal=_work(store) / "answers.jsonl",
            phase=lambda title: lambda done, total: None,
        )
        overall = verdict.difference.overall
        return AnswersJudged(
            passed=verdict.passed,
            suite=judged.settings.name,
            change=overall.mean,
            low=overall.low,
            high=overall.high,
            worse=(*verdict.worse, *(["mean"] if verdict.mean_worse else [])),
        )

    return answers


def _expect(store: AdapterStore, step: str, *, begins: bool = False) -> bool:
    """Whether the last run's next step is this one; False if it was taken already. Raises InvalidRequest if another
    step comes first."""
    from dlp_core.improve import run as runs

    last = runs.latest(store)
    if last is None or (last[0].over and begins):
        if begins:
            return True
        raise InvalidRequest(f"there is no run in {store.uri}; `dlp improve collect` begins one")
    run = last[0]
    if run.next_step == step or (step == "canary" and run.state == "canary"):
        return True
    order = [*runs.STEPS.values()]
    if run.next_step is not None and order.index(run.next_step) < order.index(step):
        raise InvalidRequest(f"run {run.number} is {run.state}; next is `dlp improve {run.next_step}`")
    return False


def _take(store: AdapterStore, step: str, *, json: bool, device: str | None = None, **fields: Any) -> Run:
    """Take one step of the last run, if it was not taken, and show the run."""
    from dlp_core.improve import run as runs
    from dlp_core.improve.steps import take_step

    due = _expect(store, step)
    last = runs.latest(store)
    assert last is not None
    run = last[0]
    if due:
        with (
            resumable_training(_work(store) / run.name, option=None) as stop,
            terminal.progress(step, total=100) as bar,
        ):
            run = take_step(_made(_tools(store, stop, device=device, **fields), bar), *last)
    _status(store, json=json)
    return run


def _say_outcome(outcome: Run | Waiting, *, json: bool) -> None:
    from dlp_core.improve.steps import Waiting

    if isinstance(outcome, Waiting):
        if json:
            terminal.print_json({"waiting": {"new": outcome.new, "needed": outcome.needed}})
        else:
            terminal.say(f"waiting for feedback: {outcome.new} new rows of the {outcome.needed} that a run needs")
    elif json:
        terminal.print_json(outcome.model_dump(mode="json"))
    else:
        colour = {"refused": "red", "rolled_back": "red", "promoted": "green"}.get(outcome.state, "bold")
        state = outcome.state.replace("_", " ")
        terminal.say(f"run {outcome.number} [{colour}]{state}[/]: {escape(outcome.reason)}")


def _status(store: AdapterStore, *, json: bool, brief: bool = False) -> None:
    from dlp_core.bank.reading import current
    from dlp_core.bank.rollout import read_report
    from dlp_core.improve import run as runs
    from dlp_core.improve.rows import read_rows

    last = runs.latest(store)
    if last is None:
        if json:
            terminal.print_json({"bank": store.uri, "run": None, "canary": None, "review": []})
        elif not brief:
            terminal.say(f"there was no run in {escape(store.uri)}; `dlp improve --data ROWS` begins one")
        return
    run = last[0]
    suspects = [row for row in read_rows(store, run) if row.suspect is not None]
    trial = read_report(store, current(store)[0])["canary"] if run.state == "canary" else None
    if json:
        review = [
            {"task": row.task, "input": row.input, "feedback": row.id, "request": row.request_id, "why": row.suspect}
            for row in suspects
        ]
        shown = {"next_step": run.next_step, **run.model_dump(mode="json")}
        terminal.print_json({"bank": store.uri, "run": shown, "canary": trial, "review": review})
        return
    if not brief:
        _say_outcome(run, json=False)
    if run.next_step is not None:
        terminal.say(f"next: dlp improve {run.next_step}")
    if trial is not None:
        counts = trial["counts"]["canary"]
        goal = trial["promote_after_requests"]
        terminal.say(
            f"canary {trial['version']}: {counts['requests']:,}{f' of {goal:,}' if goal else ''} requests, evidence "
            f"against it 10^{trial['test']['evidence_log10']:.1f}, alarm at 10^{trial['test']['alarm_log10']:.0f}"
        )
    if suspects:
        table = Table("said", "prompt", "why it is left out", title=f"{len(suspects)} rows to review")
        for row in suspects[:SHOWN_SUSPECTS]:
            table.add_row(row.task or "(none)", escape(" ".join(row.input.split())[:60]), row.suspect)
        terminal.out.print(table)
