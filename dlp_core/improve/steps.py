"""The steps of a run, each from one state to the next. A step that was killed is taken again from its beginning.

    begun -> collect -> propose -> train -> gate -> canary -> promoted, rolled back or ended

Who ends the canary are the servers (dlp_core/bank/rollout.py): a run only starts it and looks how it ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dlp_core.bank.canary import SHARE, start_canary
from dlp_core.bank.manifest import BankManifest, CanaryEnd, Pointer
from dlp_core.bank.reading import current, load_manifest
from dlp_core.bank.revision import download_router, stage_router
from dlp_core.errors import InvalidRequest
from dlp_core.eval.pairs import describe, spoiled_pairs, stored
from dlp_core.improve import run as runs
from dlp_core.improve.judging import judge
from dlp_core.improve.meaning import Meaning, by_router, by_teacher
from dlp_core.improve.noise import suspicions
from dlp_core.improve.proposals import Proposals, homeless, propose
from dlp_core.improve.rows import (
    FeedbackRow,
    normalised,
    read_base,
    read_rows,
    said_by,
    save_base,
    split_base,
    write_rows,
)
from dlp_core.improve.run import AnswersJudged, Collected, Gate, Run, Trained
from dlp_core.router import Router
from dlp_core.router.growth import add_adapter
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.examples import MIN_ROWS
from dlp_core.router.training.progress import Report, unreported
from dlp_core.router.training.train import TrainSettings, checkpoints_of, train_router
from dlp_core.store.checkpoints import Checkpoints, checkpoint_folder, resumable
from dlp_core.store.protocol import AdapterStore

MIN_NEW = 50
"""New rows that a run begins with."""
MAX_DROP = 1.0
"""Points that the gate lets the new router lose."""
PROMOTE_AFTER = 500
"""Requests of the canary after which it is promoted unless there was an alarm."""

_WEIGHED = 0.25  # part of a training that feedback makes up, if it is not more anyway
_MOST_WEIGHT = 8

Answers = Callable[[str, str], AnswersJudged]
"""Judges the answers of a bank version beside those of another, the baseline."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the steps work with."""

    store: AdapterStore
    folder: Path
    """For checkpoints of trainings."""
    settings: TrainSettings = field(default_factory=TrainSettings)
    """How a router is trained; its seed is the run's."""
    max_drop: float = MAX_DROP
    answers: Answers | None = None
    """The gate of answers, if there is one."""
    share: float = SHARE
    promote_after_requests: int | None = PROMOTE_AFTER
    promote_after_hours: float | None = None
    report: Report = unreported
    stop: Callable[[], bool] = lambda: False
    """Asked between the steps of a training, which then ends with Interrupted."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is too little feedback for a run."""

    new: int
    needed: int


def begin(store: AdapterStore, base: Sequence[TaskRow] | None, *, min_rows: int, seed: int) -> Run | Waiting:
    """Begin the next run if there are `min_rows` new rows. `base` are the owner's rows; None for those of the last run.

    Raises InvalidRequest if the bank's router cannot be trained with them, or there are none; Conflict if another
    worker begins it too; and what reading the bank raises.
    """
    last = runs.latest(store)
    if base is None and last is None:
        raise InvalidRequest("the first run needs the rows that the router is trained with: --data ROWS")
    began = runs.now()
    before = [] if last is None else read_rows(store, last[0])
    known = {row.id for row in before}
    new = sum(row.id not in known for row in said_by(store, began.timestamp()))
    if new < min_rows:
        return Waiting(new, min_rows)
    bank = load_manifest(store)
    _check_base(bank, base if base is not None else read_base(store, last[0].base if last else ""))
    run = Run(
        number=1 if last is None else last[0].number + 1,
        began=began,
        bank=bank.version,
        base=save_base(store, base) if base is not None else last[0].base if last else "",
        seed=seed,
        changed=began,
        reason=f"{new} new rows",
    )
    runs.create(store, run)
    return run


