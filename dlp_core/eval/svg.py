"""Figures as SVG that follows the reader's light or dark mode, and in two widths: of a page and of a phone.

The colours stand in the text as they are for light mode, so that any viewer shows them. A style sheet replaces each
where the reader prefers dark.
"""

from __future__ import annotations

import io
import re
from typing import Any

WIDE, NARROW = 9.0, 4.0
"""Widths in inches. A page shows 72 points of a font to the inch, so a narrow figure fits a phone as it is."""

INK, MUTED, GRID, GREEN, RED = "#1d2125", "#6b7178", "#d7dbdf", "#1b7f5c", "#b00020"

SERIES = ("#7d848c", "#1b7f5d", "#c2571a", "#2457a6", "#8a3f8f", "#a8780b", "#4d4d4d")
"""Of arms, in the order of a plot."""

_DARK = {
    INK: "#e4e7ea", MUTED: "#a3abb3", GRID: "#3a4149", GREEN: "#4cc38a", RED: "#ff7b8a",
    "#7d848c": "#a9b1b9", "#1b7f5d": "#4cc38b", "#c2571a": "#ff9a5c", "#2457a6": "#7fb0ff", "#8a3f8f": "#d99be0",
    "#a8780b": "#e3b341", "#4d4d4d": "#c9cfd5",
}  # fmt: skip

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dlp",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def settings() -> Any:
    """The context in which figures are made and written: colours, fonts, repeatable ids."""
    import matplotlib as mpl

    return mpl.rc_context(_SETTINGS)


def figure(width: float, height: float) -> Any:
    """A figure without pyplot, which would keep global state. Sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write(drawn: Any) -> str:
    """The SVG text of a figure."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    head = re.search(r"<svg[^>]*>", text)
    assert head is not None
    return f"{head[0]}\n <style>{_dark_rules(text)}</style>{text[head.end() :]}"


def _dark_rules(text: str) -> str:
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
        if f"{kind}: {light}" in text
    )
    return f"@media (prefers-color-scheme: dark){{{rules}}}"
