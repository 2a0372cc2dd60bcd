"""An engine in a process of its own: it loads once and runs a batch whenever it is told, a JSON line each way.

    {"prompts": [[5, 17, ...], ...], "mixes": [{"a0": 0.5, "a3": 0.5}, ...], "tokens": 32}
    {"seconds": 1.25, "tokens": [[9, 4, ...], ...]}

Needs nothing but Python, so that an engine's own environment can run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLOSE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that arrive together: prompts as token ids, a mix for each, and how many tokens each generates."""

    prompts: Sequence[Sequence[int]]
    mixes: Sequence[Mapping[str, float]]
    tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """Seconds from the first submission to the last token, and the tokens of each request."""

    seconds: float
    tokens: Sequence[Sequence[int]]


class WorkerFailed(Exception):
    """A worker ended before it answered; the message is the last line it logged."""


class Worker:
    """The caller's end."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Starts the process and returns when it has loaded. What it says apart from answers goes to `log`."""
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        try:
            self.versions: Mapping[str, str] = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, batch: Batch) -> Done:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(batch)) + "\n")
        self._process.stdin.flush()
        return Done(**self._answer())

    def close(self) -> None:
        try:
            self._process.communicate(timeout=CLOSE_SECONDS)  # closes its input, which ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise WorkerFailed(said[-1] if said else "it ended without a word")
        return json.loads(line)


def answer(load: Callable[[], tuple[Callable[[Batch], Done], Mapping[str, str]]]) -> None:
    """The worker's end. `load` gives what runs a batch, and the versions of what it is made of."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # engines print; answers have standard output for themselves
        run, versions = load()

        def say(something: Any) -> None:
            answers.write(json.dumps(something) + "\n")
            answers.flush()

        say(dict(versions))
        for line in sys.stdin:
            say(asdict(run(Batch(**json.loads(line)))))
        os._exit(0)  # whatever threads the engine has left
