"""The targets of all results as one Markdown table, printed at the end of a suite run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.figures.sources import machine


class Result(NamedTuple):
    """The JSON a benchmark wrote, and the command that produced it."""

    content: Mapping[str, Any]
    command: str


def table(results: Sequence[Result]) -> str:
    """A row for each target, followed by where the numbers come from."""
    lines = ["| what | ratio | target | | command |", "|---|---|---|---|---|"]
    for result in results:
        for target in result.content.get("targets", ()):
            sign = "at least" if target["at_least"] else "at most"
            met = "met" if target["met"] else "**missed**"
            bound = f"{sign} {target['bound']:.2f}"
            lines.append(f"| {target['what']} | {target['ratio']:.2f} | {bound} | {met} | `{result.command}` |")
    return "\n".join([*lines, "", *sorted({_origin(result.content) for result in results})])


def _origin(content: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"{machine(content)}, commit {content['commit']}, {versions}."
