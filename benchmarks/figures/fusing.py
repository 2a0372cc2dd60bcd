"""Figures of when fusing helps, on the demo bank: messages of two tasks. Scores are points."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.figures.markdown import Lines, table
from benchmarks.figures.sources import Result, Results
from dlp_core.eval.statistics import Estimate, estimate

METHODS = ("plain", "by request", "by sentence", "oracle by part", "by task", "apart")
COMPARED = (
    ("by sentence", "by request"),
    ("by sentence", "oracle by part"),
    ("by task", "by request"),
    ("by task", "oracle by part"),
    ("by task", "apart"),
)


def fusing_composites(results: Results) -> Lines:
    """The demo's messages of several tasks, by how adapters are chosen."""
    rows = [
        [parts, *(f"{one['score']['mean']:.1f} ({_interval(one['score'])})" for one in methods.values())]
        for parts, methods in _composites(results).items()
    ]
    return table(["tasks in a message", *METHODS], rows)


def fusing_differences(results: Results) -> Lines:
    """Paired differences of these, prompt by prompt."""
    composites = _composites(results)
    rows = [[f"{own} - {other}", *(_shown(_paired(methods, own, other)) for methods in composites.values())]
            for own, other in COMPARED]  # fmt: skip
    return table(["points", *(f"{parts} tasks" for parts in composites)], rows)


def fusing_by_task(results: Results) -> str:
    """Score of messages of two tasks whose tasks are answered one by one."""
    return f"{_composites(results)[2]['by task']['score']['mean']:.1f}"


def fusing_by_request(results: Results) -> str:
    """Score of messages of two tasks under one mix."""
    return f"{_composites(results)[2]['by request']['score']['mean']:.1f}"


def fusing_by_sentence(results: Results) -> str:
    """Score of messages of two tasks with a mix for each passage."""
    return f"{_composites(results)[2]['by sentence']['score']['mean']:.1f}"


def fusing_by_part(results: Results) -> str:
    """Score of messages of two tasks, each part under its own adapter."""
    return f"{_composites(results)[2]['oracle by part']['score']['mean']:.1f}"


def fusing_apart(results: Results) -> str:
    """Score of the questions of these messages, each asked alone."""
    return f"{_composites(results)[2]['apart']['score']['mean']:.1f}"


def _composites(results: Results) -> dict[int, dict[str, Result]]:
    found: dict[int, dict[str, Result]] = {}
    for composite in results["fusing_composites"]["composites"]:
        found.setdefault(composite["parts"], {})[composite["arm"]] = composite
    return {parts: {method: methods[method] for method in METHODS} for parts, methods in found.items()}


def _paired(methods: Mapping[str, Result], own: str, other: str) -> Estimate:
    pairs = zip(methods[own]["by_prompt"], methods[other]["by_prompt"], strict=True)
    return estimate([a - b for a, b in pairs])


def _shown(found: Estimate) -> str:
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def _interval(score: Result) -> str:
    return f"{score['low']:.1f} to {score['high']:.1f}"
