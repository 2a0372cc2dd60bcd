"""The console in front of the served application: what only that can show of it."""

from __future__ import annotations

import pytest

from benchmarks.measure import browser
from deployments.console.app import create_console
from deployments.console.server import serving
from deployments.console.settings import ConsoleSettings
from dlp_core.ports import free_port
from examples.tiny.build import TASKS
from tests.support.application import ADMIN_TOKEN, Application
from tests.support.waiting import HANG_S


def test_tokens_of_the_engine_are_coloured_and_the_store_has_its_versions(app: Application) -> None:
    if reason := browser.missing():
        pytest.skip(reason)
    settings = ConsoleSettings(app.url, admin_token=ADMIN_TOKEN)
    with serving(create_console(settings), port=free_port()) as address, browser.chromium() as chromium:
        page = chromium.new_page()
        page.set_default_timeout(1000 * HANG_S)
        page.goto(f"{address}/playground")
        page.get_by_label("What answers on side 1").select_option("sql")
        page.get_by_label("Prompt", exact=True).fill("show all users")
        page.keyboard.press("Control+Enter")
        page.get_by_role("region", name="Side 1").locator(".facts").get_by_text("one").wait_for()
        answer = page.get_by_role("log", name="Answer 1")
        tokens = answer.locator(".token").all()
        assert len(tokens) > 1
        assert {token.get_attribute("data-mix") for token in tokens} == {"sql=1"}
        assert all(token.get_attribute("data-p") for token in tokens[:-1])  # half a character at the end has none

        page.goto(f"{address}/bank")
        page.locator("#versions [data-version=one]").get_by_text("serves").wait_for()
        assert page.locator("#adapters tbody tr").count() == len(TASKS)
