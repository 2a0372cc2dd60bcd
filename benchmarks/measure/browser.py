"""The Chromium of this machine, driven by Playwright, which downloads none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "DLP_TEST_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing() -> str | None:
    """Why no browser can be driven here; None if one can."""
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install 'dlp-serve[dev]'"
    if _executable() is None:
        return f"there is no Chromium on this machine ({', '.join(NAMES)}); {VARIABLE} names one elsewhere"
    return None


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. Raises InvalidRequest if there is none."""
    if reason := missing():
        raise InvalidRequest(reason)
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        # as root, which containers run tests as, Chromium has no sandbox
        browser = playwright.chromium.launch(executable_path=_executable(), chromium_sandbox=os.getuid() != 0)
        try:
            yield browser
        finally:
            browser.close()


def _executable() -> str | None:
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)
