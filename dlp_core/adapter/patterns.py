"""The patterns of `rank_pattern` and `alpha_pattern`, matched as PEFT does it but within a time limit.

PEFT's rule (peft/utils/other.py, get_pattern_key): the first key that matches the end of a module's path wins. A
pattern comes with an adapter, so it may be one that backtracks for ever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import regex

MAX_CHARACTERS = 1000
MATCHING_SECONDS = 2.0
"""For all patterns of an adapter over all its modules, which take a few milliseconds."""


class Patterns:
    """Values by pattern, and a default. Raises ValueError, naming the pattern, for one that cannot be used."""

    def __init__(self, values: Any, default: Any) -> None:
        """`values` maps pattern to value, as read from JSON."""
        if not isinstance(values, Mapping):
            raise ValueError("must be an object of pattern -> number")
        self._compiled = [(key, _compile(key), value) for key, value in values.items()]
        self._default = default
        self._left = MATCHING_SECONDS

    def value(self, module: str) -> Any:
        """The value for a module's path. Raises ValueError if matching takes too long."""
        for key, pattern, value in self._compiled:
            began = time.monotonic()
            try:
                matches = pattern.match(module, timeout=max(self._left, 1e-3), concurrent=True)
            except TimeoutError:
                raise ValueError(f"pattern {key[:80]!r} takes too long to match {module!r}; name the modules") from None
            self._left -= time.monotonic() - began
            if matches:
                return value
        return self._default


def _compile(key: str) -> regex.Pattern[str]:
    if len(key) > MAX_CHARACTERS:
        raise ValueError(f"pattern {key[:80]!r}... has more than {MAX_CHARACTERS} characters")
    try:
        return regex.compile(rf"(.*\.)?({key})$")
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"bad pattern {key[:80]!r}: {error}") from None
