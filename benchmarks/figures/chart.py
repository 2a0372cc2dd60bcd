"""The data of the decode step's picture; benchmarks/plot.py draws it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from benchmarks.figures.decoding import TARGETED, cells
from benchmarks.figures.sources import Result
from dlp_core.errors import InvalidRequest

TARGETS, RANK = "q,v", "8"
OURS = "dlp-serve"
GROUPS: Mapping[str, Mapping[str, str]] = {
    "the same adapter for every row": {"one": OURS, "peft one": "PEFT"},
    "a different adapter for each row": {"k=1": OURS, "peft rows": "PEFT"},
    "the same mix of 3 for every row": {"peft cat": "PEFT, merged", "peft active": "PEFT, all active"},
    "a different mix of 3 for each row": {
        "k=3": OURS,
        "k=3 of 100": f"{OURS}, of 100 adapters",
        "loop": "the paper's loop",
    },
}
_DIGEST = re.compile(r"data-sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything a reader of the picture sees except fonts, positions and colours."""

    title: str
    about: str
    panels: tuple[str, ...]
    groups: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Heading to label to one ratio per panel."""

    @property
    def digest(self) -> str:
        """Digest of the data, carried by the SVG drawn from them."""
        return f"data-sha256:{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()}"


def decode_chart(result: Result) -> Chart:
    """Build the chart of a decode step's result. Sides that were not measured, such as those of a peer that was not
    installed, are left out. Raises InvalidRequest if the result has no rows for the chart."""
    by_cell = cells(result)
    panels = [by_cell.get((TARGETS, RANK, count), {}) for count in TARGETED]
    groups = {
        heading: {
            text: tuple(float(panel[side]["ratio"]) for panel in panels)
            for side, text in sides.items()
            if all(side in panel for panel in panels)
        }
        for heading, sides in GROUPS.items()
    }
    if not any(groups.values()):
        raise InvalidRequest(
            f"no rows for {TARGETS} at rank {RANK} with {', '.join(map(str, TARGETED))} sequences; rerun decode_step"
        )
    model = f"{result['model']} in {result['dtype']}"
    return Chart(
        title="Time of a decode step with LoRA, over the plain model's: lower is better",
        about=f"{model}, adapters on {TARGETS} at rank {RANK}, {result['cores']} CPU cores",
        panels=tuple("1 sequence" if count == 1 else f"{count} sequences" for count in TARGETED),
        groups=groups,
    )


def chart_digest(svg: str) -> str | None:
    """The digest of the chart that an SVG was drawn from, None if it carries none."""
    match = _DIGEST.search(svg)
    return match[0] if match else None
