"""JSON lines: what is read, and that every reader of rows tells a damaged file in the same words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.eval.suite import load_suite
from dlp_core.router.rows import read_examples, read_routing_texts, read_task_rows
from dlp_core.store.tables import read_objects
from dlp_core.train.rows import read_rows
from tests.support.eval_bank import SUITE

ROW = b'{"task": "a", "type": "qa", "input": "x", "output": "y"}\n'
LONG = b"".join(
    json.dumps({"task": "a", "type": "qa", "input": f"{Random(number).random()}", "output": "y"}).encode() + b"\n"
    for number in range(20_000)
)


def _suite(path: Path) -> object:
    suite = path.with_name("suite.yaml")
    suite.write_text(SUITE.replace("rows.jsonl", path.name))
    return load_suite(suite).rows


READERS: dict[str, Callable[[Path], object]] = {
    "objects": lambda path: list(read_objects(path)),
    "router rows": lambda path: read_task_rows([path]),
    "routing texts": read_routing_texts,
    "examples": lambda path: read_examples(path, "a"),
    "training rows": read_rows,
    "suite": _suite,
}

DAMAGED: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("rows.jsonl", None, r"rows\.jsonl: cannot be read \(No such file"),
    "empty": ("rows.jsonl", b"\n  \n", r"rows\.jsonl: holds no rows"),
    "empty gz": ("rows.jsonl.gz", gzip.compress(b""), r"rows\.jsonl\.gz: holds no rows"),
    "not gz": ("rows.jsonl.gz", ROW, r"rows\.jsonl\.gz: cannot be read \(Not a gzipped file"),
    "gz cut off": ("rows.jsonl.gz", gzip.compress(LONG)[:-9], r"rows\.jsonl\.gz:\d+: cannot be read \(Compressed file"),
    "gz without its checksum": ("rows.jsonl.gz", gzip.compress(ROW)[:-8], r"cannot be read \(Compressed file"),
    "gz with another checksum": ("rows.jsonl.gz", gzip.compress(ROW)[:-8] + bytes(8), r"cannot be read \(CRC check"),
    "gz of noise": ("rows.jsonl.gz", gzip.compress(ROW)[:10] + b"\xff" * 40, r"cannot be read \(Error -3"),
    "not UTF-8": ("rows.jsonl", ROW + b'{"task": "\xff"}\n', r"rows\.jsonl:2: not UTF-8 text \(.* at byte 10\)"),
    "not JSON": ("rows.jsonl", ROW + b'\n{"task"\n', r"rows\.jsonl:3: not JSON \(.* column 7\)"),
    "not an object": ("rows.jsonl", ROW + b"[]\n", r"rows\.jsonl:2: a row must be an object"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_told_alike_by_all_readers(tmp_path: Path, reader: str, damage: str) -> None:
    name, content, message = DAMAGED[damage]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=message) as raised:
        READERS[reader](tmp_path / name)
    assert str(tmp_path / name) in raised.value.message


@pytest.mark.parametrize("reader", READERS)
def test_plain_and_compressed_files_are_read_alike(tmp_path: Path, reader: str) -> None:
    content = b"\n" + ROW.replace(b"x", "ü\u2028".encode()).replace(b"\n", b"\r\n") + ROW.rstrip()
    (tmp_path / "rows.jsonl").write_bytes(content)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content))
    plain, compressed = (READERS[reader](tmp_path / name) for name in ("rows.jsonl", "rows.jsonl.gz"))
    if reader == "objects":
        assert isinstance(plain, list)
        assert [(where.rpartition(":")[2], row["input"]) for where, row in plain] == [("2", "ü\u2028"), ("3", "x")]
    else:
        assert plain == compressed
