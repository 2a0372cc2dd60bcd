"""Figures of answer quality: the demo bank and the 26 BIG-bench tasks. BIG-bench scores are points from 0 to 100."""

from __future__ import annotations

from benchmarks.figures.markdown import Lines, table
from benchmarks.figures.sources import Result, Results

SERVED, FIRST = "top-p=0.9", "top1"
TASK_ARMS = ("plain", "oracle", SERVED, "random", "adapter=joint", "sentence=0.9")
METHODS = ("plain", "by request", "by sentence", "oracle by part")


def demo_quality(results: Results) -> Lines:
    """Exact match of every demo adapter on its held-out rows: plain backbone, named, routed."""
    suites: dict[str, dict[str, Result]] = {}
    for record in results["demo_quality"]["records"]:
        suites.setdefault(record["suite"], {})[record["arm"]] = record
    rows = []
    for suite, arms in suites.items():
        exact = [f"{arms[arm]['exact']:.2f}" if "base" in arms else "" for arm in ("base", "named", "auto")]
        names = {"handwritten": f"{len(arms['auto']['rows'])} handwritten prompts"}
        names["of no task"] = "prompts of no task, left to the plain backbone"
        rows.append([names.get(suite, f"`{suite}`"), *exact, f"{arms['auto']['routed']:.2f}"])
    return table(["adapter", "plain backbone", "named", "routed (`auto`)", "routed to it"], rows)


def bigbench_arms(results: Results) -> Lines:
    """All arms on the 26 tasks, best first."""
    arms = results["bigbench26"]["arms"]
    top1 = _score(results, FIRST)
    rows = []
    for arm in sorted(arms, key=lambda arm: -round(arm["score"]["mean"], 1)):
        difference = "" if arm["name"] == FIRST else _signed(arm["score"]["mean"] - top1)
        shares = [f"{arm['adapters']:.2f}", f"{arm['plain']:.1%}"]
        rows.append([f"`{arm['name']}`", f"{arm['score']['mean']:.1f}", _interval(arm), difference, *shares])
    return table(["arm", "score", "95% interval", "minus `top1`", "adapters per mix", "backbone alone"], rows)


def bigbench_composites(results: Results) -> Lines:
    """Prompts with several questions of different tasks, by how adapters are chosen."""
    cells: dict[int, dict[str, Result]] = {}
    for composite in results["bigbench26"]["composites"]:
        cells.setdefault(composite["parts"], {})[composite["arm"]] = composite
    rows = [
        [parts, *(f"{row[method]['score']['mean']:.1f} ({_interval(row[method])})" for method in METHODS)]
        for parts, row in cells.items()
    ]
    return table(["questions per prompt", *METHODS], rows)


def bigbench_tasks(results: Results) -> Lines:
    """All tasks under the arms that differ."""
    arms = {arm["name"]: arm["tasks"] for arm in results["bigbench26"]["arms"]}
    rows = [[task, *(f"{arms[arm][task]['score']['mean']:.1f}" for arm in TASK_ARMS)] for task in sorted(arms["plain"])]
    return table(["task", *TASK_ARMS], rows)


def bigbench_plain(results: Results) -> str:
    """Mean score of the backbone alone on the 26 tasks."""
    return f"{_score(results, 'plain'):.1f}"


def bigbench_oracle(results: Results) -> str:
    """Mean score of the right adapter on each of the 26 tasks."""
    return f"{_score(results, 'oracle'):.1f}"


def bigbench_routed(results: Results) -> str:
    """Mean score of a server's defaults (top-p with p = 0.9) on the 26 tasks."""
    return f"{_score(results, SERVED):.1f}"


def bigbench_routed_less(results: Results) -> str:
    """Score of routing minus the right adapter's."""
    return _signed(_score(results, SERVED) - _score(results, "oracle"))


def bigbench_right_gain(results: Results) -> str:
    """Score of the right adapter minus the backbone's alone."""
    return f"{_score(results, 'oracle') - _score(results, 'plain'):.1f}"


def bigbench_random_gain(results: Results) -> str:
    """Score of a random adapter minus the backbone's alone."""
    return f"{_score(results, 'random') - _score(results, 'plain'):.1f}"


def bigbench_joint_loss(results: Results) -> str:
    """Score of routing minus one joint adapter's."""
    return f"{_score(results, SERVED) - _score(results, 'adapter=joint'):.1f}"


def bigbench_sentence_loss(results: Results) -> str:
    """Score of a mix per request minus a mix per sentence."""
    return f"{_score(results, SERVED) - _score(results, 'sentence=0.9'):.1f}"


def _score(results: Results, name: str) -> float:
    return float(next(arm["score"]["mean"] for arm in results["bigbench26"]["arms"] if arm["name"] == name))


def _interval(scored: Result) -> str:
    return f"{scored['score']['low']:.1f} to {scored['score']['high']:.1f}"


def _signed(points: float) -> str:
    return f"{points:+.1f}" if abs(points) >= 0.05 else "0.0"
