"""What the loop of improvement gives back after the prompts have changed, simulated.

    .venv/bin/python -m benchmarks.drift --out benchmarks/results/drift.json

A router is trained on the demo bank's generated rows, in the generators' words. Then people ask for the same tasks in
the words of examples/bank/tasks/spoken.py, of which training had none, and a topic comes up that no adapter is for. A
share of the requests gets feedback, of which some is wrong. The router, the store, the steps, the canary and its trial
are those of production; adapters answer nobody. `served` is the percentage of prompts that get their adapter, or none
where none is right. After each canary the next run begins, as `dlp improve --watch` would.

Traffic never repeats a prompt that was said something about. The prompts of people.jsonl and handwritten.jsonl are
nobody's traffic, and judge what was learnt by the words of others. Needs the extra `train`; neither a model nor Ray.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import ROOT, report, run
from dlp_core.bank.feedback import AdapterShare, Feedback, KeptRequest
from dlp_core.bank.follower import BankFollower
from dlp_core.bank.kept import FEEDBACK, REQUESTS, KeptRecord, today
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.bank.revision import download_router
from dlp_core.bank.rollout import Picked, Rollout
from dlp_core.errors import InvalidRequest
from dlp_core.fleet.trial import Outcome
from dlp_core.improve.judging import right
from dlp_core.improve.loop import Demand, until_waiting
from dlp_core.improve.rows import FeedbackRow, read_rows
from dlp_core.improve.run import Run
from dlp_core.improve.steps import Tools
from dlp_core.mix import Mix
from dlp_core.router import Router
from dlp_core.router.routing import Routing
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.router.training.train import TrainSettings, train_router
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from examples.bank.tasks import TASKS, background_rows, rows, spoken
from examples.bank.tasks.pools import entries

BANK = ROOT / "examples/bank"
BASE_ROWS, BASE_BACKGROUND = 160, 640
"""Rows of each task, and of none, that the first router is trained with."""
WEEK = 3000
"""Requests between two runs."""
NEW_TOPIC, OTHERS = 0.15, 0.15
"""Parts of the traffic after the drift that are about the new topic, and about nothing as before."""
ASKED, NAMED, WRONG = 0.15, 0.6, 0.05
"""Share of the requests with feedback; of it, what names the adapter (the rest rates the answer); what is wrong."""
LOOK = 25
WINDOW = 500
"""Requests over which the lowest point is taken."""
MOST_CANARY = 20_000
WITHIN = 1.0

TOPIC = {
    "DRUG": "ibuprofen|amoxicillin|paracetamol|metformin|cetirizine|aspirin|omeprazole|insulin|prednisone|cough syrup",
    "WHO": "my toddler|my mother|a pregnant woman|my dog|me at 90 kg|a 12 year old|somebody with asthma|my grandfather",
    "WITH": "coffee|grapefruit|red wine|antacids|milk|sleeping pills|birth control|vitamin D|blood thinners",
    "HOW": "every 6 hours|twice a day|before breakfast|at bedtime|for ten days|on an empty stomach|once a week",
    "WHAT": "a rash|dizziness|nausea|a dry mouth|headaches|trouble sleeping|swollen ankles|heartburn",
}
PROMPTS = entries("""
can i take DRUG with WITH|is DRUG safe for WHO|how much DRUG may WHO have HOW|i forgot to take DRUG, should i double it
DRUG HOW gives me WHAT, is that normal|does DRUG cause WHAT|DRUG or DRUG for WHAT|WHO swallowed too much DRUG
can WHO take DRUG HOW|how long until DRUG works against WHAT|stopped DRUG yesterday and now i have WHAT
what is the highest dose of DRUG for WHO|do i need a prescription for DRUG|may i drink WITH while on DRUG
the leaflet of DRUG says HOW, is later okay too|WHAT after DRUG and WITH, should i see a doctor
""")
"""The new topic: questions to a pharmacist, with the times and amounts that some adapters are about."""


def topic_prompt(rng: random.Random) -> str:
    words = rng.choice(PROMPTS).split(" ")
    return " ".join(
        rng.choice(TOPIC[word.rstrip(",")].split("|")) + word[len(word.rstrip(",")) :]
        if word.rstrip(",") in TOPIC
        else word
        for word in words
    )


class Traffic:
    """Prompts as they come, none twice."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"traffic/{seed}")
        self._seen: set[str] = set()
        self._others = [str(row["input"]) for row in background_rows("heldout", 6000, seed=seed)]

    def before(self, count: int) -> list[TaskRow]:
        """The generators' own words."""
        known = [TaskRow(task, row["input"]) for task in TASKS for row in rows(task, "heldout", count)]
        strangers = [TaskRow(None, self._others.pop()) for _ in range(round(OTHERS / (1 - OTHERS) * len(known)))]
        return [*known, *strangers]

    def after(self) -> Iterator[TaskRow]:
        while True:
            row = self._draw()
            if row.input not in self._seen:
                self._seen.add(row.input)
                yield row

    def _draw(self) -> TaskRow:
        part = self._rng.random()
        if part < NEW_TOPIC:
            return TaskRow(None, topic_prompt(self._rng))
        if part < NEW_TOPIC + OTHERS:
            text = self._rng.choice(self._others)
            return TaskRow(None, f"{self._rng.choice(('', 'hi, ', 'so ', 'ok ', 'please: ', 'quick one: '))}{text}")
        task = self._rng.choice(list(TASKS))
        return TaskRow(task, _typed(spoken.prompt(self._rng, task), self._rng))