def take_step(tools: Tools, run: Run, etag: str) -> Run:
    """Take the run's next step and record its outcome. A run whose bank is no longer current ends.

    Raises Conflict if another worker took it, Interrupted if a training was asked to stop, and what the step raises.
    """
    step = run.next_step
    pointer = current(tools.store)[0]
    if step is None:
        after = _look(run, pointer)
    elif pointer.version != run.bank and not _is_ours(run, pointer):
        after = run.moved("ended", f"bank {pointer.version} was made the current one meanwhile, in place of {run.bank}")
    else:
        after = _STEPS[step](tools, run)
    if after is not run:
        runs.replace(tools.store, etag, after)
        if after.state != run.state:
            for name in (run.name, f"{run.name}-before"):
                shutil.rmtree(checkpoint_folder(tools.folder / name), ignore_errors=True)
    return after


def _collect(tools: Tools, run: Run) -> Run:
    bank, base = load_manifest(tools.store, run.bank), read_base(tools.store, run.base)
    before = [] if run.number == 1 else read_rows(tools.store, runs.read(tools.store, run.number - 1)[0])
    found = {normalised(row.input): row for row in before}
    found |= {normalised(row.input): row for row in said_by(tools.store, run.began.timestamp())}
    routed = set(bank.routed_names)
    rows = [row for row in found.values() if row.task is None or row.task in routed]
    training, held_back = split_base(base)
    doubtful = [index for index, row in enumerate(rows) if row.agreed < 2]
    agreed = [row.row for row in rows if row.agreed >= 2]
    whys = suspicions(
        [rows[index].row for index in doubtful], [*training, *agreed], _meaning(tools, run), seed=run.seed
    )
    why_of = dict(zip(doubtful, whys, strict=True))
    rows = [
        row.model_copy(update={"suspect": None if why_of.get(index) is None else str(why_of[index])})
        for index, row in enumerate(rows)
    ]
    rows.sort(key=lambda row: (row.created, row.id))
    write_rows(tools.store, run, rows)
    used = [row for row in rows if row.suspect is None]
    known = {row.id for row in before}
    collected = Collected(
        rows=len(used),
        new=sum(row.id not in known for row in rows),
        held_back=sum(row.held_back for row in used),
        suspects=len(rows) - len(used),
        confirmed=sum(row.confirmed for row in used),
        unknown=tuple(sorted({row.task for row in found.values() if row.task is not None and row.task not in routed})),
        base_rows=len(base),
        base_held_back=len(held_back),
    )
    return run.moved("collected", f"{len(used)} rows, and {len(rows) - len(used)} to review", collected=collected)


def _propose(tools: Tools, run: Run) -> Run:
    found = proposals(tools.store, read_rows(tools.store, run), _meaning(tools, run), until=run.began.timestamp())
    tools.store.put(run.key("proposals.json"), found.model_dump_json(indent=1).encode() + b"\n")
    count = len(found.topics)
    return run.moved("proposed", f"{count} topic{'s' * (count != 1)} without an adapter", proposals=count)


def proposals(store: AdapterStore, rows: Sequence[FeedbackRow], meaning: Meaning, *, until: float) -> Proposals:
    """The topics that no adapter serves, as of `until` in seconds since 1970. Raises StoreUnavailable."""
    return propose(homeless(store, rows, until), meaning)


def _train(tools: Tools, run: Run) -> Run:
    bank = load_manifest(tools.store, run.bank)
    rows, weight = training_rows(
        split_base(read_base(tools.store, run.base))[0], read_rows(tools.store, run), bank.routed_names
    )
    settings = replace(tools.settings, seed=run.seed)
    router, summary = train_router(
        rows, settings, checkpoints=_checkpoints(tools, run.name, rows, settings), report=tools.report
    )
    router = _completed(router, bank)
    staged = stage_router(tools.store, router, of=run.bank)
    assert staged.router is not None
    trained = Trained(
        version=staged.version,
        router=staged.router.version,
        rows=len(rows),
        weight=weight,
        seconds=round(summary.seconds, 1),
        teacher=summary.teacher is not None,
    )
    return run.moved("trained", f"bank {staged.version} is stored", trained=trained)


