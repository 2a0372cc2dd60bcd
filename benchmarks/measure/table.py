"""The targets of all results as one table in Markdown, for the end of a run of the suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.figures.sources import machine


class Result(NamedTuple):
    """What a benchmark wrote, and the command that made it."""

    found: Mapping[str, Any]
    command: str


def table(results: Sequence[Result]) -> str:
    """A row for each target, and under it where the numbers come from."""
    lines = ["| what | ratio | target | | command |", "|---|---|---|---|---|"]
    for result in results:
        for target in result.found.get("targets", ()):
            sign = "at least" if target["at_least"] else "at most"
            met = "met" if target["met"] else "**missed**"
            bound = f"{sign} {target['bound']:.2f}"
            lines.append(f"| {target['what']} | {target['ratio']:.2f} | {bound} | {met} | `{result.command}` |")
    return "\n".join([*lines, "", *sorted({_origin(result.found) for result in results})])


def _origin(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{machine(found)}, commit {found['commit']}, {versions}."
