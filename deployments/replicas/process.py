"""The library's log lines, in the replica's log file and with the id of the request they belong to.

dlp_core logs to `dlp_core.*`, which nobody listens to in a Ray worker; Serve's logger writes the files under
/tmp/ray/session_latest/logs/serve and adds the request id of the code that runs.
"""

from __future__ import annotations

import logging


def join_library_log() -> None:
    """Call in a replica: Serve has set its logger up by then."""
    library, serve = logging.getLogger("dlp_core"), logging.getLogger("ray.serve")
    library.parent, library.propagate = serve, True
