"""A mix for each sentence: how much of a prompt gets its own task's adapter, and what that costs.

    python -m benchmarks.passages ROUTER ROWS [--strangers ROWS]           # measure
    python -m benchmarks.passages ROUTER ROWS [ROUTER ROWS ...] --choose   # choose dlp_core/router/passages.py's PRICES

ROWS have a task each and are rows that the router was not trained on; `--choose` needs rows that nobody is tested on.
Without arguments: the demo's router and held-out rows. Prompts are rows alone, and rows of different tasks joined in
four ways. For each set, the share of characters whose mix begins with the adapter of their own task, mean over prompts'
parts: `request` under one mix, `alone` with each sentence routed by itself, `passages` as served, `parts` if each part
was known and routed alone. `whole` is the share of prompts that stay in one passage, `ms` and `alone_ms` the CPU time
for each sentence or line, by passages and with each sentence routed by itself.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # set before numpy is imported: times are for one thread

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import ROOT, report, run
from dlp_core.errors import InvalidRequest
from dlp_core.router import Router, Routing
from dlp_core.router.passages import PRICES, Prices, Runs, passages, read, starts
from dlp_core.router.rows import read_task_rows
from dlp_core.text.sentences import split
from examples.bank.tasks import TASKS, rows

MAX_CHARS = 400
"""Of a row that is joined with others, as in examples/bigbench26/suite.yaml."""
PARTS = (2, 3, 4, 5)

Span = tuple[int, int, str]
"""Start, end and mix's first adapter; "" for none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    parts: tuple[Span, ...]
    """Start, end and task."""


def _listed(texts: Sequence[str]) -> list[str]:
    return [f"{number}. {text}\n\n" for number, text in enumerate(texts, start=1)]


WAYS: Mapping[str, Callable[[Sequence[str]], list[str]]] = {
    "list": _listed,  # as dlp eval asks composites
    "intro": lambda texts: [f"Please help me with {len(texts)} things.\n\n{_listed(texts)[0]}", *_listed(texts)[1:]],
    "paragraphs": lambda texts: [f"{text}\n\n" for text in texts],
    "lines": lambda texts: [f"{text}\n" for text in texts],
}
"""How texts become one; each result keeps what separates it from the next."""


def prompts_of(rows: Mapping[str, Sequence[str]], each: int, joined: int) -> dict[str, list[Prompt]]:
    """`each` rows of each task alone, and `joined` prompts for each way and number of parts."""
    random = Random(0)
    sets = {
        "one task": [
            Prompt(text, ((0, len(text), task),))
            for task, texts in sorted(rows.items())
            for text in random.sample(texts, min(each, len(texts)))
        ]
    }
    short = {task: [text for text in texts if len(text) <= MAX_CHARS] for task, texts in sorted(rows.items())}
    tasks = [task for task, texts in short.items() if texts]
    for (way, join), count in itertools.product(WAYS.items(), PARTS):
        if count > len(tasks):
            continue
        sets[f"{way}, {count}"] = made = []
        for _ in range(joined):
            chosen = random.sample(tasks, count)
            pieces = join([random.choice(short[task]).strip() for task in chosen])
            ends = list(itertools.accumulate(map(len, pieces)))
            made.append(
                Prompt(
                    "".join(pieces),
                    tuple((end - len(piece), end, task) for piece, end, task in zip(pieces, ends, chosen, strict=True)),
                )
            )
    return sets


def first(routing: Routing) -> str:
    return next(iter(routing.mix().names), "")


def share(prompt: Prompt, spans: Sequence[Span]) -> float:
    """Mean over the parts of a prompt: the share of its characters in spans with its own adapter."""
    return fmean(
        sum(max(0, min(end, stop) - max(start, begin)) for begin, stop, name in spans if name == task) / (end - start)
        for start, end, task in prompt.parts
    )


def measure(router: Router, sets: Mapping[str, Sequence[Prompt]]) -> list[dict[str, Any]]:
    result = []
    for name, prompts in sets.items():
        shares: dict[str, list[float]] = defaultdict(list)
        wholes, sentences, seconds, alone_seconds = 0, 0, 0.0, 0.0
        for prompt, request in zip(prompts, router.route([prompt.text for prompt in prompts]), strict=True):
            text = prompt.text
            began = time.process_time()
            alone = split(text)
            routings = router.route([text[start:end] for start, end in alone])
            alone_seconds += time.process_time() - began
            known = router.route([text[start:end] for start, end, _ in prompt.parts])
            began = time.process_time()
            found = passages(router, text, request)
            seconds += time.process_time() - began
            sentences += len(starts(text, most=len(text)))
            wholes += len(found) == 1
            for way, spans in {
                "request": [(0, len(text), first(request))],
                "alone": [(*span, first(routing)) for span, routing in zip(alone, routings, strict=True)],
                "passages": [(passage.start, passage.end, first(passage.routing)) for passage in found],
                "parts": [(*part[:2], first(routing)) for part, routing in zip(prompt.parts, known, strict=True)],
            }.items():
                shares[way].append(share(prompt, spans))
        result.append(
            {"adapters": len(router.labels), "prompts": name, "count": len(prompts)}
            | {way: round(fmean(values), 4) for way, values in shares.items()}
            | {"whole": round(wholes / len(prompts), 4), "ms": round(1000 * seconds / sentences, 3)}
            | {"alone_ms": round(1000 * alone_seconds / sentences, 3)}
        )
    return result


