"""Terminal output shared by all `dlp` commands: styled text, JSON, progress bars and steps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.status import Status

from dlp_core.errors import InvalidRequest

LINE_S = 30.0
"""Interval between progress lines when stderr is not a terminal."""

out = Console()
err = Console(stderr=True)


def say(line: str) -> None:
    """Writes one line to stdout as it is: neither wrapped nor coloured but for its own markup."""
    out.print(line, highlight=False, soft_wrap=True)


def warn(line: str) -> None:
    """Writes one line to stderr."""
    err.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)


def mistake(message: str) -> None:
    """Writes the one line of an error to stderr."""
    err.print(f"[bold red]dlp:[/] {escape(message)}", highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Write one JSON value and a newline to stdout, unstyled: safe to pipe."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def progress(title: str, *, total: float | None = None) -> Iterator[ProgressBar]:
    """A progress bar on stderr that disappears when done; a line every half minute if stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        yield ProgressBar(bar, bar.add_task(title, total=total))


class ProgressBar:
    """One task of a rich progress display."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task
        self._last_line = time.monotonic()

    def report(self, done: int, total: int, *, title: str | None = None) -> None:
        """The library's progress callback."""
        self.update(done, total=total, title=title)

    def pause(self) -> None:
        """Take the bar off the screen, so that the user can be asked something. The next update shows it again."""
        self._bar.stop()

    def update(self, completed: float, *, total: float | None = None, title: str | None = None) -> None:
        fields: dict[str, Any] = {"completed": completed}
        if total is not None:
            fields["total"] = total
        if title is not None:
            fields["description"] = title
        self._bar.start()
        self._bar.update(self._task, **fields)
        if self._bar.disable and time.monotonic() - self._last_line > LINE_S:
            self._last_line = time.monotonic()
            task = self._bar.tasks[self._task]
            of = "" if task.total is None else f" of {task.total:,.0f}"
            err.print(f"  … {task.description}: {completed:,.0f}{of}", highlight=False)


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show one step of a longer job on stderr: a spinner while it runs, its duration when done."""
    began = time.monotonic()
    with err.status(title) as status:
        if not err.is_terminal:
            err.print(f"  … {title}", highlight=False)
        yield Step(title, status)
    err.print(f"  [green]✓[/] {title} [dim]{time.monotonic() - began:.1f} s[/]", highlight=False)


class Step:
    """A running step; `say` shows what it is doing."""

    def __init__(self, title: str, status: Status) -> None:
        self._title = title
        self._status = status

    def say(self, detail: str) -> None:
        self._status.update(f"{self._title}: {detail}")


def device(requested: str | None, *, default: str | None = None, mps: bool = False) -> str:
    """The device a command computes on: the requested one; by default `default`, or else CUDA if available. `mps`
    allows Apple's GPUs. Raises InvalidRequest."""
    import torch

    if requested is None:
        return default or ("cuda" if torch.cuda.is_available() else "cpu")
    allowed = ("cpu", "cuda", "mps") if mps else ("cpu", "cuda")
    if requested not in allowed:
        raise InvalidRequest(f"--device is {requested!r}; it must be {' or '.join(allowed)}")
    if requested == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("--device is 'cuda', but this machine has no CUDA device; use cpu")
    if requested == "mps" and not torch.backends.mps.is_available():
        raise InvalidRequest("--device is 'mps', but this machine has no Apple GPU that torch can use; use cpu")
    return requested


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
