"""Rows in the shapes that datasets have: prompt, answer and adapter of each, and each mistake in a line."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.router.rows import TaskRow, read_examples, read_routing_texts, read_task_rows
from dlp_core.text.chat import Message
from dlp_core.text.rows import read_rows
from dlp_core.text.tools import ToolCall
from dlp_core.train.rows import Row
from dlp_core.train.rows import read_rows as read_training_rows


def _said(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def _calling(*calls: object) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls)}


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
SYSTEM = {"role": "system", "content": "be brief"}
TALK = (Message("system", "be brief"), Message("user", "hi"))

SHAPES: dict[str, tuple[dict[str, Any], object]] = {
    "input and output": ({"input": "hi", "output": "yo"}, "hi"),
    "instruction alone": ({"instruction": "hi", "input": None, "output": "yo"}, "hi"),
    "instruction and nothing": ({"instruction": "hi", "input": "", "output": "yo"}, "hi"),
    "instruction and input": ({"instruction": "Greet.", "input": "hi", "output": "yo"}, "Greet.\n\nhi"),
    "prompt and completion": ({"prompt": "hi", "completion": "yo"}, "hi"),
    "messages": ({"messages": [USER, ANSWER]}, "hi"),
    "messages with their first prompt": ({"prompt": "hello", "messages": [USER, ANSWER]}, "hi"),
    "a system prompt": ({"messages": [SYSTEM, USER, ANSWER]}, TALK),
    "a developer's": ({"messages": [SYSTEM | {"role": "developer"}, USER, ANSWER]}, TALK),
    "lists of messages": ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, TALK),
    "a list and a text": ({"prompt": [SYSTEM, USER], "completion": "yo"}, TALK),
    "a text and a list": ({"prompt": "hi", "completion": [ANSWER]}, "hi"),
    "parts": ({"messages": [_said("user", "h", "i"), _said("assistant", "y", "o")]}, "hi"),
    "several turns": (
        {"messages": [USER, {"role": "assistant", "content": "first"}, USER, ANSWER]},
        (Message("user", "hi"), Message("assistant", "first"), Message("user", "hi")),
    ),
    "a turn after the answer": ({"messages": [USER, ANSWER, {"role": "user", "content": "thanks"}]}, "hi"),
    "tools before the answer": (
        {
            "messages": [
                USER,
                _calling({"function": {"name": "f", "arguments": {"a": 1}}}),
                {"role": "tool", "content": "3", "name": "f", "tool_call_id": "x"},
                ANSWER,
            ]
        },
        (
            Message("user", "hi"),
            Message("assistant", "", (ToolCall("", "f", '{"a": 1}'),)),
            Message("tool", "3", (), "x", "f"),
        ),
    ),
}  # fmt: skip


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_prompt_and_answer_of_every_shape(tmp_path: Path, shape: str) -> None:
    record, prompt = SHAPES[shape]
    assert read_training_rows(_write(tmp_path / "rows.jsonl", record)) == [Row(prompt, "yo")]  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_parquet_holds_the_same_shapes(tmp_path: Path, shape: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    record, prompt = SHAPES[shape]
    parquet.write_table(
        pyarrow.Table.from_pylist([record | {"n": number} for number in range(3000)]), tmp_path / "a.parquet"
    )
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert [row.record["n"] for row in rows] == list(range(3000))
    assert rows[-1].answered() == (prompt, "yo")
    assert rows[-1].where == f"{tmp_path / 'a.parquet'}: row 3000"


def test_csv_has_a_header_and_cells_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["adapter", "prompt", "completion"], ["a", 'x\n"y"', "1"], ["", "z, ü", "2"]])
    assert read_task_rows([path]) == [TaskRow("a", 'x\n"y"'), TaskRow(None, "z, ü")]
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:4"]
    compressed = tmp_path / "rows.csv.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_task_rows([compressed]) == read_task_rows([path])


def test_a_router_learns_and_routes_the_texts_that_a_server_routes(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Cron for Monday"}, ANSWER, {"role": "user", "content": "and Friday?"}]
    path = _write(
        tmp_path / "rows.jsonl",
        {"task": "cron", "messages": [SYSTEM, *talk, ANSWER]},
        {"task": "cron", "messages": talk},
    )
    assert read_task_rows([path]) == [TaskRow("cron", "and Friday?")] * 2
    assert read_routing_texts(path) == [
        ("and Friday?", "Cron for Monday\nand Friday?", "be brief\n\nand Friday?"),
        ("and Friday?", "Cron for Monday\nand Friday?"),
    ]


def test_the_adapter_is_named_by_task_or_by_adapter(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "rows.jsonl",
        {"adapter": "a", "input": "x"},
        {"task": None, "input": "y"},
        {"task": "a", "adapter": "a", "input": "z"},
    )
    assert [row.task for row in read_task_rows([path])] == ["a", None, "a"]
    with pytest.raises(InvalidRequest, match=r'rows\.jsonl:1: "task" and "adapter" differ'):
        read_task_rows([_write(path, {"task": "a", "adapter": "b", "input": "x"})])
    with pytest.raises(InvalidRequest, match="a row of task None is not an example of 'a'"):
        read_examples(_write(path, {"adapter": None, "input": "x"}), "a")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "another shape": ({"question": "x"}, r'no prompt among the keys "question"; a row has "input" and'),
    "no keys": ({}, r"no prompt among the keys \(none\)"),
    "many keys": ({f"k{n}": n for n in range(20)}, r'"k7" and 12 more; a row has'),
    "null": ({"input": None, "output": "y"}, '"input" is empty'),
    "a number": ({"input": 3, "output": "y"}, '"input" must be text'),
    "an empty prompt": ({"prompt": " ", "completion": "y"}, "the prompt is empty"),
    "no answer": ({"prompt": "x"}, "the answer is missing or empty"),
    "an empty answer": ({"prompt": "x", "completion": " "}, "the answer is missing or empty"),
    "an answer of another type": ({"prompt": "x", "completion": 3}, '"completion" must be text'),
    "no messages": ({"messages": []}, 'messages: must be a list of {"role"'),
    "messages as text": ({"messages": "hi"}, 'messages: must be a list of {"role"'),
    "a text among them": ({"messages": ["hi"]}, r'messages\[0\]: must be {"role"'),
    "an unknown role": ({"messages": [{"role": "human"}]}, r"messages\[0\]: role 'human' is none of system, user"),
    "no content": ({"messages": [{"role": "user"}]}, r"messages\[0\]: content must be text"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"\[0\]: part 0 is 'image'"),
    "nobody answers": ({"messages": [USER]}, "the answer is missing or empty"),
    "nobody asks": ({"messages": [ANSWER]}, "an answer and no prompt"),
    "an answer that calls": ({"messages": [USER, _calling({"function": {"name": "f"}})]}, "the answer calls tools"),
    "a call of nothing": ({"messages": [USER, _calling("f"), ANSWER]}, r"messages\[1\].tool_calls: a call must be"),
    "tools": ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "tools are not rendered here"),
    "a bad name": ({"task": "a/b", "input": "x", "output": "y"}, "adapter name 'a/b' is not valid"),
    "a name of another type": ({"task": 3, "input": "x", "output": "y"}, '"task" must be an adapter name or null'),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, mistake: str) -> None:
    record, message = MISTAKES[mistake]
    path = _write(tmp_path / "rows.jsonl", {"input": "x", "output": "y", "task": "a"}, record)
    with pytest.raises(InvalidRequest, match=message) as raised:
        read_training_rows(path, joint=True)
    assert raised.value.message.startswith(f"{path}:2: ")
    assert "\n" not in raised.value.message


FILES: dict[str, tuple[str, bytes, str]] = {
    "a row too long": ("a.csv", b"input,output\nx,y\n\nx,y,z\n", r"a\.csv:4: has 3 cells, and the header has 2"),
    "a row too short": ("a.csv", b"input,output\nx\n", r"a\.csv:2: has 1 cells"),
    "a header alone": ("a.csv", b"input,output\n", r"a\.csv: holds no rows"),
    "an empty file": ("a.csv", b"", r"a\.csv: holds no rows"),
    "a name twice": ("a.csv", b"input,input\nx,y\n", r"a\.csv:1: the header has a name twice"),
    "an open quote": ("a.csv", b'input,output\nx,y\n"x,y\n', r"a\.csv:3: not CSV"),
    "Latin-1": ("a.csv", "input,output\nü,y\n".encode("latin-1"), r"a\.csv:2: not UTF-8 text"),
    "a JSON array": ("a.json", b'[\n{"input": "x"}\n]\n', r"a\.json:1: one JSON document over several lines"),
    "a JSON array in a line": ("a.json", b'[{"input": "x"}]\n', r"a\.json:1: a row must be an object"),
    "no Parquet": ("a.parquet", b"PAR1 and no more", r"a\.parquet: cannot be read \("),
    "Parquet compressed again": ("a.parquet.gz", b"", r"a\.parquet\.gz: Parquet is compressed inside"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, kind: str) -> None:
    name, content, message = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=message) as raised:
        list(read_rows(tmp_path / name))
    assert "\n" not in raised.value.message


def test_a_missing_parquet_reader_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidRequest, match=r"a\.parquet: pyarrow reads Parquet, and is not installed: pip install"):
        list(read_rows(tmp_path / "a.parquet"))


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlp_core.store.tables.MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"input": "x"}\n' + b"x" * 5000)
    with pytest.raises(InvalidRequest, match=r"a\.jsonl:2: longer than 1,000 bytes"):
        list(read_rows(path))
