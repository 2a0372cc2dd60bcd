"""A console in front of the real API over the demo bank, without Ray and without a model, and a browser."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from benchmarks.measure import browser
from deployments.console.app import create_console
from deployments.console.server import serving
from deployments.console.settings import ConsoleSettings
from deployments.http.access import ANONYMOUS, TOKEN_VARIABLE
from deployments.http.ids import issue
from dlp_core.bank.feedback import AdapterShare, KeptRequest
from dlp_core.bank.publish import publish
from dlp_core.ports import free_ports
from dlp_core.store.opening import open_store
from tests.support.console import server
from tests.support.evaluations import two_evaluations
from tests.support.paths import ROOT
from tests.support.waiting import HANG_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TOKEN = "admin-token-of-the-tests"
DEMO = ROOT / "examples" / "bank"
KEPT = [
    KeptRequest(
        id=issue("chatcmpl", ANONYMOUS),
        created=time.time(),
        key="",
        route="/v1/chat/completions",
        text=text,
        mix=(AdapterShare(adapter=adapter, weight=1.0),),
        reason="routed",
        confidence=confidence,
        bank="one",
        router="one",
        status=200,
        error_code=None,
        total_seconds=0.5,
        decide_seconds=0.001,
        first_token_seconds=0.1,
    )
    for text, adapter, confidence in [
        ("the tenth of May as a date", "iso_date", 0.9),
        ("list all files", "text_to_sql", 0.4),
        ("hi", "cron", 0.6),
        ("list all files", "text_to_sql", 0.4),
    ]
]

OWN = "http://127.0.0.1:8001"
"""Where a console of `http` is."""
Open = Callable[..., TestClient]


@pytest.fixture
def http() -> Iterator[Open]:
    """Makes consoles without a server in between, each from its settings."""
    with ExitStack() as opened:
        yield lambda url, **settings: opened.enter_context(
            TestClient(create_console(ConsoleSettings(url, **settings)), base_url=OWN)
        )


@dataclass
class Console:
    """Two published banks, of which `two`, without the adapter cron, serves."""

    url: str
    store: str
    without_cron: Path


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    store = str(tmp_path / "store")
    publish(open_store(store), DEMO, version="one")
    without_cron = _without(tmp_path / "bank", "cron")
    app = server(store, tmp_path / "cache", kept=KEPT)
    ports = free_ports(2)
    with serving(app, port=ports[0]) as url:
        settings = ConsoleSettings(url, admin_token=TOKEN, reports=reports(tmp_path / "reports"))
        with serving(create_console(settings, every_s=0.2), port=ports[1]) as address:
            yield Console(address, store, without_cron)


def _without(folder: Path, adapter: str) -> Path:
    """The demo bank without an adapter; its router is left out, which knows that one."""
    shutil.copytree(DEMO / "adapters", folder / "adapters", ignore=lambda _, names: {adapter} & set(names))
    shutil.copy(DEMO / "bank.json", folder)
    return folder


def reports(folder: Path) -> Path:
    """Results of two banks on one suite, of which the second lost a task, in the shape that `dlp eval` writes."""
    for number, results in enumerate(two_evaluations()):
        path = folder / str(number) / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(results.model_dump_json())
    (folder / "other.json").write_text("[1, 2]")
    (folder / "damaged.json").write_text(json.dumps({"suite": {}, "bank": {}, "arms": []}))
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """For one file: Playwright's event loop runs on this thread until then, and asynchronous tests need their own."""
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.chromium() as found:
        yield found


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of a fresh profile. What the page itself reports as an error fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    context.set_default_timeout(1000 * HANG_S)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    found = context.new_page()
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    yield found
    context.close()
    assert problems == []
