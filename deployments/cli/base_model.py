"""The base model that a command names, made available in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deployments import terminal

if TYPE_CHECKING:
    from dlp_core.bank.served_base import ServedBase


def fetched(location: str, *, weights: bool = True) -> Path:
    """The folder of a base model, fetched with a progress bar if it is not on this machine. Without `weights`, they
    need not be. Raises what dlp_core.store.model_location.locate raises."""
    from dlp_core.store.model_location import locate

    with terminal.progress(f"fetch {location}") as bar:
        return locate(location, weights=weights, progress=bar.report)


@contextmanager
def served(folder: Path) -> Iterator[ServedBase]:
    """The model in a folder, to compare a bank with; a progress bar shows its weights being read for the first time."""
    from dlp_core.bank.served_base import ServedBase

    with terminal.progress(f"read the weights in {folder}") as bar:
        yield ServedBase.at(folder, progress=partial(bar.report))
