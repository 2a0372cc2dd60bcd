"""What the answers of an arm cost: tokens and seconds, from the answers that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from dlp_core.eval.journal import Answer
from dlp_core.eval.results import Cost


def cost_of(answers: Sequence[Answer]) -> Cost | None:
    """The cost of those of `answers` that were measured; None if none was."""
    measured = [
        (answer.prompt_tokens, answer.tokens, answer.seconds)
        for answer in answers
        if answer.prompt_tokens is not None and answer.seconds is not None
    ]
    if not measured:
        return None
    read, written, seconds = zip(*measured, strict=True)
    return Cost(
        answers=len(measured),
        prompt_tokens=sum(read),
        completion_tokens=sum(written),
        seconds=fmean(seconds),
        seconds_p95=float(np.quantile(seconds, 0.95)),
    )
