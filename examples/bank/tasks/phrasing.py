"""Phrasings of the same request: instruction before, after or missing; polite, terse, shouted, unpunctuated."""

from __future__ import annotations

import random
from collections.abc import Sequence

# cumulative probability, form
_FORMS = (
    (0.40, "{instruction}: {text}"),
    (0.60, "{instruction}:\n{text}"),
    (0.72, "{instruction}\n\n{text}"),
    (0.80, "{instruction} - {text}"),
    (0.92, "{text}\n{instruction}"),
    (1.00, "{text} ({instruction})"),
)


def ask(rng: random.Random, instructions: Sequence[str], text: str, *, bare: float) -> str:
    """A prompt for `text`: with one of `instructions` or, with probability `bare`, without any.

    Only the instruction's case varies, because answers copy names from `text` verbatim.
    """
    if rng.random() < bare:
        return text
    instruction = _tone(rng, rng.choice(instructions))
    body = text if rng.random() < 0.85 else f'"{text}"'
    draw = rng.random()
    form = next(form for below, form in _FORMS if draw < below)
    return form.format(instruction=instruction, text=body)


def _tone(rng: random.Random, instruction: str) -> str:
    draw = rng.random()
    if draw < 0.12:
        instruction = "please " + instruction[0].lower() + instruction[1:]
    elif draw < 0.18:
        instruction = rng.choice(("can you ", "could you ", "I need you to ", "hey, ", "quick: ")) + (
            instruction[0].lower() + instruction[1:]
        )
    draw = rng.random()
    if draw < 0.30:
        return instruction.lower()
    if draw < 0.34:
        return instruction.upper()
    return instruction


def loosen(rng: random.Random, sentence: str) -> str:
    """The sentence with its final punctuation kept, dropped or turned into an exclamation mark."""
    draw = rng.random()
    if draw < 0.30:
        return sentence.rstrip(".")
    return sentence.rstrip(".") + "!" if draw < 0.36 else sentence
