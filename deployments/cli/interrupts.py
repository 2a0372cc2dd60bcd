"""How a long training ends on Ctrl-C and SIGTERM: with a checkpoint, one line, and the command that goes on."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer
from rich.markup import escape

from deployments import terminal
from dlp_core.store.checkpoints import Interrupted, resumable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether the user wants the training to end; asked between its steps.

    Before it is first asked there is nothing to keep, so a signal ends the command at once; so does a second signal.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGINT
        self._asked = self._requested = False

    def __call__(self) -> bool:
        self._asked = True
        return self._requested

    def handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number)
        if self._requested or not self._asked:
            raise KeyboardInterrupt
        self._requested = True
        terminal.err.print("stopping after this step; once more ends at once", highlight=False, soft_wrap=True)


@contextmanager
def resumable_training(out: Path, *, option: str | None = "--resume") -> Iterator[Stop]:
    """Runs a training that writes its checkpoint beside `out`, as `store.checkpoints` does, and goes on from it with
    this `option`; None for a command that does so by itself.

    Interrupted, it ends with one line on stderr and exit code 128 + signal: 130 for Ctrl-C.
    """
    stop = Stop()
    previous = [signal.signal(number, stop.handle) for number in _SIGNALS]
    try:
        yield stop
    except Interrupted as interrupted:
        _end(interrupted.done, interrupted.checkpoint, stop, option)
    except KeyboardInterrupt:
        _end("ended at once", resumable(out), stop, option)
    finally:
        for number, handler in zip(_SIGNALS, previous, strict=True):
            signal.signal(number, handler)


def _end(done: str, checkpoint: Path | None, stop: Stop, option: str | None) -> None:
    if checkpoint is None:
        end = "there is no checkpoint yet"
    else:
        words = [*sys.argv[1:], *([] if option is None or option in sys.argv else [option])]
        end = f"checkpoint in {checkpoint}; go on with: dlp {shlex.join(words)}"
    terminal.err.print(f"[bold]dlp:[/] {escape(f'{done}; {end}')}", highlight=False, soft_wrap=True)
    raise typer.Exit(128 + stop.signal)
