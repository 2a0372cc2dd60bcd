"""The raw results: their files, the commands that produced them, and the machines they record."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures.markdown import Lines
from dlp_core.errors import InvalidRequest

Result = Mapping[str, Any]

WIDTH = 100
"""Columns at which prose wraps."""


class Source(NamedTuple):
    """A file of raw results. `path` is relative to the checkout."""

    path: str
    command: str
    """The command that produced it, as a user would type it."""


def _benchmark(name: str, options: str = "", *, module: str = "") -> Source:
    command = f"python -m benchmarks.{module or name} {options}".rstrip()
    return Source(f"benchmarks/results/{name}.json", command)


_SMOLLM2 = "--base MODEL_DIR --bank examples/bank --adapter cron --dtype bfloat16"
SOURCES = {
    "affinity": _benchmark("affinity"),
    "affinity_cluster": _benchmark("affinity_cluster"),
    "autoscaling": _benchmark("autoscaling"),
    "bigbench26": Source(
        "docs/bigbench26/results.json",
        "dlp eval --suite examples/bigbench26/suite.yaml --data rows --bank bank26 --base-model MODEL_DIR",
    ),
    "cold_start": _benchmark("cold_start", "MODEL_DIR"),
    "concurrent_streams": _benchmark("concurrent_streams", "--url http://127.0.0.1:8000"),
    "decode_step": _benchmark("decode_step", "MODEL_DIR"),
    "demo_quality": _benchmark("demo_quality", "--url http://127.0.0.1:8000/v1"),
    "engine": _benchmark("engine", "MODEL_DIR"),
    "http_path": _benchmark("http_path", f"{_SMOLLM2} --threads 2 --streams 1 --streams 16 --seconds 5"),
    "http_path_one_thread": _benchmark(
        "http_path_one_thread", f"{_SMOLLM2} --threads 1 --streams 16 --seconds 4", module="http_path"
    ),
    "http_path_smollm2": _benchmark("http_path_smollm2", _SMOLLM2, module="http_path"),
    "http_path_tiny": _benchmark("http_path_tiny", "--seconds 8", module="http_path"),
    "load_overlap": _benchmark("load_overlap", "MODEL_DIR"),
    "prefill": _benchmark("prefill", "MODEL_DIR"),
    "router": _benchmark("router", "TRAIN.jsonl.gz TEST.jsonl.gz"),
    "router_eval": Source(
        "benchmarks/results/router_eval.json",
        "dlp router eval --router ROUTER --data test.jsonl.gz --train-data train.jsonl.gz --json",
    ),
    "router_latency": _benchmark("router_latency"),
    "startup": _benchmark("startup", "MODEL_DIR"),
    "throughput": _benchmark("throughput", "MODEL_DIR --vllm-python PYTHON --llama-server BINARY"),
}


class Results:
    """The raw results of a checkout. Records which were read, because they are the sources of a figure."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[str, Result] = {}

    def __getitem__(self, name: str) -> Result:
        """The result with this name in SOURCES. Raises InvalidRequest if its file cannot be read."""
        if name not in self._read:
            path = self._root / SOURCES[name].path
            try:
                self._read[name] = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise InvalidRequest(f"{path} cannot be read: {error}") from None
        return self._read[name]

    @property
    def names(self) -> list[str]:
        """Names of the results that were read, in order."""
        return list(self._read)

    def origin(self, folder: Path) -> Lines:
        """Files, commands and machines of the results that were read, as a paragraph of a page in `folder`."""
        by_machine: dict[str, list[str]] = {}
        for name, result in self._read.items():
            source = SOURCES[name]
            link = f"[{'/'.join(Path(source.path).parts[-2:])}]({os.path.relpath(self._root / source.path, folder)})"
            by_machine.setdefault(_environment(result), []).append(f"{link} by `{source.command}`")
        groups = [f"{', '.join(links)}; {machine}." for machine, links in by_machine.items()]
        return _wrapped(f"Raw result{'s' * (len(self._read) > 1)}: {' '.join(groups)}")


def machine(result: Result) -> str:
    """The hardware that a result records, in words; empty if it records none."""
    if "cpu" not in result:
        return f"{result['cores']} {result['machine']} cores of a CPU it does not name" if "cores" in result else ""
    instructions = f" ({', '.join(result['instructions'])})" if result.get("instructions") else ""
    threads = f", {result['threads']} thread{'s' * (result['threads'] > 1)}" if result.get("threads") else ""
    return f"{result['cores']} cores of {result['cpu']}{instructions}{threads}"


def _wrapped(text: str) -> Lines:
    """Wrap a paragraph into lines, without breaking commands that fit on a line."""
    unbroken = re.sub(r"`[^`]{,60}`", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(unbroken, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _environment(result: Result) -> str:
    commit = f", commit {result['commit']}" if result.get("commit") else ""
    return f"on {machine(result)}{commit}" if machine(result) else "the file records no hardware"
