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
MEASUREMENTS = Path("docs/performance.md"), "measure-again"
"""Page and heading of `Results.measurements`: the command and the machine behind every raw result."""
NOT_RECORDED = "not recorded"


class Source(NamedTuple):
    """A file of raw results. `path` is relative to the checkout."""

    path: str
    command: str
    """The command that produced it, as a user would type it."""


def _benchmark(name: str, options: str = "", *, module: str = "") -> Source:
    command = f"python -m benchmarks.{module or name} {options}".rstrip()
    return Source(f"benchmarks/results/{name}.json", command)


_SMOLLM2 = "--base MODEL_DIR --bank examples/bank --adapter cron --dtype bfloat16"
_SMOLLM2_F32 = _SMOLLM2.replace("bfloat16", "float32")
SOURCES = {
    "affinity": _benchmark("affinity"),
    "affinity_cluster": _benchmark("affinity_cluster"),
    "autoscaling": _benchmark("autoscaling"),
    "bigbench26": Source(
        "docs/bigbench26/results.json",
        "dlp eval --suite examples/bigbench26/suite.yaml --data rows --bank bank26 --base-model MODEL_DIR",
    ),
    "canary": _benchmark("canary"),
    "cold_start": _benchmark("cold_start", "MODEL_DIR"),
    "concurrent_streams": _benchmark("concurrent_streams", "--url http://127.0.0.1:8000"),
    "console": _benchmark("console", "--url http://127.0.0.1:8001"),
    "decode_step": _benchmark("decode_step", "MODEL_DIR"),
    "demo_quality": _benchmark("demo_quality", "--url http://127.0.0.1:8000/v1"),
    "drift": _benchmark("drift", "--weeks 2 --no-teacher"),
    "engine": _benchmark("engine", "MODEL_DIR"),
    "fusing_composites": _benchmark("fusing_composites", "MODEL_DIR WORK --only composites", module="fusing"),
    "http_path": _benchmark("http_path", f"{_SMOLLM2} --threads 2 --streams 1 --streams 16 --seconds 5"),
    "http_path_one_thread": _benchmark(
        "http_path_one_thread", f"{_SMOLLM2} --threads 1 --streams 16 --seconds 4", module="http_path"
    ),
    "http_path_smollm2": _benchmark("http_path_smollm2", _SMOLLM2, module="http_path"),
    "http_path_tiny": _benchmark("http_path_tiny", "--seconds 8", module="http_path"),
    "http_path_vllm": _benchmark(
        "http_path_vllm",
        f"--engine vllm --vllm-python PYTHON {_SMOLLM2_F32} --threads 1 --streams 16 --seconds 5",
        module="http_path",
    ),
    "inside_vllm": _benchmark("inside_vllm", "MODEL_DIR --vllm-python PYTHON --dtype float32 --rounds 2"),
    "load_overlap": _benchmark("load_overlap", "MODEL_DIR"),
    "load_overlap_vllm": _benchmark("load_overlap_vllm", "MODEL_DIR --engine vllm", module="load_overlap"),
    "attention": _benchmark("attention", "MODEL_DIR --rounds 3"),
    "sampling": _benchmark("sampling", "MODEL_DIR"),
    "kernels": _benchmark("kernels"),
    "vllm_start": _benchmark("vllm_start", "MODEL_DIR --vllm-python PYTHON --dtype float32"),
    "prefill": _benchmark("prefill", "MODEL_DIR"),
    "passages": _benchmark("passages", "ROUTER26 TEST26 ROUTER8 TEST8 --strangers BACKGROUND"),
    "passages_prices": _benchmark(
        "passages_prices",
        "ROUTER26 TRAIN26 ROUTER8 TRAIN8 --choose --each 12 --joined 12",
        module="passages",
    ),
    "router": _benchmark("router", "TRAIN.jsonl VAL.jsonl --descriptions TASKS.json --quick"),
    "router_people": _benchmark("router_people", "VAL.jsonl ROUTER0 ROUTER1 ROUTER2"),
    "router_latency": _benchmark("router_latency"),
    "startup": _benchmark("startup", "MODEL_DIR"),
    "throughput_vllm": _benchmark(
        "throughput_vllm",
        "MODEL_DIR --vllm-python PYTHON --dtype float32 --rounds 2",
        module="throughput",
    ),
    "throughput": _benchmark("throughput", "MODEL_DIR --vllm-python PYTHON --llama-server BINARY"),
}


class Results:
    """The raw results of a checkout, for a page whose path is below `root`. Records which were read, because they are
    the sources of a figure."""

    def __init__(self, root: Path, page: Path = MEASUREMENTS[0]) -> None:
        self._root = root
        self._page = page
        self._read: dict[str, Result] = {}

    def __getitem__(self, name: str) -> Result:
        """The result with this name in SOURCES. Raises InvalidRequest if its file cannot be read."""
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    @property
    def names(self) -> list[str]:
        """Names of the results that were read, in order."""
        return list(self._read)

    def origin(self) -> Lines:
        """Links to the files that were read, and on other pages to `measurements`; nothing if none was read."""
        if not self._read:
            return []
        links = ", ".join(map(self._link, self._read))
        page, heading = MEASUREMENTS
        made = "" if self._page == page else f" ([commands and machines]({self._path_to(page)}#{heading}))"
        return _wrapped(f"Raw result{'s' * (len(self._read) > 1)}: {links}{made}.")

    def measurements(self) -> Lines:
        """A list of all raw results with their commands, by the machine they were measured on, named machines first."""
        by_machine: dict[str, Lines] = {}
        for name, source in SOURCES.items():
            item = _wrapped(f"- {self._link(name)}: `{source.command}`", indent="  ")
            by_machine.setdefault(_environment(self._load(name)), []).extend(item)
        lines: Lines = []
        for heading in sorted(by_machine, key=lambda heading: NOT_RECORDED in heading):
            lines += ["", *_wrapped(f"{heading}:"), "", *by_machine[heading]]
        return lines[1:]

    def _load(self, name: str) -> Result:
        path = self._root / SOURCES[name].path
        try:
            result: Result = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"{path} cannot be read: {error}") from None
        return result

    def _link(self, name: str) -> str:
        return f"[{name}]({self._path_to(Path(SOURCES[name].path))})"

    def _path_to(self, path: Path) -> str:
        return os.path.relpath(path, self._page.parent)


def machine(result: Result) -> str:
    """The hardware that a result records, in words; empty if it records none."""
    if "cpu" not in result:
        return f"{result['cores']} {result['machine']} cores, CPU model {NOT_RECORDED}" if "cores" in result else ""
    instructions = f" ({', '.join(result['instructions'])})" if result.get("instructions") else ""
    threads = f", {result['threads']} thread{'s' * (result['threads'] > 1)}" if result.get("threads") else ""
    return f"{result['cores']} cores of {result['cpu']}{instructions}{threads}"


def _wrapped(text: str, indent: str = "") -> Lines:
    """Wrap a paragraph into lines, indenting all but the first, without breaking commands and links."""
    unbroken = re.sub(r"`[^`]*`|\[[^]]*\]", lambda span: span[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(unbroken, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _environment(result: Result) -> str:
    commit = f", commit {result['commit']}" if result.get("commit") else ""
    return f"{machine(result)}{commit}" if machine(result) else f"Hardware {NOT_RECORDED}"
