"""The report: one page that loads nothing, is safe with any text, and fits the number of tasks."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dlp_core.eval.report import render_plots, write_html, write_markdown
from dlp_core.eval.results import Example, Results, read
from tests.support.eval_results import make_results, uniform
from tests.support.paths import ROOT

RIGHT = {"plain": 1, "oracle": 8, "top-p=0.9": 7, "random": 2}
BIGBENCH = ROOT / "docs/bigbench26/results.json"


def page(results: Results, folder: Path) -> str:
    write_html(results, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def pictures(text: str) -> list[str]:
    return [base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", text)]


@pytest.mark.parametrize(("tasks", "names"), [(1, {"tasks"}), (4, {"tasks"}), (5, {"tasks", "radar"})])
def test_few_tasks_have_no_radar(tasks: int, names: set[str]) -> None:
    plots = {plot.name for plot in render_plots(make_results(uniform(tasks, 10, RIGHT)))}
    assert plots == {*names, "confusion"}


def test_a_page_begins_with_the_verdict_and_four_numbers(tmp_path: Path) -> None:
    text = page(make_results(uniform(3, 10, RIGHT)), tmp_path)
    body = text[text.index("<body>") :]
    assert body.index('class="verdict">On 30 prompts of 3 tasks, the routed bank answers 70%') < body.index("<h2>")
    assert body.split("<h2>")[0].count("<strong>") == 4
    assert "bank folder banks/&lt;b&gt;, unpublished (version abc)" in body
    assert "10 of each, so that one answer can move the score of a task by 10 points" in " ".join(body.split())


def test_a_page_loads_nothing_and_knows_dark_mode(tmp_path: Path) -> None:
    text = page(make_results(uniform(6, 10, RIGHT)), tmp_path)
    assert not re.search(r'(?:src|href|srcset)="(?!data:)|@import|url\(', text)
    assert "prefers-color-scheme: dark" in text
    drawn = pictures(text)
    assert len(drawn) == 6, "tasks, radar and confusion, for a page and for a phone"
    for svg in drawn:
        ElementTree.fromstring(svg)
        assert "prefers-color-scheme: dark" in svg
        used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg.split("</style>")[1]))
        dark = set(re.findall(r': (#[0-9a-f]{6})"\]', svg.split("</style>")[0]))
        assert used - {"#ffffff"} <= dark, "every colour has one for the dark"


def test_the_text_of_rows_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "</td><script>alert(1)</script>"
    example = Example(
        task="task0", input=evil, expected=f"{evil}2", outcome="better than the plain model", alike=1,
        answers={"plain": evil * 60, "oracle": "same", "top-p=0.9": "same", "random": "other"},
        scores={"plain": 0.0, "oracle": 1.0, "top-p=0.9": 1.0, "random": 0.25},
        adapters={"plain": [], "oracle": ["task0"], "top-p=0.9": ["task0"], "random": ["task1"]},
    )  # fmt: skip
    results = make_results(uniform(2, 10, RIGHT)).model_copy(update={"examples": [example]})
    text = page(results, tmp_path)
    assert "<script" not in text
    assert "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;2" in text
    assert evil.replace("<", "&lt;").replace(">", "&gt;") * 60 not in text, "long texts are cut"
    assert "routed bank: better than the plain model; 1 of 20 rows" in text
    assert "<th>routed bank, right adapter<br>" in text, "arms with the same answer are one line"
    assert re.findall(r'<td class="n [a-z]*">(\w+)</td>', text) == ["wrong", "right", "25"]


def test_time_and_tokens_of_every_arm_beside_plain(tmp_path: Path) -> None:
    results = make_results(uniform(2, 10, RIGHT))
    slower = results.arm("top-p=0.9").cost.model_copy(update={"seconds": 1.0})  # type: ignore[union-attr]
    arms = [arm.model_copy(update={"cost": slower}) if arm.name == "top-p=0.9" else arm for arm in results.arms]
    text = page(results.model_copy(update={"arms": arms}), tmp_path)
    table = text[text.index("<h2>Time and tokens</h2>") :].split("</table>")[0]
    cells = {
        row[0].split(" ")[0]: row[1:]
        for row in (re.findall(r"<td[^>]*>(.*?)</td>", line, re.S) for line in table.split("<tr>")[2:])
    }
    assert cells["plain"] == ["4", "50.0", "20.0", "0.50", "0.90", "1.00", "40.0", "1.00"]
    assert cells["top-p=0.9"] == ["4", "50.0", "20.0", "1.00", "0.90", "2.00", "20.0", "0.50"]
    assert "cpu with 1 thread, 4 requests at a time" in text
    assert "2.00 ms a prompt" in text


def test_results_of_older_versions_are_still_shown(tmp_path: Path) -> None:
    content = json.loads(BIGBENCH.read_bytes())
    assert "examples" not in content
    assert "rows" not in content
    results = read(BIGBENCH)
    text = page(results, tmp_path)
    assert "On 1,300 prompts of 26 tasks, the routed bank scores 40.2 of 100" in text
    for absent in ("Time and tokens", "rows and their answers", "Paired differences"):
        assert f"{absent}</h2>" not in text
    write_markdown(results, tmp_path)
    assert "All tasks at a glance" in (tmp_path / "report.md").read_text()
    radar = ElementTree.parse(tmp_path / "radar.svg")
    names = " ".join(node.text or "" for node in radar.iter("{http://www.w3.org/2000/svg}text"))
    assert "word sorting" in names


def test_rows_without_a_shared_task_are_not_compared(tmp_path: Path) -> None:
    results = make_results({"plain": {"a": [1.0]}, "oracle": {"b": [1.0]}})
    assert "Paired differences" not in page(results, tmp_path)