def _typed(text: str, rng: random.Random) -> str:
    """With what people put around a prompt: the pools of spoken.py are small, and no prompt comes twice."""
    opening = rng.choice(("", "", "", "hey, ", "hi there, ", "pls ", "ok so ", "hello! ", "um, ", "sorry, one more: "))
    return f"{opening}{text}{rng.choice(('', '', '', ' thx', ' thank you!', ' asap', ' :)', ' please'))}"


class Server:
    """One ingress replica: the follower and the rollout of production over routers in this process."""

    def __init__(self, store: AdapterStore, seed: int) -> None:
        self._store = store
        self._routers: dict[str, Router] = {}
        self._follower = BankFollower(store, poll_s=1.0, prepare=self._prepare)
        self._rollout = Rollout(store, self._follower, replica="one")
        self._rng = random.Random(f"feedback/{seed}")
        self._count = 0
        self.kept: list[KeptRecord] = []
        self.said: list[KeptRecord] = []
        self.wrong: set[str] = set()
        """Feedback that is wrong, by id."""

    async def _prepare(self, bank: BankManifest) -> None:
        self._routers[bank.version] = download_router(self._store, bank.version)

    async def look(self) -> None:
        await self._follower.look()

    async def serve(self, row: TaskRow) -> tuple[bool, str]:
        """Route one request, keep it, maybe give feedback; whether it was served right, and as which role."""
        self._count += 1
        id = f"r{self._count:07}"
        user = f"user-{self._rng.randrange(2000)}"
        picked = self._rollout.pick(version=None, user=user, key="app", request=id)
        router = self._routers[picked.bank.version]
        (routing,) = router.route([row.input])
        good = _right(routing, row)
        self._rollout.ended(picked, Outcome(abstained=not routing.fits, seconds=1.0))
        self._keep(id, row, routing, picked)
        if self._rng.random() < ASKED:
            self._say(id, row, good, user)
        if self._count % LOOK == 0:
            await self._rollout.turn()
            await self._follower.look()
        return good, picked.role

    def write(self) -> None:
        """What the servers' writers would have written by now."""
        for prefix, records in ((REQUESTS, self.kept), (FEEDBACK, self.said)):
            if records:
                lines = "".join(f"{record.line()}\n" for record in records)
                self._store.put(f"{prefix}{today().isoformat()}/one-{self._count}.jsonl", lines.encode())
                records.clear()

    def _keep(self, id: str, row: TaskRow, routing: Routing, picked: Picked) -> None:
        mix: Mix = routing.mix()
        self.kept.append(
            KeptRequest(
                id=id,
                created=time.time(),
                key="app",
                route="/v1/chat/completions",
                text=row.input,
                mix=tuple(AdapterShare(adapter=part.name, weight=part.weight) for part in mix.adapters),
                reason="routed" if mix else "none_of_these",
                confidence=routing.confidence,
                bank=picked.bank.version,
                router=picked.bank.router.version if picked.bank.router else None,
                status=200,
                error_code=None,
                total_seconds=1.0,
                decide_seconds=0.001,
                first_token_seconds=0.1,
            )
        )

    def _say(self, id: str, row: TaskRow, good: bool, user: str) -> None:
        name = f"fb-{id}"
        wrong = self._rng.random() < WRONG
        about: dict[str, Any] = {"id": name, "created": time.time(), "key": "app", "bank": "", "request_id": id}
        if self._rng.random() < NAMED:
            label = row.task
            if wrong:
                label = self._rng.choice([other for other in (*TASKS, None) if other != row.task])
                self.wrong.add(name)
            self.said.append(Feedback(**about, adapter=label))
            return
        verdict = good != wrong
        if wrong and verdict:
            self.wrong.add(name)
        self.said.append(Feedback(**about, rating="up" if verdict else "down"))
        self._rollout.rated(id, time.time(), negative=not verdict, user=user, key="app")


