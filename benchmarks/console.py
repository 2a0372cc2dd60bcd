"""What the pages of a console cost a browser, and their pictures for docs/console.md.

    .venv/bin/python -m benchmarks.console --url http://127.0.0.1:8001 [--out FILE] [--pictures docs/console]

Drives the Chromium of this machine against a running console, such as `make demo` starts: each page at 1280 and 390
pixels, in a fresh profile. Fails if a page asks another host for anything, or is wider than the window. `ready_ms` is
from the navigation until the page says that it is complete, with the answers of its server.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from benchmarks.measure.browser import chromium
from benchmarks.measure.harness import report, run
from dlp_core.errors import DLPError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = ("playground", "bank", "traffic", "review", "evaluate")
WIDE, NARROW = (1280, 860), (390, 844)
PROMPT = "Set a timer for the third of March 2021 at 7:30"
TRANSFERRED = """() => {
  const all = performance.getEntriesByType("resource");
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return {
    first_paint_ms: Math.round(paint ? paint.startTime : 0),
    resources: all.length + 1,
    bytes: all.reduce((sum, one) => sum + one.decodedBodySize, 0),
    width: document.documentElement.scrollWidth,
  };
}"""
QUALITY = 82
_SUFFIXES = {("light", WIDE): "", ("dark", WIDE): "_dark", ("light", NARROW): "_narrow"}


class PageFailed(DLPError):
    """A page is not as promised."""


def main(
    url: Annotated[str, typer.Option(help="A running console.")] = "http://127.0.0.1:8001",
    out: Annotated[Path | None, typer.Option(help="JSON file of the result.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures of the pages, as WebP.")] = None,
) -> None:
    with chromium() as browser:
        rows = [measured(browser, url, name, size) for size in (WIDE, NARROW) for name in PAGES]
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            for scheme, size, names in (
                ("light", WIDE, PAGES),
                ("dark", WIDE, PAGES[:1]),
                ("light", NARROW, PAGES[:1]),
            ):
                for name in names:
                    image = _picture(browser, url, name, scheme, size)
                    _save(image, pictures / f"{name}{_SUFFIXES[scheme, size]}.webp")
    report("Pages of the console", rows, out=out)


def measured(browser: Browser, url: str, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Load a page once, in a fresh profile. Raises PageFailed if it asks another host or is wider than the window."""
    with _opened(browser, size, "light") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        began = time.perf_counter()
        _open(page, url, name)
        ready = time.perf_counter() - began
        found = page.evaluate(TRANSFERRED)
        elsewhere = [each for each in asked if not each.startswith((url, "data:"))]
    if elsewhere:
        raise PageFailed(f"{name} asks another host: {', '.join(elsewhere)}")
    if found["width"] > size[0]:
        raise PageFailed(f"{name} is {found['width']} pixels wide in a window of {size[0]}")
    return {"page": name, "window": size[0], "ready_ms": round(1000 * ready), **found}


def _picture(browser: Browser, url: str, name: str, scheme: str, size: tuple[int, int]) -> bytes:
    with _opened(browser, size, scheme) as page:
        _open(page, url, name)
        if name == "playground":
            page.get_by_label("Prompt", exact=True).fill(PROMPT)
            if size == WIDE:
                page.get_by_label("Two answers side by side").check()
            page.locator("#run").click()
            page.locator("#run:not(:disabled)").wait_for(timeout=120_000)
        page.mouse.move(0, 0)
        page.evaluate("() => document.activeElement?.blur()")
        return page.screenshot(full_page=name == "playground" and size == WIDE)


def _save(image: bytes, path: Path) -> None:
    Image.open(io.BytesIO(image)).save(path, quality=QUALITY, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", file=sys.stderr)


@contextmanager
def _opened(browser: Browser, size: tuple[int, int], scheme: str) -> Iterator[Page]:
    window = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=window, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    try:
        yield context.new_page()
    finally:
        context.close()


def _open(page: Page, url: str, name: str) -> None:
    page.goto(f"{url}/{name}")
    page.locator(f"#page[data-ready={name}]").wait_for(timeout=60_000)


if __name__ == "__main__":
    run(main)
