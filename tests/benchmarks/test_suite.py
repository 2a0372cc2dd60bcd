"""The suite: skipped parts, failures, and the table and plot of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cold_start, suite
from benchmarks.cold_start import Get, rows
from benchmarks.measure.harness import ROOT, run
from benchmarks.measure.table import Result, table
from benchmarks.suite import PARTS, Part, PartFailed, main, measure, result_path, select_parts
from dlp_core.errors import InvalidRequest

RESULT = {
    "benchmark": "decode step",
    "cpu": "Some CPU",
    "instructions": ["avx2"],
    "cores": 2,
    "versions": {"torch": "2.13.0"},
    "commit": "abc1234",
    "targets": [
        {"what": "k=3 over base", "ratio": 1.123, "bound": 1.1, "at_least": False, "met": False},
        {"what": "HTTP over the engine", "ratio": 0.914, "bound": 0.75, "at_least": True, "met": True},
    ],
}


def test_ideal_time_is_first_byte_plus_bytes_at_the_bandwidth() -> None:
    assert Get(first_byte=0.01, rest=0.02, size=2_000_000).ideal(3_000_000) == pytest.approx(0.04)


def test_a_cold_start_is_judged_by_what_it_adds_to_a_warm_one() -> None:
    found = {
        "cold": [0.30, 0.50],
        "disk": [0.2, 0.2],
        "host": [0.1, 0.1],
        "device": [0.10, 0.10],
        "get": [Get(0.05, 0.05, 1000), Get(0.05, 0.15, 1000)],
        "loads": [{"disk": 0.1, "host": 0.15, "device": 0.16}] * 2,
    }
    cold = next(row for row in rows({}, 1000, found) if row["side"] == "cold")
    assert (cold["added_ms"], cold["fetch_ms"], cold["pack_ms"], cold["ratio"]) == (300.0, 100.0, 50.0, 2.0)


def test_every_available_part_accepts_its_options() -> None:
    there = [part for part in PARTS if part.missing() is None]
    assert {"decode_step", "engine", "cold_start", "router_latency", "http_path"} <= {part.name for part in there}
    for part in there:
        given = {option for option in part.options if option.startswith("--")} | {"--quick", "--out"}
        source = (ROOT / f"benchmarks/{part.name}.py").read_text()
        assert all(f"    {option.removeprefix('--')}: Annotated" in source for option in given), part.name


def test_only_some_parts() -> None:
    assert [part.name for part in select_parts(["engine"])] == ["engine"]
    assert select_parts([]) == list(PARTS)
    with pytest.raises(InvalidRequest, match="no part 'engines'; use decode_step"):
        select_parts(["engines"])


def test_a_quick_run_overwrites_nothing() -> None:
    assert result_path(PARTS[0], Path("r"), quick=True) != result_path(PARTS[0], Path("r"), quick=False)


def test_a_part_with_missing_packages_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "PARTS", (Part("engine", (), ("no-such-package",), 1),))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(model=tmp_path, results=tmp_path)
    assert not ended.value.code
    assert "engine is skipped: no-such-package is not installed" in capsys.readouterr().err


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    part = Part("router_latency", ("--router", "/no/router"), (), 1)
    with pytest.raises(PartFailed, match=r"router_latency failed \(2\): /no/router/router\.json: cannot be read"):
        measure(part, tmp_path, tmp_path / "router_latency.json", quick=False)


def test_the_table_has_a_row_for_each_target_and_says_where_it_comes_from() -> None:
    lines = table([Result(RESULT, "python -m benchmarks.decode_step MODEL_DIR"), Result(RESULT | {"targets": []}, "x")])
    assert lines.splitlines() == [
        "| what | ratio | target | | command |",
        "|---|---|---|---|---|",
        "| k=3 over base | 1.12 | at most 1.10 | **missed** | `python -m benchmarks.decode_step MODEL_DIR` |",
        "| HTTP over the engine | 0.91 | at least 0.75 | met | `python -m benchmarks.decode_step MODEL_DIR` |",
        "",
        "2 cores of Some CPU (avx2), commit abc1234, torch 2.13.0.",
    ]


def test_the_plot_shows_every_side_and_is_reproducible(tmp_path: Path) -> None:
    plot = pytest.importorskip("benchmarks.plot", reason="the bench extra is not installed")
    result = json.loads((ROOT / "benchmarks/results/decode_step.json").read_text())
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    plot.draw_decode_step(result, one)
    plot.draw_decode_step(result, two)
    assert one.read_bytes() == two.read_bytes()
    assert "a different mix of 3 for each row" in one.read_text()  # matplotlib leaves the text beside its outlines
    with pytest.raises(InvalidRequest, match="rerun decode_step"):
        plot.draw_decode_step(result | {"rows": []}, one)


def test_a_folder_without_a_model_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cold_start", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run(cold_start.main)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "has no config" in line
