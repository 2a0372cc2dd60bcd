"""The README and the docs tell the truth: what they show exists."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from deployments.args import LimitArgs, RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from tests.support.paths import ROOT
from tests.support.shown_commands import check

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]
README = PAGES[0].read_text()


def commands(page: Path, program: str) -> list[str]:
    """Command lines of `program` in indented or fenced blocks, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(rf"^\s*(?:\$ )?(?:\.venv/bin/)?({program} .*?)(?:\s{{2,}}#.*)?$", text, flags=re.MULTILINE)
    return [line for line in found if line.split()[1] != "..."]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_shown_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in commands(page, "make"):
        assert line.split()[1] in targets, f"{page.name} shows `{line}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dlp_command_shown_exists_with_its_options(page: Path) -> None:
    for line in commands(page, "dlp"):
        check(line, page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_shown_compiles_and_json_shown_parses(page: Path) -> None:
    for kind, body in re.findall(r"```(python|json)\n(.*?)```", page.read_text(), flags=re.DOTALL):
        if kind == "python":
            compile(body, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        else:
            json.loads(body)


def test_curl_bodies_are_json() -> None:
    bodies = re.findall(r"-d '(\{.*?\})'", README, flags=re.DOTALL)
    assert bodies
    for body in bodies:
        assert "model" in json.loads(body)


@pytest.mark.parametrize("package", ["dlp_core", "deployments"])
def test_the_map_lists_every_file_of_every_package(package: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.split(f"| `{package}/` | what it is | files |")[1].split("\n\n")[0]
    listed = set()
    for place, files in re.findall(r"^\| `([\w/.]+)` \|.*\| ([^|]*)\|$", table, flags=re.MULTILINE):
        names = re.findall(r"`(\w+)`", files)
        listed |= {f"{place}{name}.py" for name in names} or {place}
    there = {path.relative_to(ROOT / package).as_posix() for path in (ROOT / package).rglob("*.py")}
    assert listed == {path for path in there if not path.endswith("__init__.py")}


def test_the_walk_of_a_request_is_short_and_passes_files_that_exist() -> None:
    files = re.findall(r"^\| \d \| `([\w/.]+)` \|", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE)
    assert 5 < len(files) <= 8
    assert all((ROOT / file).is_file() for file in files)


def test_every_route_shown_exists() -> None:
    api = create_app(None, routing=RoutingArgs(), limits=LimitArgs(), access=Access())  # type: ignore[arg-type]
    routes = {route.path for route in api.routes}
    for page in (ROOT / "README.md", ROOT / "docs/api.md"):
        shown = set(re.findall(r"(?<=[\s`0-9])(/(?:v1/[\w/{}]+|health(?!\w)))", page.read_text()))
        assert shown
        for path in shown:
            assert path in routes or path.replace("{name}", "{name:path}") in routes, f"{page.name} shows {path}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(text: str, level: str = "#+") -> list[str]:
    """What GitHub calls the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(rf"^{level} (.*)$", prose, flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_one_of_that_name(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        named = anchors((page.parent / target if target else page).read_text()).count(anchor)
        assert named == 1, f"{page.name} links to {target}#{anchor}, of which there are {named}"


def test_the_log_lists_every_entry_by_topic() -> None:
    log = (ROOT / "docs/log.md").read_text()
    index, entries = log.split("\n## By topic\n")[1].split("\n## ", 1)
    assert sorted(re.findall(r"\]\(#([^)]+)\)", index)) == sorted(anchors(entries, "###"))
