"""Build the rows of the 26 tasks from a checkout of BIG-bench (Apache-2.0).

    git clone --depth 1 https://github.com/google/BIG-bench
    python -m examples.bigbench26.data BIG-bench/bigbench/benchmark_tasks OUT

Writes train.jsonl.gz (at most 900 rows per task) and test.jsonl.gz (at most 100), drawn with a seed. A multiple-choice
question ends in at most eight options as lines `(A) ...` in random order; its output is the right option's line.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

TASKS = """
    abstract_narrative_understanding contextual_parametric_knowledge_conflicts cs_algorithms disfl_qa elementary_math_qa
    epistemic_reasoning formal_fallacies_syllogisms_negation gem_xsum goal_step_wikihow language_identification
    linguistic_mappings linguistics_puzzles logical_deduction navigate object_counting paragraph_segmentation
    play_dialog_same_or_different question_selection reasoning_about_colored_objects strategyqa topical_chat
    tracking_shuffled_objects unit_conversion vitaminc_fact_verification winowhy word_sorting
""".split()
FOLDERS = {"gem_xsum": "gem/xsum"}
"""Folders of tasks that are subtasks of another task."""

TRAIN, TEST = 900, 100
MAX_CHARS = 1800
MAX_OPTIONS = 8


def main(
    source: Annotated[Path, typer.Argument(help="bigbench/benchmark_tasks of a checkout.")],
    out: Annotated[Path, typer.Argument(help="Folder for train.jsonl.gz and test.jsonl.gz.")],
    seed: int = 0,
) -> None:
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for task in TASKS:
        rng = Random(f"{seed} {task}")
        rows = list({row["input"]: row for row in _rows(task, source / FOLDERS.get(task, task), rng)}.values())
        if not rows:
            raise typer.BadParameter(f"{source} has no examples of {task}")
        rng.shuffle(rows)
        held_out = min(TEST, len(rows) // 7)
        test += rows[:held_out]
        train += rows[held_out : held_out + TRAIN]
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        with gzip.open(out / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        typer.echo(f"{name}: {len(rows)} rows")


def _rows(task: str, folder: Path, rng: Random) -> Iterator[dict[str, str]]:
    for path in sorted(folder.rglob("task.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for example in content.get("examples", ()):
            row = _row(task, content.get("task_prefix", "").strip(), example, rng)
            if row is not None:
                yield row


def _row(task: str, prefix: str, example: dict[str, Any], rng: Random) -> dict[str, str] | None:
    """The row of an example; None if it is too long or has no answer."""
    question = example["input"].strip()
    if prefix:
        question = f"{prefix}\n{question}"
    if "target_scores" in example:
        scores = example["target_scores"]
        right = max(scores, key=scores.__getitem__)
        options = [option for option in scores if option != right]
        options = [right, *rng.sample(options, min(len(options), MAX_OPTIONS - 1))]
        rng.shuffle(options)
        lines = [f"({chr(ord('A') + number)}) {option}" for number, option in enumerate(options)]
        row = {"type": "mcq", "input": "\n".join([question, *lines]), "output": lines[options.index(right)]}
    else:
        target = example["target"]
        answer = (target[0] if isinstance(target, list) else str(target)).strip()
        row = {"type": "qa", "input": question, "output": answer}
    return {"task": task, **row} if row["output"] and len(row["input"]) <= MAX_CHARS else None


if __name__ == "__main__":
    typer.run(main)