def training_rows(
    base: Sequence[TaskRow], feedback: Sequence[FeedbackRow], names: Sequence[str]
) -> tuple[list[TaskRow], int]:
    """The rows to train a router of these names on, and how much each of people's weighs: those that are neither
    suspect nor held back make up a quarter of the training, if a weight of _MOST_WEIGHT is enough for that."""
    routed = set(names)
    said = [row for row in feedback if row.suspect is None and not row.held_back]
    later = {normalised(row.input) for row in said}
    own = [row for row in base if normalised(row.input) not in later]
    wanted = _WEIGHED / (1 - _WEIGHED) * len(own) / max(len(said), 1)
    weight = min(_MOST_WEIGHT, max(1, round(wanted)))
    rows = [*own, *(TaskRow(row.task, row.input, weight) for row in said)]
    counts = {name: sum(row.task == name for row in rows) for name in routed}
    few = {name for name, count in counts.items() if count < MIN_ROWS}
    return [row for row in rows if row.task is None or row.task in routed - few], weight


def _gate(tools: Tools, run: Run) -> Run:
    assert run.trained is not None
    old, new = (download_router(tools.store, version) for version in (run.bank, run.trained.version))
    said = [row.row for row in read_rows(tools.store, run) if row.suspect is None and row.held_back]
    training, held_back = split_base(read_base(tools.store, run.base))
    stand_in = bool(held_back) and not _made_by_a_run(tools.store, run)
    before = _stand_in(tools, run, training) if stand_in else old
    gate = Gate(
        max_drop=tools.max_drop,
        stand_in=stand_in,
        base=judge(before, new, held_back),
        feedback=judge(old, new, said),
    )
    parts = [("--data", gate.base), ("feedback", gate.feedback)]
    shown = {
        whose: f"{judged.old:.1f}% -> {judged.new:.1f}% of {judged.rows} rows of {whose}"
        for whose, judged in parts
        if judged is not None
    }
    lost = [shown[whose] for whose, judged in parts if judged is not None and judged.worse(tools.max_drop)]
    if spoiled := spoiled_pairs(load_manifest(tools.store, run.trained.version), stored(tools.store)):
        gate = gate.model_copy(update={"spoiled": tuple(spoiled)})
        reason = f"the bank lets adapters be mixed that spoil each other: {describe(spoiled)}; see allowed_together"
        return run.moved("refused", reason, gate=gate)
    if not lost and tools.answers is not None:
        answers = tools.answers(run.trained.version, run.bank)
        gate = gate.model_copy(update={"answers": answers})
        if not answers.passed:
            lost = [f"answers of suite {answers.suite} {answers.change:+.1f} points ({', '.join(answers.worse)})"]
    if lost:
        return run.moved("refused", f"worse by more than {tools.max_drop:g} points: {'; '.join(lost)}", gate=gate)
    outcome = "; ".join(shown.values()) or "nothing to judge by"
    return run.moved("passed", f"served right, held back: {outcome}", gate=gate)


def _made_by_a_run(store: AdapterStore, run: Run) -> bool:
    """Whether the router that serves was never trained on the rows that judge: it is that of an earlier run."""
    earlier = (runs.read(store, number)[0] for number in runs.numbers(store) if number < run.number)
    return any(
        each.base == run.base and each.trained is not None and each.trained.version == run.bank for each in earlier
    )


def _stand_in(tools: Tools, run: Run, training: Sequence[TaskRow]) -> Router:
    """A router for the one that serves, which may have been trained on the owner's rows that judge: trained on the
    others."""
    bank = load_manifest(tools.store, run.bank)
    rows, _ = training_rows(training, [], bank.routed_names)
    settings = replace(tools.settings, seed=run.seed)
    checkpoints = _checkpoints(tools, f"{run.name}-before", rows, settings)
    return _completed(train_router(rows, settings, checkpoints=checkpoints, report=tools.report)[0], bank)


