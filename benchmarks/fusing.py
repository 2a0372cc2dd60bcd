"""When does fusing help? The demo bank on rows that nothing was trained on: its composites, recipes, benefit routing.

    python -m benchmarks.fusing MODEL WORK [--only composites]

MODEL is the demo's, such as .demo/SmolLM2-135M-Instruct. Everything computed is kept in WORK, so an interrupted run
goes on. What was measured goes to benchmarks/results/fusing_{composites,recipes,benefit}.json, without rows of data:
which adapters the answers had, and their scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from benchmarks.measure.harness import ROOT, environment, model_folder, run
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.eval.run import Setup, run_evaluation
from dlp_core.eval.suite import load_suite
from dlp_core.store.transfers import silent
from examples.bank.build import heldout
from examples.bigbench26 import benefit, recipes

Study = Literal["composites", "recipes", "benefit"]

BANK = ROOT / "examples/bank"
SUITE = BANK / "heldout.yaml"
ARMS = ("plain", "oracle", "top-p=0.9")
DTYPE, METRIC = "float32", "f1"
"""Left out of the bank, hardly a task's answer is exact under other adapters; words in common tell more."""


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the demo's base model.")],
    work: Annotated[Path, typer.Argument(help="Folder for what is computed.")],
    *,
    only: Annotated[Study | None, typer.Option(help="Only this study.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    labelled: Annotated[int, typer.Option(min=8, help="Rows of each task that are labelled by benefit.")] = 48,
    left_out: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Leave out only these for routers taught by benefit.")
    ] = None,
    fits: Annotated[int, typer.Option(min=0, help="Tasks that recipes are fitted to, of 8.")] = 8,
    fitted: Annotated[int, typer.Option(min=16, help="Rows that a recipe is fitted to.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a fit.")] = 60,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs that recipes are fitted to, of 4.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = ROOT / "benchmarks/results",
) -> None:
    data = work / "rows"
    heldout(data)
    base = model_folder(model)
    for study in get_args(Study) if only is None else [only]:
        if study == "composites":
            found = _composites(Setup(base, DTYPE, "cpu", threads, 32), data, work / "comp")
        elif study == "recipes":
            recipes.main(
                *(base, data, BANK, work / "rec"),
                tasks=fits,
                pairs=pairs,
                rows=fitted,
                steps=steps,
                test_rows=25,
                prompts=25,
                suite_file=SUITE,
                metric=METRIC,
                dtype=DTYPE,
                threads=threads,
            )
            found = json.loads((work / "rec/recipes.json").read_text("utf-8"))
        else:
            benefit.main(
                *(base, data, BANK, work / "ben"),
                rows=labelled,
                test_rows=25,
                only=left_out,
                suite_file=SUITE,
                metric=METRIC,
                teacher=False,
                threads=threads,
                dtype=DTYPE,
            )
            found = json.loads((work / "ben/benefit.json").read_text("utf-8"))
        about = {"benchmark": f"fusing: {study}", **environment(), "threads": threads, "dtype": DTYPE}
        (out / f"fusing_{study}.json").write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")


def _composites(setup: Setup, data: Path, work: Path) -> dict[str, Any]:
    suite = load_suite(SUITE, data=data)
    cache = DiskCache(work / "cache", 10**10)
    journal = work / "answers.jsonl"
    results = run_evaluation(suite, ARMS, str(BANK), setup, cache=cache, journal=journal, phase=lambda title: silent)
    return results.model_dump(mode="json", exclude={"rows", "examples", "bank"})


if __name__ == "__main__":
    run(main)
