"""How long the engine inside vLLM takes from a new process to its first token: the first time, when the model is
compiled, the next time, and without compilation.

    .venv/bin/python -m benchmarks.vllm_start MODEL_DIR --vllm-python PYTHON [--dtype float32] [--out FILE]

vLLM's cache of compiled code is in a folder of its own, which is empty at the beginning.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import ROOT, model_folder, report, run

STARTS = {"first": "compiled", "next": "compiled", "eager": "eager"}


def start(python: Path, model: Path, dtype: str, mode: str, cache: str) -> dict[str, float]:
    """Seconds of one process. Raises CalledProcessError if it fails."""
    command = [str(python), "-m", "benchmarks.measure.vllm_first_token", str(model), dtype, mode]
    environment = os.environ | {"VLLM_CACHE_ROOT": cache, "VLLM_LOGGING_LEVEL": "WARNING"}
    began = time.time()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return {phase: at - began for phase, at in json.loads(done.stdout.splitlines()[-1]).items()}


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    *,
    vllm_python: Annotated[Path, typer.Option(envvar="VLLM_PYTHON", help="Python of an environment with vLLM.")],
    dtype: Annotated[str, typer.Option(help="Precision.")] = "bfloat16",
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as cache:
        for name, mode in STARTS.items():
            print(f"start: {name}", file=sys.stderr)
            seconds = start(vllm_python, model, dtype, mode, cache)
            rows.append({"start": name} | {phase: round(value, 1) for phase, value in seconds.items()})
    report("vllm start", rows, out=out, model=model.name, dtype=dtype)


if __name__ == "__main__":
    run(main)
