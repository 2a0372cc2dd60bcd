"""What the process of a replica is set up with: the library's log lines in its log, and imports that stay."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager


def join_library_log() -> None:
    """Sends the library's log lines to the replica's log file, with the id of the request they belong to.

    dlp_core logs to `dlp_core.*`, which nobody listens to in a Ray worker; Serve's logger writes the files under
    /tmp/ray/session_latest/logs/serve and adds the request id of the code that runs. Call in a replica: Serve has set
    its logger up by then.
    """
    library, serve = logging.getLogger("dlp_core"), logging.getLogger("ray.serve")
    library.parent, library.propagate = serve, True


@contextmanager
def lasting_imports() -> Iterator[None]:
    """For a block of imports of a whole machine learning stack. Modules stay as long as the process, so the garbage
    collector does not run in the block, and never looks at what is there at its end: torch and transformers come in a
    quarter sooner."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