def _right(routing: Routing, row: TaskRow) -> bool:
    return routing.fits and routing.best == row.task if row.task is not None else not routing.fits


async def simulate(settings: TrainSettings, seed: int, most_runs: int) -> dict[str, Any]:
    store = MemoryStore(f"drift-{seed}")
    base = [TaskRow(task, row["input"]) for task in TASKS for row in rows(task, "train", BASE_ROWS, seed=seed)]
    base += [TaskRow(None, str(row["input"])) for row in background_rows("train", BASE_BACKGROUND, seed=seed)]
    began = time.monotonic()
    first, summary = train_router(base, replace(settings, seed=seed))
    _say(f"first router: {time.monotonic() - began:.0f} s, {summary.accuracy:.4f} right of its own held-back rows")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(BANK / "adapters", folder / "bank/adapters")
        shutil.copy(BANK / "bank.json", folder / "bank")
        first.save(folder / "bank/router")
        publish(store, folder / "bank")
        traffic, server = Traffic(seed), Server(store, seed)
        await server.look()
        others = read_task_rows([BANK / "people.jsonl", BANK / "handwritten.jsonl"])
        was = _percent(right(first, traffic.before(200)))
        _say(f"before the drift {was:.1f}% served right; people's prompts {_percent(right(first, others)):.1f}%")
        coming = traffic.after()
        tools = Tools(store, folder / "work", settings=settings)
        result: dict[str, Any] = {
            "seed": seed,
            "before": was,
            "people_before": _percent(right(first, others)),
            "runs": [],
        }
        old = first
        for number in range(1, most_runs + 1):
            week = [(await server.serve(next(coming)))[0] for _ in range(WEEK)]
            _say(f"week {number}: {_percent(week):.1f}% served right")
            if number == 1:
                result["drifted"] = _percent(week)
            server.write()
            outcome: Run | None = None
            steps = time.monotonic()
            for state in until_waiting(tools, Demand(base if number == 1 else None, min_rows=50, seed=seed)):
                assert isinstance(state, Run)
                outcome = state
                _say(f"  {state.state}: {state.reason}")
            assert outcome is not None
            entry: dict[str, Any] = {
                "week": _percent(week),
                "seconds": round(time.monotonic() - steps, 1),
                "noise": _noise(read_rows(store, outcome), server.wrong),
                "topics": _topics(store, outcome),
            }
            if outcome.state == "canary":
                entry |= await _trial(server, coming, old)
                server.write()
                ended = next(until_waiting(tools, Demand(None, min_rows=0)))
                assert isinstance(ended, Run)
                outcome = ended
            assert outcome is not None
            _say(f"  {outcome.state}: {outcome.reason}")
            old = download_router(store)
            fresh = [next(coming) for _ in range(2000)]
            entry |= {
                "state": outcome.state,
                "reason": outcome.reason,
                "collected": outcome.collected.model_dump(mode="json") if outcome.collected else None,
                "gate": outcome.gate.model_dump(mode="json") if outcome.gate else None,
                "after": _percent(right(old, fresh)),
                "first_router_on_the_same": _percent(right(first, fresh)),
                "people_after": _percent(right(old, others)),
            }
            _say(f"  after: {entry['after']:.1f}% ({entry['first_router_on_the_same']:.1f}% by the first router), "
                f"people {entry['people_after']:.1f}%")  # fmt: skip
            result["runs"].append(entry)
        return result


