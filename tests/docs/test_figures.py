"""The figures in pages: they are what the raw results say, and a page or a result that changes alone is found out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from benchmarks.figures import __main__ as command
from benchmarks.figures.catalogue import FIGURES
from benchmarks.figures.chart import decode_chart
from benchmarks.figures.markdown import Lines, listed, span, table
from benchmarks.figures.pages import END, MARKED, Filled, fill
from benchmarks.figures.sources import SOURCES, Results, machine
from benchmarks.measure.harness import ROOT
from benchmarks.suite import PARTS
from dlp_core.errors import InvalidRequest
from tests.support.shown_commands import check

PAGES = [path for pattern in command.PAGES for path in ROOT.glob(pattern)]
PERFORMANCE = Path("docs/performance.md")
THROUGHPUT = Path("benchmarks/results/throughput.json")
DECODE_STEP = Path("benchmarks/results/decode_step.json")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The pages and the raw results, to be changed."""
    for path in (*PAGES, ROOT / command.PICTURE, *(ROOT / source.path for source in SOURCES.values())):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return tmp_path


def change(path: Path, edit: Callable[[Any], None]) -> None:
    result = json.loads(path.read_text())
    edit(result)
    path.write_text(json.dumps(result))


def test_no_figure_of_the_committed_pages_is_stale() -> None:
    assert [str(figure) for figure in command.refresh(ROOT, write=False)] == []


def test_a_figure_edited_by_hand_is_named_with_its_page_and_line(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = checkout / PERFORMANCE
    mark = "<!-- figure:vllm_lora -->"
    edited = re.sub(rf"(?<={mark}).*?(?={END})", "2.0 to 2.5", page.read_text())
    page.write_text(edited)
    measured = FIGURES["vllm_lora"](Results(ROOT))
    line = edited[: edited.index(mark)].count("\n") + 1
    monkeypatch.setattr(command, "ROOT", checkout)
    with pytest.raises(SystemExit) as ended:
        command.main(check=True)
    assert ended.value.code == 1
    (said,) = capsys.readouterr().out.splitlines()
    assert said == f"docs/performance.md:{line}: vllm_lora is stale: '2.0 to 2.5' should be {measured!r}"
    assert page.read_text() == edited, "--check must not write"


def test_a_row_edited_by_hand_is_named_with_its_line(checkout: Path) -> None:
    page = checkout / PERFORMANCE
    lines = page.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if line.startswith("| vLLM for CPUs, plain |"))
    lines[number] = "| vLLM for CPUs, plain | 1 | 2 | 3 |\n"
    page.write_text("".join(lines))
    (stale,) = command.refresh(checkout, write=False)
    assert (stale.figure, stale.line, stale.shown) == ("throughput", number + 1, lines[number].strip())


def test_a_changed_result_makes_every_figure_of_it_stale_until_the_pages_are_filled(checkout: Path) -> None:
    def faster(result: Any) -> None:
        row = next(row for row in result["rows"] if (row["engine"], row["side"]) == ("vllm", "plain"))
        row["tokens_per_s"] *= 10

    change(checkout / THROUGHPUT, faster)
    stale = command.refresh(checkout, write=True)
    on_page = {figure.figure for figure in stale if figure.page == PERFORMANCE}
    assert on_page == {"headline", "throughput", "vllm_plain"}
    assert command.refresh(checkout, write=False) == []


def test_the_picture_is_stale_when_its_data_change_and_not_when_matplotlib_draws_otherwise(checkout: Path) -> None:
    def slower(result: Any) -> None:
        row = next(row for row in result["rows"] if (row["rank"], row["side"]) == ("8", "peft rows"))
        row["ratio"] += 0.1

    picture = checkout / command.PICTURE
    picture.write_text(picture.read_text().replace("<path", "<path "))
    assert command.refresh(checkout, write=False) == []
    change(checkout / DECODE_STEP, slower)
    assert command.PICTURE in {figure.page for figure in command.refresh(checkout, write=False)}


def test_a_redrawn_picture_is_no_longer_stale(checkout: Path) -> None:
    pytest.importorskip("matplotlib", reason="the bench extra is not installed")
    (checkout / command.PICTURE).write_text("<svg/>")
    assert [figure.page for figure in command.refresh(checkout, write=True)] == [command.PICTURE]
    assert command.refresh(checkout, write=False) == []


def test_the_picture_leaves_out_what_was_not_measured() -> None:
    result = json.loads((ROOT / DECODE_STEP).read_text())
    alone = decode_chart(result | {"rows": [row for row in result["rows"] if not row["side"].startswith("peft")]})
    assert all("PEFT" not in label for group in alone.groups.values() for label in group)
    assert alone.digest != decode_chart(result).digest


def number(results: Results) -> str:
    """A figure for a sentence."""
    return str(results["affinity_cluster"]["requests"])


def rows(results: Results) -> Lines:
    """A figure that is a table."""
    return table(["", "requests"], [["all", results["affinity_cluster"]["requests"]]])


def filled(root: Path, text: str) -> Filled:
    path = root / "benchmarks/results/affinity_cluster.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"cores": 2, "machine": "x86_64", "requests": 7}')
    (root / "page.md").write_text(text)
    return fill(root, Path("page.md"), {"number": number, "rows": rows})


