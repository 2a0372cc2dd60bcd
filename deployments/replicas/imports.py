"""Imports of a whole machine learning stack, out of the garbage collector's way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """For a block of imports. Modules stay as long as the process, so the collector does not run in the block, and
    never looks at what is there at its end: torch and transformers come in a quarter sooner."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
