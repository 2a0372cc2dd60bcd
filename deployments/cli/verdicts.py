"""What commands print about adapters that are served: how they were understood, and what their owner should look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.markup import escape

from deployments import terminal
from dlp_core.adapter.examination import Verdict

_NAMED = 3
"""Adapters that a line names."""


def print_verdicts(verdicts: Sequence[Verdict], *, json: bool) -> None:
    """Warnings on stderr; with text output also notes and what was left out, on stdout. One line for each thing to
    say, however many adapters it is about."""
    if not json:
        for text, names in _by_text((verdict.name, verdict.notes) for verdict in verdicts):
            terminal.say(f"note: {escape(text)} ({_some(names)})")
        files = _by_text((verdict.name, verdict.left_out) for verdict in verdicts)
        if files:
            listed = [name if len(verdicts) == 1 else f"{name} ({len(owners):,})" for name, owners in files]
            terminal.say(f"left out: {escape(_some(listed, 12))}")
    for text, names in _by_text((verdict.name, verdict.warnings) for verdict in verdicts):
        terminal.warn(f"{text} ({_some(names)})")


def as_lines(verdicts: Iterable[Verdict]) -> dict[str, list[str]]:
    """Notes, warnings and what was left out of many adapters, for JSON."""
    listed = list(verdicts)
    return {
        "notes": [f"adapter {verdict.name!r}: {note}" for verdict in listed for note in verdict.notes],
        "warnings": [f"adapter {verdict.name!r}: {warning}" for verdict in listed for warning in verdict.warnings],
        "left_out": [f"{verdict.name}/{name}" for verdict in listed for name in verdict.left_out],
    }


def _by_text(said: Iterable[tuple[str, Sequence[str]]]) -> list[tuple[str, list[str]]]:
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, texts in said:
        for text in texts:
            names[text].append(name)
    return list(names.items())


def _some(names: Sequence[str], count: int = _NAMED) -> str:
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count:,} more"