def test_a_page_keeps_all_but_its_figures_and_a_table_says_where_it_comes_from(tmp_path: Path) -> None:
    text = "# Page\n\nAll <!-- figure:number -->6<!-- / --> of them.\n\n<!-- figure:rows --><!-- / -->\n\nEnd\n"
    after, stale = filled(tmp_path, text)
    assert after == (
        "# Page\n\nAll <!-- figure:number -->7<!-- / --> of them.\n\n<!-- figure:rows -->\n"
        "| | requests |\n|---|---:|\n| all | 7 |\n\n"
        "Raw result: [affinity_cluster](benchmarks/results/affinity_cluster.json)\n"
        "([commands and machines](docs/performance.md#measure-again)).\n"
        "<!-- / -->\n\nEnd\n"
    )
    assert [(figure.line, figure.figure) for figure in stale] == [(3, "number"), (6, "rows")]


ROWS = "\n\n<!-- figure:rows --><!-- / -->\n"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (f"All <!-- figure:numbr -->7<!-- / -->.{ROWS}", r"page\.md:1: there is no figure 'numbr'"),
        (f"One\n\nAll <!-- figure:number -->7.{ROWS}", r"page\.md:3: <!-- figure:number --> is not part of a pair"),
        ("All <!-- figure:number -->7.\n", r"page\.md:1: <!-- figure:number --> is not part of a pair"),
        (f"All 7<!-- / -->.{ROWS}", r"page\.md:1: <!-- / --> is not part of a pair"),
        (f"All <!-- figure: number -->7<!-- / -->.{ROWS}", r"page\.md:1: <!-- figure: number --> is not part"),
        (f"- <!-- figure:number -->7<!-- / --> of them.{ROWS}", r"page\.md:1: figure number starts a line"),
        (f"All\n  <!-- figure:number -->7<!-- / -->.{ROWS}", r"page\.md:2: figure number starts a line"),
        (
            f"All <!-- figure:number -->7<!-- / -->.\n\n## Next{ROWS}",
            r"page\.md:1: .* add the figure affinity_cluster_",
        ),
    ],
)
def test_a_wrong_mark_is_an_error_that_names_page_and_line(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=wrong):
        filled(tmp_path, text)


def test_a_result_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"benchmarks/results/engine\.json cannot be read"):
        Results(tmp_path)["engine"]


def test_a_machine_is_said_as_far_as_the_result_records_it() -> None:
    known = {"cpu": "Some CPU", "cores": 2, "instructions": ["avx2"], "threads": 1}
    assert machine(known) == "2 cores of Some CPU (avx2), 1 thread"
    assert machine({"cores": 2, "machine": "x86_64"}) == "2 x86_64 cores, CPU model not recorded"
    assert not machine(Results(ROOT)["concurrent_streams"])


def test_the_measurements_name_every_result_with_its_command_below_its_machine() -> None:
    lists = re.split(r"\n\n(?=[^-])", "\n".join(Results(ROOT).measurements()))
    for name, source in SOURCES.items():
        result = json.loads((ROOT / source.path).read_text())
        item = rf"- \[{name}\]\(\S+{Path(source.path).name}\):\s+`{re.escape(source.command)}`$"
        (shown,) = [text for text in lists if re.search(item, text, flags=re.MULTILINE)]
        heading = " ".join(shown.split("\n\n")[0].split())
        assert heading.startswith(machine(result) or "Hardware not recorded")
        assert (result.get("commit") or ":") in heading


def test_numbers_are_put_together_as_sentences_want_them() -> None:
    assert (span([1.085, 1.066, 1.071]), span([1.02, 1.021])) == ("1.07 to 1.08", "1.02")
    assert (listed([38.6, 40.8, 51.6]), listed([7])) == ("39, 41 and 52", "7")


def test_every_figure_is_on_a_page() -> None:
    placed = {name for page in PAGES for name, _ in MARKED.findall(page.read_text())}
    assert {name for name in FIGURES if not name.endswith("_source")} <= placed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_marks_do_not_show_and_tables_are_tables(page: Path) -> None:
    text = page.read_text()
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    shown = re.sub(r"<!--.*?-->", "", html)
    assert "figure:" not in shown
    assert "|--" not in shown, "a table is not taken for one"
    assert html.count("<table>") == len(re.findall(r"^\|[ :|-]+\|$", text, flags=re.MULTILINE))
    for name, content in MARKED.findall(text):
        if "\n" not in content:
            assert re.search(rf"[^>\n]<!-- figure:{name} -->", html), f"{name} begins a line"


def test_every_raw_result_has_a_source_and_every_command_is_there() -> None:
    results = {path for path in (ROOT / "benchmarks/results").glob("*.json") if not path.stem.endswith("_quick")}
    assert results <= {ROOT / source.path for source in SOURCES.values()}
    for source in SOURCES.values():
        words = source.command.split()
        if words[0] == "dlp":
            check(source.command, "SOURCES")
        else:
            assert words[:2] == ["python", "-m"]
            assert find_spec(words[2]), source.command


def test_commands_are_those_of_the_suite() -> None:
    for part in PARTS:
        command_ = re.sub(r"--threads \d+", "--threads 2", part.command)
        assert SOURCES[part.name].command.startswith(command_)
