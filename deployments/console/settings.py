"""What a console is told: where the server is, what it may present there, and who may open the page."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dlp_core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """Checked when it is made. Raises InvalidRequest for an address that is none, and for one that others can reach
    without a password."""

    url: str
    """Of the server, without a path."""
    key: str | None = field(default=None, repr=False)
    """An API key, for generations; without it they go with the admin token, if there is one."""
    admin_token: str | None = field(default=None, repr=False)
    """For what changes or shows more than a caller's own; without it the key is sent."""
    password: str | None = field(default=None, repr=False)
    """What the browser must give, as HTTP Basic with any user name."""
    host: str = "127.0.0.1"
    reports: Path | None = None
    """Folder with results of `dlp eval`, however deep."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") not in ("", "v1"):
            raise InvalidRequest(f"--url is {self.url!r}; it must be a server's address, such as http://127.0.0.1:8000")
        object.__setattr__(self, "url", f"{parts.scheme}://{parts.netloc}")
        if self.reports is not None and not self.reports.is_dir():
            raise InvalidRequest(f"--reports: there is no folder {self.reports}; `dlp eval --out` makes one")
        if not is_loopback(self.host) and not self.password:
            raise InvalidRequest(
                f"on --host {self.host} others could open the console and use what it may; "
                "set DLP_CONSOLE_PASSWORD, or stay on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
