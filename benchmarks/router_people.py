"""The quality of routers of one recipe, and the cost of a prompt: what `dlp router eval` reports, for each of several
seeds.

    for seed in 0 1 2; do dlp router train --data TRAIN.jsonl --seed $seed --out ROUTER$seed; done
    .venv/bin/python -m benchmarks.router_people VAL.jsonl ROUTER0 ROUTER1 ROUTER2

VAL.jsonl has rows that none of them was trained on, some of them with task null. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

os.environ["OMP_NUM_THREADS"] = "1"  # set before numpy is imported: latencies are for one thread

import typer

from benchmarks.measure.harness import environment, run
from dlp_core.router import Router
from dlp_core.router.evaluation import evaluate
from dlp_core.router.rows import read_task_rows


def main(
    data: Annotated[Path, typer.Argument(help="Rows to judge by.")],
    routers: Annotated[list[Path], typer.Argument(help="Folders of routers.")],
) -> None:
    rows = read_task_rows([data])
    seeds = []
    for folder in routers:
        router = Router.load(folder)
        scores = {name: value for name, value in evaluate(router, rows).as_dict().items() if name != "warnings"}
        seeds.append({"seed": router.training["seed"], "trained_on": router.training["rows"], **scores})
    print(json.dumps({**environment(), "seeds": seeds}, indent=1))


if __name__ == "__main__":
    run(main)