async def _trial(server: Server, coming: Iterator[TaskRow], old: Router) -> dict[str, Any]:
    """Traffic until the canary has ended: served, beside what the bank before it would have served."""
    await server.look()
    served: deque[tuple[bool, bool]] = deque(maxlen=WINDOW)
    lowest, worst, count = 100.0, 0.0, 0
    total = [0, 0]
    while server._follower.canary is not None and count < MOST_CANARY:
        row = next(coming)
        (before,) = right(old, [row])
        good, _ = await server.serve(row)
        served.append((good, before))
        total[0] += good
        total[1] += before
        count += 1
        if len(served) == WINDOW:
            now, then = (_percent([pair[side] for pair in served]) for side in (0, 1))
            lowest, worst = min(lowest, now), min(worst, now - then)
    return {
        "canary_requests": count,
        "canary_served": round(100 * total[0] / max(count, 1), 2),
        "canary_served_by_the_old": round(100 * total[1] / max(count, 1), 2),
        "canary_lowest": lowest,
        "canary_lowest_below_the_old": round(-worst, 2),
    }


def _noise(collected: Sequence[FeedbackRow], wrong: set[str]) -> dict[str, int]:
    """How many of the wrong rows are suspect, and how many of the suspect ones are wrong."""
    return {
        "rows": len(collected),
        "wrong": sum(row.id in wrong for row in collected),
        "suspect": sum(row.suspect is not None for row in collected),
        "wrong_and_suspect": sum(row.suspect is not None and row.id in wrong for row in collected),
    }


def _topics(store: AdapterStore, outcome: Run) -> list[dict[str, Any]]:
    found = json.loads(store.get(outcome.key("proposals.json")).data)["topics"]
    return [{name: topic[name] for name in ("prompts", "words", "cohesion")} for topic in found[:5]]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _percent(served: Sequence[bool]) -> float:
    return round(100 * sum(served) / len(served), 2)


def main(
    out: Annotated[Path | None, typer.Option(help="Where the result goes; default: standard output.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Simulations.")] = 1,
    weeks: Annotated[int, typer.Option(min=1, help="Runs of the loop in each.")] = 3,
    teacher: Annotated[bool, typer.Option(help="Whether the router has one; takes four times as long.")] = True,
) -> None:
    settings = TrainSettings() if teacher else TrainSettings(teacher=None)
    if teacher and settings.teacher is None:
        raise InvalidRequest("the teacher is not installed: pip install 'dlp-serve[train]'")
    results = [asyncio.run(simulate(settings, seed, weeks)) for seed in range(seeds)]
    rows_out = [
        {
            "seed": result["seed"],
            "before": result["before"],
            "drifted": result["drifted"],
            **{f"after run {n}": entry["after"] for n, entry in enumerate(result["runs"], 1)},
            "first router at the end": result["runs"][-1]["first_router_on_the_same"],
        }
        for result in results
    ]
    report(
        "drift",
        rows_out,
        out=out,
        simulations=results,
        teacher=teacher,
        within=WITHIN,
        window=WINDOW,
        recovered=all(result["runs"][-1]["after"] >= result["before"] - WITHIN for result in results),
        traffic={"new_topic": NEW_TOPIC, "others": OTHERS, "week": WEEK},
        feedback={"asked": ASKED, "named": NAMED, "wrong": WRONG},
        base={"rows": BASE_ROWS, "background": BASE_BACKGROUND},
    )


if __name__ == "__main__":
    run(main)
