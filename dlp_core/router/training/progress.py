"""What a router's training reports, and where it may stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dlp_core.store.checkpoints import Checkpoints, Interrupted
from dlp_core.store.transfers import Progress

CHECKPOINT_STEPS = 100
"""Steps between checkpoints, and between losses of held-back rows."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a training is, in all and in its phase. Losses and speed are those of phases that train something."""

    fraction: float
    """Of all work, by what phases usually take."""
    phase: str
    loss: float | None = None
    held_back_loss: float | None = None
    """The latest."""
    texts_per_s: float | None = None
    seconds_left: float | None = None
    """Of the phase."""


Report = Callable[[TrainProgress], None]

StepReport = Callable[[int, int, float, float | None], None]
"""Called with steps done, all steps, the loss, and that of held-back rows if it was just computed."""


def unreported(progress: TrainProgress) -> None:
    """A Report that reports nothing."""


class Watch:
    """Reports, and ends a phase with Interrupted where the training is asked to stop."""

    def __init__(self, report: Report = unreported, checkpoints: Checkpoints | None = None) -> None:
        """Without `checkpoints`, nothing is kept and nothing stops it."""
        self._report = report
        self._last = TrainProgress(0.0, "start")
        self.checkpoints = checkpoints or Checkpoints(None, {})

    def part(self, phase: str, start: float, end: float) -> Progress:
        """For a phase that is from `start` to `end` of all the work."""

        def report_part(done: int, total: int) -> None:
            self._tell(TrainProgress(start + (end - start) * done / max(total, 1), phase))
            if self.checkpoints.stopping():
                raise self.interrupted()

        return report_part

    def steps(self, phase: str, start: float, end: float, texts: int) -> StepReport:
        """For a phase that trains, with so many `texts` a step. It saves its state and stops by itself."""
        began = time.perf_counter()
        first: int | None = None  # not 0 where the phase was resumed
        held_back: float | None = None

        def report_step(step: int, steps: int, loss: float, held_back_loss: float | None) -> None:
            nonlocal first, held_back
            first = step - 1 if first is None else first
            held_back = held_back if held_back_loss is None else held_back_loss
            rate = (step - first) / (time.perf_counter() - began)
            fraction = start + (end - start) * step / steps
            self._tell(TrainProgress(fraction, phase, loss, held_back, texts * rate, (steps - step) / rate))

        return report_step

    def interrupted(self) -> Interrupted:
        """To be raised where a phase stops; says how far training came."""
        return self.checkpoints.interrupted(
            f"stopped in phase {self._last.phase!r}, {self._last.fraction:.0%} of the way"
        )

    def _tell(self, progress: TrainProgress) -> None:
        self._last = progress
        self._report(progress)
