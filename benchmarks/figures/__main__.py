"""Fills the figures of Markdown pages from the raw results, and redraws the picture. Measures nothing.

    python -m benchmarks.figures            writes what is stale
    python -m benchmarks.figures --check    exits 1 instead, naming page, line and figure
    python -m benchmarks.figures --list     every figure: its name, what it is, what it says now

Pages are README.md, docs/*.md and examples/*/README.md. To place a figure, write its marks and run the command:

    The mix costs <!-- figure:decode_mix --><!-- / --> times the plain step.

    <!-- figure:headline --><!-- / -->

The first becomes a number in a sentence, the second a table with links to its raw results. The section of a number
must name its raw result as well, in a table or by such a mark:

    <!-- figure:decode_step_source --><!-- / -->

The figure `measurements` lists the command and the machine behind every raw result; docs/performance.md has it.

A new figure is a function in a module of this package, named in catalogue.py; a new raw result is a line of sources.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures.catalogue import FIGURES
from benchmarks.figures.chart import decode_chart, drawn_from
from benchmarks.figures.pages import Figure, Stale, fill
from benchmarks.figures.sources import Results
from benchmarks.measure.harness import ROOT, run

PAGES = ("README.md", "docs/*.md", "examples/*/README.md")
PICTURE = Path("benchmarks/results/decode_step.svg")


def refresh(root: Path, *, write: bool) -> list[Stale]:
    """What is stale in a checkout; with `write` no longer. Raises InvalidRequest for a wrong mark or result."""
    stale = []
    for path in sorted(path for pattern in PAGES for path in root.glob(pattern)):
        filled = fill(root, path.relative_to(root), FIGURES)
        stale += filled.stale
        if write and filled.stale:
            path.write_text(filled.text)
    return stale + _refresh_picture(root, write=write)


def _refresh_picture(root: Path, *, write: bool) -> list[Stale]:
    """The picture is stale if it was drawn from other data; matplotlib's version does not matter."""
    result = Results(root)["decode_step"]
    chart = decode_chart(result)
    drawn = drawn_from((root / PICTURE).read_text())
    if drawn == chart.digest:
        return []
    if write:
        from benchmarks.plot import draw_decode_step  # noqa: PLC0415 - a check does without matplotlib

        draw_decode_step(result, root / PICTURE)
    return [Stale(PICTURE, 1, "the picture", drawn or "no digest", chart.digest)]


def _describe(name: str, figure: Figure) -> str:
    results = Results(ROOT)
    measured = figure(results)
    shown = measured if isinstance(measured, str) else "a table" if measured else "where it comes from"
    return f"{name}: {(figure.__doc__ or '').splitlines()[0]} [{', '.join(results.names)}] {shown}"


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a figure is stale.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show every figure there is.")] = False,
) -> None:
    if list_:
        print("\n".join(_describe(name, figure) for name, figure in FIGURES.items()))
        return
    stale = refresh(ROOT, write=not check)
    for figure in stale:
        print(figure if check else f"{figure.page}:{figure.line}: {figure.figure}")
    if check and stale:
        print("python -m benchmarks.figures fills them from benchmarks/results", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
