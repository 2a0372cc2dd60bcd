"""Silence for transformers: hides progress bars, advice and deprecation warnings that the user cannot act on."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


def quiet_imports() -> None:
    """Silence what libraries log while transformers imports them, from now on: torchao's kernels for other machines,
    and what it does to torch."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers and peft inside the block; errors propagate. Not thread-safe: the settings are global."""
    from transformers.utils import logging

    verbosity, bars_enabled = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # GGUF conversion shows a plain tqdm bar, which no setting turns off.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_enabled:
            logging.enable_progress_bar()
