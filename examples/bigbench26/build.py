"""Train the bank of the paper's evaluation: an adapter for each task, one for all tasks, and the router.

    python -m examples.bigbench26.build BASE_MODEL DATA OUT [--workers 2] [--only TASK]

Every adapter comes from `dlp adapter train`, with the options printed before it. Existing adapters are kept, so an
interrupted run resumes. On two cores: three minutes per adapter, an hour and a half for all, an hour for the joint one.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from dlp_core.store.tables import read_objects

JOINT = "joint"

STEPS = 120
JOINT_STEPS = 1200

SHORT, MEDIUM, LONG = (
    ("--batch-rows", str(1216 // tokens), "--row-tokens", str(tokens)) for tokens in (384, 608, 1152)
)
"""About the same number of tokens per step, in rows long enough for the longest question."""
ROWS = {
    "abstract_narrative_understanding": MEDIUM,
    "contextual_parametric_knowledge_conflicts": LONG,
    "disfl_qa": MEDIUM,
    "gem_xsum": MEDIUM,
    "language_identification": LONG,
    "linguistics_puzzles": MEDIUM,
    "paragraph_segmentation": LONG,
    "play_dialog_same_or_different": MEDIUM,
    "question_selection": MEDIUM,
    "topical_chat": MEDIUM,
    "unit_conversion": MEDIUM,
}


def main(
    base: Annotated[Path, typer.Argument(help="Folder of the base model.")],
    data: Annotated[Path, typer.Argument(help="Folder with train.jsonl.gz.")],
    out: Annotated[Path, typer.Argument(help="Bank folder to write.")],
    *,
    workers: Annotated[int, typer.Option(min=1, help="Adapters trained at once; they share the cores.")] = 2,
    only: Annotated[list[str] | None, typer.Option(metavar="TASK", help="May be given several times.")] = None,
    joint_steps: Annotated[int, typer.Option(min=0, help="Steps of the joint adapter; 0 trains none.")] = JOINT_STEPS,
) -> None:
    rows = data / "train.jsonl.gz"
    tasks = sorted({str(row["task"]) for _, row in read_objects(rows)})
    out.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(_train, base, rows, out / "adapters" / task, ("--task", task, *_recipe(task, STEPS)), threads)
            for task in only or tasks
        ]
        for job in jobs:
            job.result()
    if only:
        return
    if joint_steps:
        _train(base, rows, out / "adapters" / JOINT, _joint(len(tasks), joint_steps), os.cpu_count() or 1)
    if not (out / "router" / "router.json").exists():
        _dlp(["router", "train", "--data", str(rows), "--out", str(out / "router")], os.cpu_count() or 1)
    unrouted = [JOINT] if (out / "adapters" / JOINT).exists() else []
    (out / "bank.json").write_text(json.dumps({"base_model": base.resolve().name, "unrouted": unrouted}) + "\n")


def _recipe(task: str, steps: int) -> tuple[str, ...]:
    """Options of one adapter: rank 8 on q and v, the defaults of `dlp adapter train`."""
    return ("--steps", str(steps), *ROWS.get(task, LONG if task == JOINT else SHORT))


def _joint(tasks: int, steps: int) -> tuple[str, ...]:
    """Options of the joint adapter, which has as many parameters as `tasks` adapters together. Alpha stays at its value
    for rank 8: with twice the rank as alpha, the validation loss rose after 50 steps. Validation uses a few rows of
    each task and runs less often, because it takes longer."""
    validation = ("--validation-rows", str(5 * tasks), "--validate-every", str(max(1, steps // 8)))
    return ("--joint", *_recipe(JOINT, steps), "--rank", str(8 * tasks), *validation)


def _train(base: Path, rows: Path, folder: Path, options: Sequence[str], threads: int) -> None:
    if not (folder / "adapter_config.json").exists():
        train = ["adapter", "train", "--base-model", str(base), "--data", str(rows), "--out", str(folder)]
        _dlp([*train, *options], threads)


def _dlp(arguments: Sequence[str], threads: int) -> None:
    print("dlp", shlex.join(arguments), flush=True)
    command = [sys.executable, "-m", "deployments.cli.main", *arguments]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)


if __name__ == "__main__":
    typer.run(main)
