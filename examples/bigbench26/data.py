"""Makes the rows of the 26 tasks from a checkout of BIG-bench (Apache-2.0).

    git clone --depth 1 https://github.com/google/BIG-bench
    python -m examples.bigbench26.data BIG-bench/bigbench/benchmark_tasks OUT

Writes train.jsonl.gz (at most 900 rows a task) and test.jsonl.gz (at most 100), drawn with a seed. A multiple choice
ends in its options, at most eight, as lines `(A) ...` in an order of chance; its output is the right one, written so.
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
"""Of tasks that are part of another."""

TRAIN, TEST = 900, 100
MOST_CHARS = 1800
MOST_OPTIONS = 8


def main(
    source: Annotated[Path, typer.Argument(help="bigbench/benchmark_tasks of a checkout.")],
    out: Annotated[Path, typer.Argument(help="Folder for train.jsonl.gz and test.jsonl.gz.")],
    seed: int = 0,
) -> None:
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for task in TASKS:
        chance = Random(f"{seed} {task}")
        rows = list({row["input"]: row for row in _rows(task, source / FOLDERS.get(task, task), chance)}.values())
        if not rows:
            raise typer.BadParameter(f"{source} has no examples of {task}")
        chance.shuffle(rows)
        held_out = min(TEST, len(rows) // 7)
        test += rows[:held_out]
        train += rows[held_out : held_out + TRAIN]
    out.mkdir(parents=True, exist_ok=True)
    for name, found in (("train", train), ("test", test)):
        with gzip.open(out / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        typer.echo(f"{name}: {len(found)} rows")


def _rows(task: str, folder: Path, chance: Random) -> Iterator[dict[str, str]]:
    for path in sorted(folder.rglob("task.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for example in content.get("examples", ()):
            row = _row(task, content.get("task_prefix", "").strip(), example, chance)
            if row is not None:
                yield row


def _row(task: str, prefix: str, example: dict[str, Any], chance: Random) -> dict[str, str] | None:
    """None for an example that is too long, or has no single answer."""
    asked = example["input"].strip()
    if prefix:
        asked = f"{prefix}\n{asked}"
    if "target_scores" in example:
        scores = example["target_scores"]
        right = max(scores, key=scores.__getitem__)
        options = [option for option in scores if option != right]
        options = [right, *chance.sample(options, min(len(options), MOST_OPTIONS - 1))]
        chance.shuffle(options)
        lines = [f"({chr(ord('A') + number)}) {option}" for number, option in enumerate(options)]
        row = {"type": "mcq", "input": "\n".join([asked, *lines]), "output": lines[options.index(right)]}
    else:
        target = example["target"]
        answer = (target[0] if isinstance(target, list) else str(target)).strip()
        row = {"type": "qa", "input": asked, "output": answer}
    return {"task": task, **row} if row["output"] and len(row["input"]) <= MOST_CHARS else None


if __name__ == "__main__":
    typer.run(main)
