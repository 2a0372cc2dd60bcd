"""How every benchmark times its sides and says what it found.

Sides run in turn, forward and backward (ABBA), so that what drifts drifts for all of them. A side's time is the median
over the rounds; a ratio is the median of the rounds' own ratios, which a noisy neighbour moves less than two medians.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "transformers", "peft", "ray", "vllm", "llama_cpp_python")


@dataclass(frozen=True, slots=True)
class Timing:
    """One side: seconds of one call, a value for each round."""

    seconds: tuple[float, ...]

    @property
    def ms(self) -> float:
        return 1000 * median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        low, _, high = quantiles(self.seconds, n=4) if len(self.seconds) > 1 else (0.0, 0.0, 0.0)
        return (high - low) / 2 / median(self.seconds)

    def over(self, other: Timing) -> float:
        """Median of the rounds' ratios."""
        return median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))


def interleaved(sides: Mapping[str, Callable[[], object]], *, rounds: int, calls: int) -> dict[str, Timing]:
    """Times `calls` calls of each side twice a round, each time after one that does not count: whatever a side has to
    set up when it takes over from another is not what it costs to go on."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        found = dict.fromkeys(sides, 0.0)
        for name in (*sides, *reversed(sides)):
            sides[name]()
            began = time.perf_counter()
            for _ in range(calls):
                sides[name]()
            found[name] += time.perf_counter() - began
        for name, value in found.items():
            seconds[name].append(value / 2 / calls)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def compared(found: Mapping[str, Timing], base: str) -> list[dict[str, Any]]:
    """A row for each side: its time, its spread, and its ratio over `base`."""
    return [
        {
            "side": name,
            "ms": round(timing.ms, 2),
            "spread": round(timing.spread, 3),
            "ratio": round(timing.over(found[base]), 3),
        }
        for name, timing in found.items()
    ]


def surroundings() -> dict[str, Any]:
    """Hardware, versions and commit, for the head of a result."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        "python": platform.python_version(),
        "versions": versions,
        "commit": git.stdout.strip() or None,
    }


def report(title: str, rows: Sequence[Mapping[str, Any]], *, out: Path | None, **settings: Any) -> None:
    """Draws the rows as a table for a person, and writes them as JSON: to `out`, else to standard output."""
    console = Console(file=sys.stderr, width=140)
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, justify="right" if isinstance(rows[0].get(column), int | float) else "left")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else str(row[key]) for key in columns))
    console.print(table)
    text = json.dumps({"benchmark": title, **surroundings(), **settings, "rows": list(rows)}, indent=1)
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
