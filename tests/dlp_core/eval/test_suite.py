"""Suites: reading, drawing, errors; options and metrics computed by hand."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.eval.metrics import METRICS
from dlp_core.eval.options import find_options, format_option, parse_choice
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.suite import draw_composites, load_suite, suite_of_rows
from tests.support.eval_bank import SUITE, TASKS, write_rows, write_suite
from tests.support.paths import ROOT

QUESTION = "Which?\n(A) red\n(B) dark\nblue\n(C) green."


def test_a_suite_is_read_and_drawn_by_task(tmp_path: Path) -> None:
    path = write_suite(tmp_path, rows=10)
    suite = load_suite(path, rows=3)
    assert suite.tasks == tuple(sorted(TASKS))
    assert len(suite.rows) == 9
    assert suite == load_suite(path, rows=3), "the same rows every time"
    assert {row.id for row in suite.rows} < {row.id for row in load_suite(path).rows}
    assert suite.digest != load_suite(path).digest
    path.write_text(SUITE + "seed: 1\n")
    assert {row.id for row in load_suite(path, rows=3).rows} != {row.id for row in suite.rows}


def test_data_may_lie_elsewhere_and_be_compressed(tmp_path: Path) -> None:
    path = write_suite(tmp_path / "suite", text=SUITE.replace("rows.jsonl", "rows.jsonl.gz"))
    (tmp_path / "data").mkdir()
    plain = tmp_path / "suite" / "rows.jsonl"
    with gzip.open(tmp_path / "data" / "rows.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes() + plain.read_bytes())
    suite = load_suite(path, data=tmp_path / "data")
    assert len(suite.rows) == 12, "the same question twice is one question"
    assert suite.digest == load_suite(write_suite(tmp_path / "other")).digest, "where the data lies makes no difference"


@pytest.mark.parametrize(
    ("suite", "rows", "message"),
    [
        ("name: [", None, "not YAML"),
        ("just text", None, "a suite has name, data and types"),
        ("name: a\ndata: [rows.jsonl]\n", None, "types: Field required"),
        (SUITE.replace("rouge1", "rouge9"), None, "no metric 'rouge9'"),
        (SUITE + "colour: red\n", None, "colour: Extra inputs"),
        (SUITE.replace("rows.jsonl", "other.jsonl"), None, "other.jsonl: cannot be read"),
        (SUITE, [{"task": "a", "type": "qa", "input": "x"}], r"rows.jsonl:1: the answer is missing or empty"),
        (SUITE, [{"task": "a", "input": "x", "output": "y"}], "type None is not a type of the suite"),
        (
            SUITE,
            [{"task": "a", "type": "song", "input": "x", "output": "y"}],
            "type 'song' is not a type of the suite: mcq",
        ),
        (SUITE, [{"task": "../a", "type": "qa", "input": "x", "output": "y"}], "adapter name '../a' is not valid"),
        (SUITE, [{"task": "a", "type": "mcq", "input": "x", "output": "y"}], "lists no \\(A\\)"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, suite: str, rows: list[dict[str, str | None]] | None, message: str) -> None:
    path = write_suite(tmp_path, text=suite)
    if rows is not None:
        write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InvalidRequest, match=message):
        load_suite(path)


def test_rows_of_no_task_are_left_out(tmp_path: Path) -> None:
    path = write_suite(tmp_path)
    rows = [{"task": None, "input": "x"}, {"task": "a", "type": "qa", "input": "x", "output": "y"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert [row.task for row in load_suite(path).rows] == ["a"]
    write_rows(tmp_path / "rows.jsonl", rows[:1])
    with pytest.raises(InvalidRequest, match="no row of its data has a task"):
        load_suite(path)


def test_a_file_of_rows_is_a_suite(tmp_path: Path) -> None:
    rows = [{"task": task, "input": f"{task} {number}", "output": "y"} for task in "ab" for number in range(5)]
    path = write_rows(tmp_path / "held back.jsonl", [*rows, {"task": None, "input": "x"}])
    suite = suite_of_rows(path)
    assert (suite.settings.name, len(suite.rows)) == ("held-back", 10)
    assert {suite.score_metric(row) for row in suite.rows} == {"exact_match"}
    assert [row.task for row in suite_of_rows(path, rows=2).rows] == ["a", "a", "b", "b"]
    write_rows(path, [{"task": "a", "type": "mcq", "input": "x", "output": "y"}])
    assert [row.type for row in suite_of_rows(path).rows] == ["mcq"]


def test_the_suites_of_the_examples_are_read(tmp_path: Path) -> None:
    demo = load_suite(ROOT / "examples/bank/suite.yaml")
    assert set(demo.tasks) == {folder.name for folder in (ROOT / "examples/bank/adapters").iterdir()}
    assert draw_composites(demo).keys() == {2, 3}
    data = os.environ.get("DLP_TEST_BIGBENCH")
    if not data:
        pytest.skip("DLP_TEST_BIGBENCH does not name the folder with the 26 tasks of BIG-bench")
    suite = load_suite(ROOT / "examples/bigbench26/suite.yaml", data=Path(data))
    assert len(suite.tasks) == 26
    assert len(suite.rows) == 26 * 50
    assert all(row.options for row in suite.rows if row.type == "mcq")
    assert {parse_choice(row.output, row.options) is None for row in suite.rows if row.type == "mcq"} == {False}


def test_another_metric_may_be_the_score_of_the_rows_that_have_it(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, rows=2))
    assert suite.scored_by(None) == suite
    likely = suite.scored_by("likelihood")
    scores = {suite.settings.types[row.type].metrics: likely.score_metric(row) for row in suite.rows}
    assert {score == "likelihood" for metrics, score in scores.items() if "likelihood" in metrics} == {True}
    assert all(score == metrics[0] for metrics, score in scores.items() if "likelihood" not in metrics)
    assert suite.scored_by("likelihood").rows == suite.rows


def test_a_missing_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no\.yaml: cannot be read"):
        load_suite(tmp_path / "no.yaml")


def test_composite_prompts_take_one_row_of_each_of_several_tasks(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path))
    groups = draw_composites(suite)
    assert {parts: len(prompts) for parts, prompts in groups.items()} == {2: 2, 3: 2}
    for parts, prompts in groups.items():
        assert all(len({row.task for row in rows}) == parts for rows in prompts)
    assert groups == draw_composites(suite)
    fewer = draw_composites(load_suite(tmp_path / "suite.yaml", rows=1))
    assert {len(prompts) for prompts in fewer.values()} == {1}, "`rows` also limits the prompts"
    (tmp_path / "suite.yaml").write_text(SUITE.replace("prompts: 2", "prompts: 2, max_chars: 60"))
    with pytest.raises(InvalidRequest, match="2 tasks have questions of at most 60 characters"):
        draw_composites(load_suite(tmp_path / "suite.yaml"))


def test_options_are_the_last_lines_of_a_question() -> None:
    assert find_options(QUESTION) == {"A": "red", "B": "dark\nblue", "C": "green."}
    assert find_options("(A) is no option\nof this") == {}
    assert find_options("x\n(A) one\n(C) three") == {}
    assert find_options("(A) early\n(B) talk\nReally?\n(A) yes\n(B) no") == {"A": "yes", "B": "no"}
    assert format_option("A", find_options(QUESTION)) == "(A) red"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B) dark blue", "B"),
        ("The answer is (C), not (A).", "C"),
        ("(Z) or (A)", "A"),
        (" b", None),
        ("B", "B"),
        ("B.", "B"),
        ("Green", "C"),
        ("dark blue", "B"),
        ("A red one", None),
        ("", None),
        ("yellow", None),
    ],
)
def test_the_option_an_answer_names(answer: str, letter: str | None) -> None:
    assert parse_choice(answer, find_options(QUESTION)) == letter


def test_metrics_by_hand() -> None:
    row = EvalRow("1", "a", "qa", "?", "the cat sat")
    assert METRICS["exact_match"]("the  cat sat\n", row) == 1
    assert METRICS["exact_match"]("The cat sat", row) == 0
    assert METRICS["f1"]("the dog sat sat", row) == pytest.approx(2 * 2 / 7)
    assert METRICS["f1"]("", row) == 0
    assert METRICS["rouge1"]("sat the cat", row) == pytest.approx(1)
    assert METRICS["rougeL"]("sat the cat", row) == pytest.approx(2 / 3)
    assert METRICS["bleu"]("the cat sat", row) == pytest.approx(1)
    assert METRICS["bleu"]("dogs", row) == 0
    choice = EvalRow("2", "a", "mcq", QUESTION, "(C) green.")
    assert METRICS["accuracy"]("(C)", choice) == 1
    assert METRICS["accuracy"]("(A) green.", choice) == 0
    assert METRICS["accuracy"]("(A)", EvalRow("3", "a", "mcq", QUESTION, "(D) none")) == 0
