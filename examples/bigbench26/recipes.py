"""Do fitted mixes beat what a bank does without them? On tasks that the bank was not trained on, and on two at once.

    python -m examples.bigbench26.recipes BASE_MODEL DATA BANK OUT [--tasks 12] [--pairs 6]

`--suite` asks the same of another bank: DATA has its train.jsonl.gz and what the suite names, as
`python -m examples.bank.build heldout` writes for the demo bank and examples/bank/heldout.yaml.

**Left out.** Of each of 12 tasks, the task's own adapter is taken out of the bank. A recipe is fitted to 64 rows
(dlp_core/train/mixes.py) and answers 100 others, beside the best single adapter, chosen on the same 64 rows, and the
plain backbone. **Two at once.** Of each of 6 pairs of tasks whose adapters the bank has, a recipe is fitted to 64
prompts that ask a question of both, and answers 100 others, beside half of each adapter and the plain backbone.

`kept` is what `dlp mix fit` leaves its user with: the recipe where the rows held back say that it beats the others,
and otherwise the best single adapter or the backbone (of a pair: half of each), whichever did better on these rows.

Every finished task and pair is a file of OUT, and answers are kept beside it, so an interrupted run resumes.
OUT/recipes.json has the scores of all rows, without the rows, and the differences: means over tasks with bootstrapped
95% intervals, in points.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from dlp_core.adapter.weights import read_adapter
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.eval.answers import Job
from dlp_core.eval.arms import Chooser
from dlp_core.eval.composite import compose
from dlp_core.eval.evaluation import evaluate
from dlp_core.eval.journal import Journal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.eval.metrics import LIKELIHOOD, METRICS
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.run import Setup, answering
from dlp_core.eval.statistics import estimate_over_tasks
from dlp_core.eval.suite import Suite, load_suite
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.quiet import quiet_transformers
from dlp_core.text.rows import read_rows
from dlp_core.train.mixes import Fit, FitSettings, fit_mix
from dlp_core.train.rows import Row

SUITE = Path(__file__).parent / "suite.yaml"
CONCURRENCY = 16
SHORT = 400
"""Characters of a question of a pair."""
ROUTED = 8
"""Adapters that the router names."""


def main(
    base: Annotated[Path, typer.Argument(help="Folder of the base model.")],
    data: Annotated[Path, typer.Argument(help="Folder with train.jsonl.gz and test.jsonl.gz.")],
    bank: Annotated[Path, typer.Argument(help="Bank folder with an adapter for each task.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    *,
    tasks: Annotated[int, typer.Option(min=0, help="Tasks to leave out, of those with adapters.")] = 12,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of tasks.")] = 6,
    rows: Annotated[int, typer.Option(min=16, help="Rows to fit on.")] = 64,
    test_rows: Annotated[int, typer.Option(min=1, help="Rows to test on, as far as a task has them.")] = 100,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to test a pair on.")] = 100,
    suite_file: Annotated[Path, typer.Option("--suite", help="YAML suite of DATA.")] = SUITE,
    metric: Annotated[str | None, typer.Option(help="The metric to score rows by that have it.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a fit.")] = FitSettings().steps,
    dtype: Annotated[str, typer.Option(help="Of the answers: bfloat16 or float32.")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    seed: int = 0,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    suite = load_suite(suite_file, data=data, rows=test_rows).scored_by(metric)
    training: dict[str, list[Row]] = {}
    for row in read_rows(data / "train.jsonl.gz"):
        training.setdefault(str(row.task), []).append(Row(*row.answered()))
    with TemporaryDirectory(prefix="dlp-recipes-") as work:
        cache = DiskCache(Path(work), 4 * 1024**3)
        with open_bank(str(bank), cache) as opened, closing(Journal(out / "answers.jsonl")) as journal:
            names = [adapter.name for adapter in opened.manifest.adapters if adapter.name in training]
            setup = Setup(base, dtype, "cpu", threads, CONCURRENCY)
            fitting = FitSettings(steps=steps, seed=seed)
            study = Study(setup, opened, bank, suite, training, journal, rows, prompts, fitting)
            drawn = Random(f"{seed} tasks").sample(names, len(names))
            left_out = [study.kept(out / f"left-out-{task}.json", task) for task in sorted(drawn[:tasks])]
            short = [name for name in drawn if any(len(row.input) <= SHORT for row in suite.rows if row.task == name)]
            couples = [tuple(short[2 * n : 2 * n + 2]) for n in range(min(pairs, len(short) // 2))]
            both = [study.kept(out / f"pair-{a}-{b}.json", a, b) for a, b in couples]
    report = {
        "base_model": base.resolve().name,
        "bank": opened.manifest.version,
        "rows": rows,
        "steps": steps,
        "metrics": sorted({suite.score_metric(row) for row in suite.rows}),
        "left_out": left_out,
        "pairs": both,
        "differences": {
            "left out": _differences(left_out, ("recipe", "kept"), ("best", "plain")),
            "two at once": _differences(both, ("recipe", "kept"), ("half", "plain")),
        },
    }
    (out / "recipes.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(report["differences"], indent=1))


@dataclass(frozen=True)
class Study:
    """The bank under study, and what every part of it needs."""

    setup: Setup
    bank: JudgedBank
    folder: Path
    """Of the bank."""
    suite: Suite
    training: Mapping[str, Sequence[Row]]
    """By task."""
    journal: Journal
    rows: int
    """To fit on."""
    prompts: int
    """To test a pair on."""
    fitting: FitSettings

    @property
    def seed(self) -> int:
        return self.fitting.seed

    @property
    def names(self) -> list[str]:
        return [adapter.name for adapter in self.bank.manifest.adapters]

    def kept(self, path: Path, *tasks: str) -> dict[str, Any]:
        """The result of one task that is left out, or of a pair, from its file if there is one."""
        if path.exists():
            done: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return done
        typer.echo(f"{path.stem} ...", err=True)
        result = self._left_out(tasks[0]) if len(tasks) == 1 else self._pair(*tasks)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return result

    def _left_out(self, task: str) -> dict[str, Any]:
        names = [name for name in self.names if name != task]
        rows = Random(f"{self.seed} {task}").sample(self.training[task], self.rows)
        fit = self._fit(rows, names)
        suite = replace(self.suite, rows=tuple(row for row in self.suite.rows if row.task == task))
        mixes = {"recipe": fit.mix, "best": Mix.of({fit.best: 1.0}), "plain": EMPTY_MIX}
        scores = asyncio.run(self._scores(suite, mixes))
        return {"task": task, **_facts(fit), "scores": scores | {"kept": scores[_kept(fit, "best")]}}

    def _pair(self, first: str, second: str) -> dict[str, Any]:
        rng = Random(f"{self.seed} {first} {second}")
        pools = [[row for row in self.training[task] if len(str(row.input)) <= SHORT] for task in (first, second)]
        fitted = [self._asked(rng.sample([rng.choice(pool) for pool in pools], 2)) for _ in range(self.rows)]
        fit = self._fit(fitted, self.names)
        tests = [
            [row for row in self.suite.rows if row.task == task and len(row.input) <= SHORT] for task in (first, second)
        ]
        prompts = [rng.sample([rng.choice(pool) for pool in tests], 2) for _ in range(self.prompts)]
        mixes = {"recipe": fit.mix, "half": Mix.of({first: 0.5, second: 0.5}), "plain": EMPTY_MIX}
        scores = asyncio.run(self._pair_scores(prompts, mixes))
        return {"task": f"{first} {second}", **_facts(fit), "scores": scores | {"kept": scores[_kept(fit, "half")]}}

    def _asked(self, rows: Sequence[Row]) -> Row:
        """One row that asks the questions of two."""
        questions = [EvalRow("", "", "", str(row.input), row.output) for row in rows]
        answers = [f"{number}. {row.output.strip()}" for number, row in enumerate(rows, start=1)]
        return Row(compose(questions)[0], "\n".join(answers))

    def _fit(self, rows: Sequence[Row], names: Sequence[str]) -> Fit:
        with quiet_transformers():
            return fit_mix(
                self.setup.base_model,
                rows,
                names,
                lambda name: read_adapter(self.folder / "adapters" / name, name=name),
                self.fitting,
                likely=self._likely(rows, names),
                report=lambda state: None,
            )

    def _likely(self, rows: Sequence[Row], names: Sequence[str]) -> list[str]:
        router = self.bank.router
        labels = [] if router is None else [label for label in router.labels if label in names]
        if router is None or not labels:
            return []
        sums = dict.fromkeys(labels, 0.0)
        for routing in router.only(labels).route([str(row.input) for row in rows]):
            for label, probability in routing.probabilities.items():
                sums[label] += probability
        return sorted(labels, key=lambda label: -sums[label])[:ROUTED]

    async def _scores(self, suite: Suite, mixes: dict[str, Mix]) -> dict[str, list[float]]:
        """The score of each row, in points, under each mix."""
        recipes = {f"mix-{name}": mix for name, mix in mixes.items() if mix}
        chooser = Chooser(replace(suite, settings=_alone(suite)), None, [*self.names, *recipes], recipes)
        arms = {name: f"adapter=mix-{name}" if mix else "plain" for name, mix in mixes.items()}
        async with answering(self.bank, None, self.setup, self.journal) as answerer:
            results = await evaluate(
                chooser,
                chooser.resolve(list(arms.values())),
                self.bank,
                answerer,
                setup=self.setup.name(),
                conditions="",
                concurrency=CONCURRENCY,
                phase=lambda title: lambda done, total: None,
            )
        return {name: [100 * row.scores[arm] for row in results.rows.values()] for name, arm in arms.items()}

    async def _pair_scores(self, prompts: Sequence[Sequence[EvalRow]], mixes: dict[str, Mix]) -> dict[str, list[float]]:
        """The score of each prompt, the mean of its two answers', under each mix. As in dlp_core/eval/composite.py, the
        answers are asked for one by one."""
        given: dict[tuple[str, int], list[str]] = {(name, n): [] for name in mixes for n in range(len(prompts))}
        async with answering(self.bank, None, self.setup, self.journal) as answerer:
            for index in range(2):
                jobs = {
                    (name, n): self._job(prompts[n], answered, mixes[name], index)
                    for (name, n), answered in given.items()
                }
                answers = await answerer.answer(list(jobs.values()), concurrency=CONCURRENCY)
                for key, job in jobs.items():
                    given[key].append(answers[job].text.strip())
        return {
            name: [
                100 * fmean(self._score(answer, row) for answer, row in zip(given[name, n], prompt, strict=True))
                for n, prompt in enumerate(prompts)
            ]
            for name in mixes
        }

    def _job(self, rows: Sequence[EvalRow], given: Sequence[str], mix: Mix, index: int) -> Job:
        lines = [f"{number}. {answer}\n" for number, answer in enumerate(given, start=1)]
        return Job(
            compose(rows)[0],
            mix,
            max_tokens=self.suite.settings.types[rows[index].type].max_tokens,
            begun=tuple((text, mix) for text in [*lines, f"{index + 1}."]),
            stop=("\n",),
        )

    def _score(self, answer: str, row: EvalRow) -> float:
        metrics = self.suite.settings.types[row.type].metrics
        return METRICS[next(name for name in metrics if name != LIKELIHOOD)](answer, row)


def _alone(suite: Suite) -> Any:
    """The suite's settings, without composites."""
    return suite.settings.model_copy(update={"composite": None})


def _kept(fit: Fit, other: str) -> str:
    """Which of the mixes a user of `dlp mix fit` is left with."""
    if fit.beats:
        return "recipe"
    return "plain" if other == "best" and fit.plain_loss < fit.best_loss else other


def _facts(fit: Fit) -> dict[str, Any]:
    return {
        "mix": {part.name: part.weight for part in fit.mix.adapters},
        "best": fit.best,
        "beats": fit.beats,
        "held_back": fit.held_back,
        "losses": {"recipe": fit.loss, "best": fit.best_loss, "plain": fit.plain_loss},
        "seconds": round(fit.seconds, 1),
    }


def _differences(found: Sequence[dict[str, Any]], ours: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    """Of each pair of mixes, the mean difference over tasks with its interval, in points."""
    differences = {}
    for own in ours if found else ():
        for other in others:
            by_task = {
                each["task"]: [a - b for a, b in zip(each["scores"][own], each["scores"][other], strict=True)]
                for each in found
            }
            estimate = estimate_over_tasks(by_task)
            differences[f"{own} - {other}"] = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    return differences


if __name__ == "__main__":
    typer.run(main)