def _canary(tools: Tools, run: Run) -> Run:
    assert run.trained is not None
    pointer = current(tools.store)[0]
    if pointer.canary is not None and pointer.canary.version == run.trained.version:
        return run.moved("canary", "on trial", canary=pointer.canary.id)
    end = _our_end(run, pointer)
    if end is not None:
        return _look(run.moved("canary", "on trial", canary=end.id), pointer)
    if run.trained.version == pointer.version:
        return run.moved("ended", "the training gave the router that serves already")
    canary = start_canary(
        tools.store,
        run.trained.version,
        share=tools.share,
        promote_after_requests=tools.promote_after_requests,
        promote_after_hours=tools.promote_after_hours,
        overlooks=("abstained",),  # the gate has judged that by what is right, and a new topic should be refused
    )
    return run.moved("canary", "on trial", canary=canary.id)


def _look(run: Run, pointer: Pointer) -> Run:
    """The run after its canary has ended, or as it is."""
    if run.over or (pointer.canary is not None and pointer.canary.id == run.canary):
        return run
    end = pointer.canary_end
    if end is not None and end.id == run.canary:
        if end.outcome == "stopped":
            return run.moved("ended", f"somebody ended the canary: {end.reason}")
        return run.moved(end.outcome, end.reason)
    return run.moved("ended", "another canary began before anybody saw how this one ended")


_STEPS: dict[str, Callable[[Tools, Run], Run]] = {
    "collect": _collect,
    "propose": _propose,
    "train": _train,
    "gate": _gate,
    "canary": _canary,
}


def _is_ours(run: Run, pointer: Pointer) -> bool:
    return _our_end(run, pointer) is not None


def _our_end(run: Run, pointer: Pointer) -> CanaryEnd | None:
    """How the canary of a run ended that was killed before it had recorded its beginning."""
    end = pointer.canary_end
    ours = end is not None and run.trained is not None and end.version == run.trained.version
    return end if ours and end is not None and end.ended >= run.changed else None


def _checkpoints(tools: Tools, name: str, rows: Sequence[TaskRow], settings: TrainSettings) -> Checkpoints:
    """Those of this training, if it was interrupted; others, of rows that were purged meanwhile, are removed."""
    out = tools.folder / name
    if resumable(out) is not None:
        try:
            return checkpoints_of(out, rows, settings, resume=True, stop=tools.stop)
        except InvalidRequest:
            shutil.rmtree(checkpoint_folder(out))
    return checkpoints_of(out, rows, settings, stop=tools.stop)


def _meaning(tools: Tools, run: Run) -> Meaning:
    if tools.settings.teacher is not None:
        return by_teacher(tools.settings.teacher)
    return by_router(download_router(tools.store, run.bank))


def _completed(router: Router, bank: BankManifest) -> Router:
    """The router with the routed adapters and recipes that no rows are of, by their descriptions."""
    for entry in bank.entries:
        if entry.routed and entry.name not in router.labels:
            router, _ = add_adapter(router, entry.name, [], description=entry.description)
    return router


def _check_base(bank: BankManifest, base: Sequence[TaskRow]) -> None:
    if bank.router is None:
        raise InvalidRequest(f"bank {bank.version} has no router; `dlp router train --into FOLDER` makes one")
    routed = {entry.name: entry for entry in bank.entries if entry.routed}
    tasks = {row.task for row in split_base(base)[0] if row.task is not None}
    if strangers := sorted(tasks - routed.keys()):
        raise InvalidRequest(f"--data has rows of {', '.join(strangers[:8])}, not routed in bank {bank.version}")
    counts = {name: sum(row.task == name for row in base) for name in routed}
    if missing := [name for name, count in counts.items() if count < MIN_ROWS and not routed[name].description]:
        raise InvalidRequest(
            f"--data has fewer than {MIN_ROWS} rows of {', '.join(missing[:8])}, and no description says what these "
            "are for; add rows, as the new router would not know them"
        )
