"""Sends the library's log lines to the replica's log file, with the id of the request they belong to.

dlp_core logs to `dlp_core.*`, which has no handler in a Ray worker. Serve's logger writes the files under
/tmp/ray/session_latest/logs/serve and adds the current request id.
"""

from __future__ import annotations

import logging


def join_library_log() -> None:
    """Attach the library's logger to Serve's. Call it in a replica, where Serve has configured its logger."""
    library, serve = logging.getLogger("dlp_core"), logging.getLogger("ray.serve")
    library.parent, library.propagate = serve, True
