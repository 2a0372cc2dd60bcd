"""Fill the figures of Markdown pages from the raw results, and redraw the picture. Measures nothing.

    python -m benchmarks.figures            updates what is stale
    python -m benchmarks.figures --check    exits 1 if anything is stale, naming page, line and figure
    python -m benchmarks.figures --list     lists every figure with its description and current value

Pages are README.md, docs/*.md and examples/*/README.md. To place a figure, write its marks and run the command:

    The mix costs <!-- figure:decode_mix --><!-- / --> times the plain step.

    <!-- figure:headline --><!-- / -->

The first becomes a number in a sentence, the second a table with links to its raw results. The section of a number
must also name its raw result, in a table or with a mark like this:

    <!-- figure:decode_step_source --><!-- / -->

The figure `measurements` lists the command and the machine behind every raw result; docs/performance.md has it.

A new figure is a function in a module of this package, listed in catalogue.py; a new raw result is a line in
sources.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures.catalogue import FIGURES
from benchmarks.figures.chart import chart_digest, decode_chart
from benchmarks.figures.pages import Figure, Stale, fill
from benchmarks.figures.sources import Results
from benchmarks.measure.harness import ROOT, run

PAGES = ("README.md", "docs/*.md", "examples/*/README.md")
PICTURE = Path("benchmarks/results/decode_step.svg")


def refresh(root: Path, *, write: bool) -> list[Stale]:
    """Return what is stale in a checkout and, with `write`, update it. Raises InvalidRequest for a wrong mark or
    result."""
    stale = []
    for path in sorted(path for pattern in PAGES for path in root.glob(pattern)):
        filled = fill(root, path.relative_to(root), FIGURES)
        stale += filled.stale
        if write and filled.stale:
            path.write_text(filled.text)
    return stale + _refresh_picture(root, write=write)


def _refresh_picture(root: Path, *, write: bool) -> list[Stale]:
    """Check the picture, which is stale if it was drawn from other data; matplotlib's version does not matter."""
    result = Results(root)["decode_step"]
    chart = decode_chart(result)
    digest = chart_digest((root / PICTURE).read_text())
    if digest == chart.digest:
        return []
    if write:
        from benchmarks.plot import draw_decode_step  # noqa: PLC0415 - --check needs no matplotlib

        draw_decode_step(result, root / PICTURE)
    return [Stale(PICTURE, 1, "the picture", digest or "no digest", chart.digest)]


def _describe(name: str, figure: Figure) -> str:
    results = Results(ROOT)
    value = figure(results)
    shown = value if isinstance(value, str) else "a table" if value else "its source"
    return f"{name}: {(figure.__doc__ or '').splitlines()[0]} [{', '.join(results.names)}] {shown}"


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a figure is stale.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List every figure.")] = False,
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
