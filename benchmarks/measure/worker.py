"""An engine in a separate process: it loads once, then runs one batch per request, as one JSON line each way.

    {"prompts": [[5, 17, ...], ...], "mixes": [{"a0": 0.5, "a3": 0.5}, ...], "tokens": 32}
    {"seconds": 1.25, "tokens": [[9, 4, ...], ...]}

Needs only the standard library, so that an engine's own environment can run it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLOSE_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests submitted together: prompts as token ids, a mix for each, and the number of tokens each generates."""

    prompts: Sequence[Sequence[int]]
    mixes: Sequence[Mapping[str, float]]
    tokens: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Seconds from the first submission to the last token, and the tokens of each request."""

    seconds: float
    tokens: Sequence[Sequence[int]]
    cpu_seconds: float = 0.0
    """That the engine's processes computed meanwhile, all together."""


class WorkerFailed(Exception):
    """A worker exited before it answered; the message is the last line it logged."""


class Worker:
    """The caller's side of a worker process."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Start the process and wait until it has loaded. Its other output goes to `log`. Raises WorkerFailed."""
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        try:
            self.versions: Mapping[str, str] = self._read_message()
        except BaseException:
            self.close()
            raise

    def run(self, batch: Batch) -> BatchResult:
        assert self._process.stdin is not None
        before = cpu_seconds(self._process.pid)
        self._process.stdin.write(json.dumps(asdict(batch)) + "\n")
        self._process.stdin.flush()
        answer = self._read_message()
        return BatchResult(answer["seconds"], answer["tokens"], cpu_seconds(self._process.pid) - before)

    def close(self) -> None:
        try:
            self._process.communicate(timeout=CLOSE_TIMEOUT_S)  # closing its input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        finally:
            with suppress(ProcessLookupError):  # an engine's own processes, which outlive the one that started them
                os.killpg(self._process.pid, signal.SIGKILL)

    def _read_message(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise WorkerFailed(lines[-1] if lines else "it exited without output")
        return json.loads(line)


def cpu_seconds(pid: int) -> float:
    """That a process and those below it have computed so far, as Linux counts it."""
    used: dict[int, float] = {}
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        number = int(stat.parent.name)
        parents[number] = int(fields[1])
        used[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(used.get(number, 0.0) for number in family)


def serve(load: Callable[[], tuple[Callable[[Batch], BatchResult], Mapping[str, str]]]) -> None:
    """The worker's side. `load` returns the function that runs a batch, and the versions of the engine's packages."""
    with os.fdopen(os.dup(1), "w") as messages:
        os.dup2(2, 1)  # engines print; keep standard output for messages alone
        run, versions = load()

        def send(message: Any) -> None:
            messages.write(json.dumps(message) + "\n")
            messages.flush()

        send(dict(versions))
        for line in sys.stdin:
            send(asdict(run(Batch(**json.loads(line)))))
        os._exit(0)  # the engine may have left threads running
