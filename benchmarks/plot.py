"""The decode step's ratios as a picture: ours and the peers, over the plain model.

    .venv/bin/python -m benchmarks.plot [RESULT.json] [PICTURE.svg]

One panel for each number of sequences, one bar for each side. Without a background, in colours that can be read on
white and on black alike: a README is shown on both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.measure.harness import ROOT, run
from dlp_core.errors import InvalidRequest

RESULT = ROOT / "benchmarks/results/decode_step.json"
TARGETS, RANK, SEQUENCES = "q,v", "8", (1, 4, 16)
OURS = {
    "one": "dlp-serve: one adapter for the batch",
    "k=1": "dlp-serve: an adapter for each row",
    "k=2": "dlp-serve: a mix of 2 for each row",
    "k=3": "dlp-serve: a mix of 3 for each row",
    "k=4": "dlp-serve: a mix of 4 for each row",
    "k=3 of 100": "dlp-serve: a mix of 3 of 100 for each row",
}
PEERS = {
    "peft one": "PEFT: one adapter for the batch",
    "peft rows": "PEFT: an adapter for each row",
    "peft cat": "PEFT: one mix of 3, merged (cat)",
    "peft active": "PEFT: one mix of 3, all active",
    "loop": "paper's loop: a mix of 3 for each row",
}
INK, OURS_COLOUR, PEERS_COLOUR = "#7d8590", "#2f81f7", "#8b949e"
GAP = 0.7
"""Between ours and the peers, in bars."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 9,
    "svg.hashsalt": "dlp",  # the same result makes the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_decode_step(result: Mapping[str, Any], out: Path) -> None:
    """Writes the picture of a result of benchmarks/decode_step.py. Raises InvalidRequest if it has other rows."""
    ratios = {
        (row["sequences"], row["side"]): float(row["ratio"])
        for row in result["rows"]
        if (row["targets"], row["rank"]) == (TARGETS, RANK)
    }
    panels = {count: {side: r for (n, side), r in ratios.items() if n == count} for count in SEQUENCES}
    sides = [side for side in (*OURS, *PEERS) if all(side in found for found in panels.values())]
    if not sides:
        raise InvalidRequest(f"no rows for {TARGETS} at rank {RANK} and {SEQUENCES} sequences; run decode_step again")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.1 + 0.26 * len(sides)), layout="constrained")
        most = max(found[side] for found in panels.values() for side in sides)
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (count, found) in zip(axes, panels.items(), strict=True):
            draw_panel(axis, {side: found[side] for side in sides}, most)
            axis.set_title("1 sequence" if count == 1 else f"{count} sequences", fontsize=10)
        figure.supxlabel(
            f"time of a decode step over the plain model's; {result['model']} in {result['dtype']}, {TARGETS} at rank "
            f"{RANK}, {result['cores']} CPU cores",
            fontsize=9,
        )
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})


def draw_panel(axis: Axes, ratios: Mapping[str, float], most: float) -> None:
    """Bars from 1, the plain model, to each side's ratio; ours above, peers below."""
    places = [-number - (GAP if side in PEERS else 0) for number, side in enumerate(ratios)]
    colours = [OURS_COLOUR if side in OURS else PEERS_COLOUR for side in ratios]
    axis.barh(places, [ratio - 1 for ratio in ratios.values()], left=1, height=0.68, color=colours)
    for place, ratio in zip(places, ratios.values(), strict=True):
        axis.annotate(f"{ratio:.2f}", (max(ratio, 1), place), (3, 0), textcoords="offset points", va="center")
    axis.set_yticks(places, [(OURS | PEERS)[side] for side in ratios])
    axis.tick_params(length=0)
    axis.set_xlim(1, 1 + (most - 1) * 1.18)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(INK)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.grid(axis="x", color=INK, alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)


def main(
    result: Annotated[Path, typer.Argument(help="What benchmarks/decode_step.py wrote.")] = RESULT,
    picture: Annotated[Path | None, typer.Argument(help="Where the SVG goes; beside the result by default.")] = None,
) -> None:
    try:
        found = json.loads(result.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{result} cannot be read: {error}") from None
    draw_decode_step(found, picture or result.with_suffix(".svg"))


if __name__ == "__main__":
    run(main)