def strangers(router: Router, texts: Sequence[str]) -> dict[str, Any]:
    """Prompts of no task, three in one: the share of their characters that no adapter gets."""
    joined = ["\n\n".join(texts[start : start + 3]) for start in range(0, len(texts) - 2, 3)]
    prompts = [Prompt(text, ((0, len(text), ""),)) for text in [*texts, *joined]]
    return measure(router, {"no task": prompts})[0]


def choose(known: Sequence[tuple[Router, Mapping[str, Sequence[Prompt]]]]) -> tuple[Prices, list[dict[str, Any]]]:
    """The best of a grid: highest mean over the routers of the share over joined prompts, among those that divide at
    most one in two hundred prompts of one task. The mixes are those of the runs, not routed again."""
    cases = [
        (router.labels, name, [(prompt, request, read(router, prompt.text)) for prompt, request in zip(
            prompts, router.route([prompt.text for prompt in prompts]), strict=True)])
        for router, sets in known
        for name, prompts in sets.items()
    ]  # fmt: skip
    rows = []
    for prices in grid():
        joined, one, whole = [], [], []
        for labels, name, prompts in cases:
            shares, wholes = zip(*(_quick(labels, prices, *case) for case in prompts), strict=True)
            if name == "one task":
                one.append(fmean(shares))
                whole.append(fmean(wholes))
            else:
                joined.append(fmean(shares))
        rows.append(asdict(prices) | {"one_task": fmean(one), "whole": min(whole), "joined": fmean(joined)})
    rows.sort(key=lambda row: (row["whole"] >= 0.995, row["joined"]), reverse=True)
    best = Prices(**{name: rows[0][name] for name in asdict(PRICES)})
    return best, [{name: round(value, 4) for name, value in row.items()} for row in rows]


def grid() -> list[Prices]:
    return [
        Prices(gain, beyond, share * gain, (share + step) * gain, (share + 2 * step) * gain, strange * gain)
        for gain in (4.0, 5.0, 6.0, 8.0)
        for beyond in (0.0, 0.1, 0.2, 0.4)
        for share in (0.2, 0.3, 0.4, 0.5)
        for step in (0.0, 0.1, 0.2)
        for strange in (0.0, 0.2, 0.4)
    ]


def _quick(
    labels: Sequence[str], prices: Prices, prompt: Prompt, request: Routing, runs: Runs | None
) -> tuple[float, bool]:
    """The share of a prompt, and whether it stays in one passage."""
    spans = []
    if runs is not None:
        for start, end in runs.best(prices):
            number, odds = runs.found[start, end]
            spans.append((runs.cuts[start], runs.cuts[end], labels[number] if odds > 0 else ""))
    names = {name for *_, name in spans if name}
    if len(spans) < 2 or not names or (request.fits and names == {request.best}):
        return share(prompt, [(0, len(prompt.text), first(request))]), True
    return share(prompt, spans), False


def main(
    known: Annotated[list[Path] | None, typer.Argument(help="A router's folder and rows, or several of both.")] = None,
    strangers_in: Annotated[Path | None, typer.Option("--strangers", help="Rows of no task.")] = None,
    chosen: Annotated[bool, typer.Option("--choose", help="Choose prices instead.")] = False,
    *,
    each: Annotated[int, typer.Option(help="Prompts of each task.")] = 50,
    joined: Annotated[int, typer.Option(help="Joined prompts for each way and number of parts.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    known = known or []
    if len(known) % 2:
        raise InvalidRequest("give ROUTER and ROWS in pairs")
    pairs = [(Router.load(folder), _by_task(rows)) for folder, rows in zip(known[::2], known[1::2], strict=True)]
    if not pairs:
        texts = {task: [str(row["input"]) for row in rows(task, "heldout", each)] for task in TASKS}
        pairs = [(Router.load(ROOT / "examples/bank/router"), texts)]
    prompts = [(router, prompts_of(texts, each, joined)) for router, texts in pairs]
    if chosen:
        best, table = choose(prompts)
        report("passages: prices", table[:20], out=out, best=asdict(best), each=each, joined=joined)
        return
    result = [row for router, sets in prompts for row in measure(router, sets)]
    if strangers_in is not None:
        unknown = [row.input for row in read_task_rows([strangers_in])][: 6 * joined]
        result += [strangers(router, unknown) for router, _ in pairs]
    report("passages", result, out=out, prices=asdict(PRICES))


def _by_task(path: Path) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for row in read_task_rows([path]):
        if row.task is not None:
            texts[row.task].append(row.input)
    return dict(texts)


if __name__ == "__main__":
    run(main)
