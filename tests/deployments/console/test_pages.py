"""The console as a person uses it, in a headless Chromium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dlp_core.bank.feedback import Feedback
from dlp_core.bank.kept import FEEDBACK, read, today
from dlp_core.bank.reading import load_manifest
from dlp_core.eval.results import save
from dlp_core.store.opening import open_store
from tests.deployments.console.conftest import KEPT, Console
from tests.support.evaluations import two_evaluations
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

pytestmark = pytest.mark.slow

PAGES = ("playground", "bank", "traffic", "review", "evaluate")
TWO = "Cron expression for every weekday at 7:30 am. What is the capital of France"


def opened(page: Page, console: Console, name: str) -> None:
    page.goto(f"{console.url}/{name}")
    page.locator(f"#page[data-ready={name}]").wait_for()


def text_of(element: Locator) -> str:
    """What is shown, on one line."""
    return " ".join(element.inner_text().split())


def side(page: Page, number: int) -> Locator:
    return page.get_by_role("region", name=f"Side {number}")


def serving(console: Console) -> str:
    return load_manifest(open_store(console.store)).version


# --- playground


def ask(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Control+Enter")
    page.locator("#run:disabled").wait_for()
    page.locator("#run:not(:disabled)").wait_for()


def test_an_answer_is_coloured_by_its_mix_and_explained(page: Page, console: Console) -> None:
    opened(page, console, "playground")
    ask(page, TWO)
    answer = page.get_by_role("log", name="Answer 1")
    assert text_of(answer) == TWO
    tokens = answer.locator(".token")
    assert {token.get_attribute("data-mix") for token in tokens.all()} == {"cron=1"}
    shown = side(page, 1)
    assert text_of(shown.locator(".legend")) == "cron 1.00"
    hue = page.evaluate("import('/static/colours.js').then((colours) => colours.solid('cron'))")
    assert hue.startswith("oklch(")
    assert hue.split()[-1].rstrip(")") in tokens.first.get_attribute("style") or ""
    assert "Cron" in text_of(shown.locator(".words"))
    assert "cron" in text_of(shown.locator(".probabilities"))
    assert "confidence" in text_of(shown.locator(".facts"))


def test_a_sentence_under_another_mix_has_another_colour(page: Page, console: Console) -> None:
    opened(page, console, "playground")
    page.get_by_label("sentence", exact=True).check()
    ask(page, TWO)
    tokens = page.get_by_role("log", name="Answer 1").locator(".token").all()
    mixes = [token.get_attribute("data-mix") for token in tokens]
    assert mixes == ["cron=1"] * 8 + [""] * 6
    backgrounds = {token.evaluate("(element) => getComputedStyle(element).backgroundImage") for token in tokens}
    assert len(backgrounds) == 2
    assert text_of(side(page, 1).locator(".legend")) == "cron 1.00 plain backbone"


def test_two_answers_stand_side_by_side(page: Page, console: Console) -> None:
    opened(page, console, "playground")
    page.get_by_label("Two answers side by side").check()
    page.get_by_label("What answers on side 2").select_option("shell")
    ask(page, "Cron expression for every weekday")
    sides = [side(page, number) for number in (1, 2)]
    assert [text_of(shown.locator(".legend")) for shown in sides] == ["cron 1.00", "shell 1.00"]
    boxes = [shown.bounding_box() for shown in sides]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_a_request_is_copied_as_curl_and_as_python(page: Page, console: Console) -> None:
    opened(page, console, "playground")
    page.get_by_label("Prompt", exact=True).fill('it\'s "7:30"')
    page.get_by_role("button", name="Copy as curl").first.click()
    page.get_by_text("curl copied").wait_for()
    curl = page.evaluate("navigator.clipboard.readText()")
    assert "/v1/chat/completions" in curl
    assert "it'\\''s" in curl
    page.get_by_role("button", name="Copy as Python").first.click()
    page.get_by_text("Python copied").wait_for()
    code = page.evaluate("navigator.clipboard.readText()")
    compile(code, "snippet", "exec")
    assert 'extra_body={"dlp": {"top_p": 0.9, "max_adapters": 3}}' in code


def test_an_error_is_shown_where_the_answer_would_be(page: Page, console: Console) -> None:
    opened(page, console, "playground")
    page.get_by_label("Prompt", exact=True).fill("x" * 30_000)
    page.locator("#run").click()
    assert "20000 bytes" in text_of(page.get_by_role("log", name="Answer 1").locator(".error"))


# --- bank


def test_the_bank_is_described(page: Page, console: Console) -> None:
    opened(page, console, "bank")
    assert text_of(page.locator("#serving")) == "one"
    row = page.locator("#adapters tbody tr").first
    assert text_of(row).startswith("cron ")
    entry = load_manifest(open_store(console.store)).adapters[0]
    for part in (entry.version, str(entry.rank), " ".join(entry.modules)):
        assert part in text_of(row)


def test_publish_compare_roll_back_and_pin(page: Page, console: Console) -> None:
    opened(page, console, "bank")
    page.get_by_label("folder").fill(str(console.without_cron))
    page.get_by_label("version", exact=True).fill("two")
    page.get_by_role("button", name="Publish").click()
    page.get_by_role("dialog").get_by_role("button", name="Publish").click()
    page.locator("#serving", has_text="two").wait_for()
    assert serving(console) == "two"
    assert "cron" not in text_of(page.locator("#adapters"))

    earlier = page.locator("[data-version=one]")
    earlier.get_by_role("button", name="Diff").click()
    assert "+ cron" in text_of(page.locator(".diff"))
    earlier.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert serving(console) == "two"
    earlier.get_by_role("button", name="Roll back").click()
    assert "+ cron" in text_of(page.get_by_role("dialog"))
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.locator("#serving", has_text="one").wait_for()
    assert serving(console) == "one"

    page.locator("[data-version=two]").get_by_role("button", name="Pin").click()
    page.locator("[data-version=two]", has_text="pinned").wait_for()


def test_what_the_server_refuses_is_said(page: Page, console: Console) -> None:
    opened(page, console, "bank")
    page.get_by_label("folder").fill("/nowhere")
    page.get_by_role("button", name="Publish").click()
    page.get_by_role("dialog").get_by_role("button", name="Publish").click()
    assert "/nowhere" in text_of(page.locator(".notice.failed"))
    assert serving(console) == "one"


# --- traffic


def test_requests_show_in_the_traffic(page: Page, console: Console) -> None:
    opened(page, console, "playground")
    ask(page, "Cron expression for every weekday at 7:30 am")
    page.get_by_role("navigation").get_by_role("link", name="Traffic").click()
    figure = page.locator("figure", has_text="Requests by adapter")
    figure.locator("svg rect").first.wait_for()
    assert "cron 1" in text_of(figure)
    page.get_by_role("navigation").get_by_role("link", name="Bank").click()
    assert "1 of 1 replica" in text_of(page.locator("#adapters tbody tr").first)


# --- review


def test_routes_are_corrected_by_keyboard_alone(page: Page, console: Console) -> None:
    opened(page, console, "review")
    items = page.locator(".item")
    assert [text_of(item.locator(".text")) for item in items.all()] == [
        "list all files",
        "hi",
        "the tenth of May as a date",
    ]
    names = [adapter.name for adapter in load_manifest(open_store(console.store)).adapters]
    page.keyboard.press(str(names.index("shell") + 1))
    page.keyboard.press("n")
    page.keyboard.press("r")
    page.get_by_text("3 of 3 reviewed").wait_for()
    page.locator(".item.done").nth(2).wait_for()
    store = open_store(console.store)
    written = wait_for(
        lambda: len(found := read(store, FEEDBACK, Feedback, since=today())) == len(KEPT) and found, "feedback"
    )
    given = {entry.request_id: entry for entry in written}
    opinions = [(given[one.id].rating, given[one.id].corrects, given[one.id].adapter) for one in KEPT]
    shell = ("down", True, "shell")  # asked twice, reviewed once
    assert opinions == [("up", False, None), shell, ("down", True, None), shell]
    opened(page, console, "review")
    page.get_by_text("All reviewed").wait_for()


# --- evaluate


def test_what_the_gate_said_of_a_version_is_beside_it(page: Page, console: Console) -> None:
    for results in two_evaluations(("zero", "one")):
        save(open_store(console.store), results)
    opened(page, console, "bank")
    assert "failed \u221230.0 to zero" in text_of(page.locator("#versions tr[data-version=one]"))
    page.get_by_role("navigation").get_by_role("link", name="Evaluate").click()
    page.get_by_text("the bank's store").wait_for()
    rows = page.locator("table.stack").first.locator("tbody tr")
    assert rows.count() == 4, "those of the folder too"


def test_evaluations_are_compared_as_the_gate_compares(page: Page, console: Console) -> None:
    opened(page, console, "evaluate")
    newest = page.locator("table.stack tbody tr").first
    assert "bank-1" in text_of(newest)
    assert "failed \u221230.0 to bank-0 worse: sql" in text_of(newest)
    assert "damaged.json" in text_of(page.locator("main"))
    assert "other.json" not in text_of(page.locator("main"))


# --- every page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_window_and_ask_nobody_else(chromium: Browser, console: Console, width: int, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    asked: list[str] = []
    try:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in PAGES:
            opened(page, console, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    finally:
        context.close()
    assert [url for url in asked if not url.startswith(console.url)] == []


def test_pages_are_reached_by_keyboard(page: Page, console: Console) -> None:
    opened(page, console, "bank")
    page.keyboard.press("Tab")
    assert text_of(page.locator(":focus")) == "Skip to the page"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert text_of(page.locator(":focus")) == "Bank"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#page[data-ready=traffic]").wait_for()
    assert page.url == f"{console.url}/traffic"
    page.go_back()
    page.locator("#page[data-ready=bank]").wait_for()


def test_the_theme_is_kept(page: Page, console: Console) -> None:
    opened(page, console, "bank")
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.get_by_role("button", name="Light or dark").click()
    after = page.evaluate(background)
    assert after != before
    page.reload()
    assert page.evaluate(background) == after


# --- a server that has more


ROLLOUT = {
    "serving": {"version": "one", "since": "2026-11-27T08:00:00+00:00", "previous": None},
    "canary": {
        "version": "two",
        "id": "5f0c2a9d11be",
        "share": 0.05,
        "sticky_by": "user",
        "state": "running",
        "counts": {
            "serving": {"requests": 1904, "rated": 40, "negative": 4, "error": 2},
            "canary": {"requests": 101, "rated": 2, "negative": 0, "error": 0},
        },
        "test": {"evidence_log10": -0.05, "alarm_log10": 2.0, "signals_log10": {"negative": -0.09}},
    },
    "canary_end": None,
    "shadow": None,
}


def test_a_canary_is_shown_where_the_server_has_one(page: Page, console: Console) -> None:
    """Adds to the server's answers what one with a canary says."""
    asked: list[str] = []

    def bank(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "rollout": ROLLOUT})

    def openapi(route: Route) -> None:
        described = route.fetch().json()
        described["paths"] |= {"/v1/bank/canary": {}, "/v1/bank/shadow": {}}
        described["components"]["schemas"]["DLPOptions"]["properties"]["bank"] = {}
        route.fulfill(json=described)

    def promote(route: Route) -> None:
        asked.append(route.request.post_data or "")
        route.fulfill(json=ROLLOUT)

    page.route("**/api/v1/bank", bank)
    page.route("**/api/openapi.json", openapi)
    page.route("**/api/v1/bank/promote", promote)
    opened(page, console, "bank")
    panel = page.locator("#canary")
    assert "share5.0 %" in text_of(panel)
    assert "serving 1904 40 4 10.0 % 2 0.1 %" in text_of(panel)
    panel.get_by_role("button", name="Promote").click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    page.get_by_text("two serves").wait_for()
    assert asked == ["{}"]
    opened(page, console, "playground")
    assert "canary two" in text_of(page.get_by_label("Bank of side 1"))


def test_without_a_canary_nothing_speaks_of_one(page: Page, console: Console) -> None:
    opened(page, console, "bank")
    assert page.locator("#canary").count() == 0
    assert page.get_by_role("button", name="Canary").count() == 0
    opened(page, console, "playground")
    assert page.get_by_label("Bank of side 1").count() == 0
