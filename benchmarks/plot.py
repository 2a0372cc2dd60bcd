"""Plot the decode step's ratios to the plain model: ours and the peers'.

    .venv/bin/python -m benchmarks.plot [RESULT.json] [PICTURE.svg]

One panel for each number of sequences, one bar for each side; on white, to be readable on any page.
`python -m benchmarks.figures` redraws it when its data have changed; the SVG carries a digest of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures.chart import OURS, Chart, decode_chart
from benchmarks.measure.harness import ROOT, run
from dlp_core.errors import InvalidRequest

RESULT = ROOT / "benchmarks/results/decode_step.json"
INK, FAINT = "#1f2328", "#d0d7de"
OURS_COLOUR, PEERS_COLOUR = "#0072b2", "#e69f00"
"""Blue and orange of Okabe and Ito, which colour-blind readers can tell apart."""
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
"""Box behind a number, so that no grid line runs through it."""
GAP = 0.4
"""Space between groups, in bars."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "svg.hashsalt": "dlp",  # makes the file reproducible
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_decode_step(result: Mapping[str, Any], out: Path) -> None:
    """Write the plot of a benchmarks/decode_step.py result. Raises InvalidRequest if it has other rows."""
    chart = decode_chart(result)
    with mpl.rc_context(STYLE):
        draw(chart).savefig(out, format="svg", metadata={"Date": None, "Identifier": chart.digest})


def draw(chart: Chart) -> Figure:
    """The plot as a figure, to be saved in any format."""
    positions, headings = bar_positions(chart)
    figure = Figure(figsize=(10.4, 1.6 + 0.27 * -min(positions.values())), layout="constrained")
    figure.suptitle(chart.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(f"1.0 is the plain model without adapters. {chart.about}.", x=0.01, ha="left", fontsize=9)
    axes: Sequence[Axes] = figure.subplots(1, len(chart.panels), sharey=True)
    axes[0].set_ylim(min(positions.values()) - 0.7, 0.7)
    axes[0].set_yticks([*headings.values(), *positions.values()], [*headings, *(label for _, label in positions)])
    for heading in axes[0].get_yticklabels()[: len(headings)]:
        heading.set_fontweight("bold")
    max_ratio = max(ratio for group in chart.groups.values() for ratios in group.values() for ratio in ratios)
    for panel, (axis, title) in enumerate(zip(axes, chart.panels, strict=True)):
        axis.set_title(title, fontsize=11)
        axis.set_xlim(1, 1 + (max_ratio - 1) * 1.25)
        draw_panel(
            axis, {position: chart.groups[group][label][panel] for (group, label), position in positions.items()}
        )
        for (_, label), bar in zip(positions, axis.patches, strict=True):
            bar.set_facecolor(OURS_COLOUR if label.startswith(OURS) else PEERS_COLOUR)
    return figure


def bar_positions(chart: Chart) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Position of each bar, by heading and label, and of each heading: from 0 downwards, in bars."""
    positions, headings = {}, {}
    position = 0.0
    for heading, sides in chart.groups.items():
        headings[heading] = position
        for label in sides:
            position -= 1
            positions[heading, label] = position
        position -= 1 + GAP
    return positions, headings


def draw_panel(axis: Axes, ratios: Mapping[float, float]) -> None:
    """Draw a bar at each position, from 1 (the plain model) to its ratio, labelled with the ratio."""
    axis.barh(list(ratios), [ratio - 1 for ratio in ratios.values()], left=1, height=0.72)
    for position, ratio in ratios.items():
        axis.annotate(
            f"{ratio:.2f}", (max(ratio, 1), position), (4, 0), textcoords="offset points", va="center", bbox=CLEAR
        )
    axis.tick_params(length=0)
    axis.set_xticks([1, 1.5, 2])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(INK)
    axis.grid(axis="x", color=FAINT, linewidth=0.8)
    axis.set_axisbelow(True)


def main(
    result: Annotated[Path, typer.Argument(help="JSON written by benchmarks/decode_step.py.")] = RESULT,
    picture: Annotated[Path | None, typer.Argument(help="Where the SVG goes; beside the result by default.")] = None,
) -> None:
    try:
        content = json.loads(result.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{result} cannot be read: {error}") from None
    draw_decode_step(content, picture or result.with_suffix(".svg"))


if __name__ == "__main__":
    run(main)
