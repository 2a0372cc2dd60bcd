"""Scores of the rows on which routing mixes several adapters, and the routing of single sentences.

    python -m examples.bigbench26.mixes DATA BANK RESULTS

RESULTS is the results.json that `dlp eval --out` wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dlp_core.eval.results import Results
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.suite import load_suite
from dlp_core.router import Router
from dlp_core.text.sentences import split

SUITE = Path(__file__).parent / "suite.yaml"
SWEEP = ("0.5", "0.7", "0.9", "0.95", "0.99")


def main(
    data: Annotated[Path, typer.Argument(help="Folder with test.jsonl.gz.")],
    bank: Annotated[Path, typer.Argument(help="Bank folder.")],
    results: Annotated[Path, typer.Argument(help="results.json of its evaluation.")],
) -> None:
    suite = load_suite(SUITE, data=data)
    router = Router.load(bank / "router")
    evaluation = Results.model_validate_json(results.read_text(encoding="utf-8"))
    required = {"top1", *(f"top-p={p}{weights}" for p in SWEEP for weights in ("", ":softmax"))}
    if missing := required - {arm.name for arm in evaluation.arms}:
        raise typer.BadParameter(f"{results} has no arm {', '.join(sorted(missing))}", param_hint="RESULTS")
    rows = [row for row in suite.rows if row.id in evaluation.rows]
    if not rows:
        raise typer.BadParameter(f"{results} and {data} have no rows in common", param_hint="RESULTS")
    max_adapters = suite.settings.max_adapters
    Console().print(mixed_rows(rows, router, evaluation, max_adapters), sentences(rows, router, max_adapters))


def mixed_rows(rows: Sequence[EvalRow], router: Router, evaluation: Results, max_adapters: int) -> Table:
    """At each p, the number of rows whose mix has two adapters or more, and their mean score under three arms."""
    routings = router.route([row.input for row in rows])
    table = Table(
        "p", "rows with a mix", "top-p", "softmax", "top1", title="Mixes of two adapters or more, mean points"
    )
    for p in SWEEP:
        mixed = [
            evaluation.rows[row.id].scores
            for row, routing in zip(rows, routings, strict=True)
            if len(routing.mix(top_p=float(p), max_adapters=max_adapters).names) > 1
        ]
        arms = (f"top-p={p}", f"top-p={p}:softmax", "top1")
        means = [f"{100 * sum(scores[arm] for scores in mixed) / max(1, len(mixed)):.1f}" for arm in arms]
        table.add_row(p, str(len(mixed)), *means)
    return table


def sentences(rows: Sequence[EvalRow], router: Router, max_adapters: int) -> Table:
    """Share of each task's prompt characters under its own adapter, and under none, by sentence at p = 0.9."""
    characters: Counter[str] = Counter()
    own: Counter[str] = Counter()
    none: Counter[str] = Counter()
    for row in rows:
        texts = [row.input[start:end] for start, end in split(row.input)]
        for text, routing in zip(texts, router.route(texts), strict=True):
            mix = routing.mix(top_p=0.9, max_adapters=max_adapters)
            characters[row.task] += len(text)
            own[row.task] += len(text) * (row.task in mix.names)
            none[row.task] += len(text) * (not mix)
    table = Table("task", "its own adapter", "none", title="Characters of prompts, sentence by sentence")
    for task in sorted(characters, key=lambda task: own[task] / characters[task]):
        table.add_row(task, f"{own[task] / characters[task]:.0%}", f"{none[task] / characters[task]:.0%}")
    return table


if __name__ == "__main__":
    typer.run(main)
