"""Engines as workers, and the rows computed from their answers."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.measure.engines import ADAPTERS, INSIDE, Side, start_engines
from benchmarks.measure.targets import Target, target_rows
from benchmarks.measure.worker import Batch, Worker, WorkerFailed
from benchmarks.throughput import Turns, measure, mixes, rows, targets_of
from examples.tiny.model import tiny_tokenizer
from tests.support.tiny import VOCAB, tiny_llama
from tests.support.waiting import wait_for

pytestmark = pytest.mark.model


def test_every_request_has_a_different_mix() -> None:
    assert mixes(4, 0) == [{}] * 4
    assert [list(mix.values()) for mix in mixes(3, 1)] == [[1.0]] * 3
    for k in (2, 3):
        found = mixes(16, k)
        assert len({frozenset(mix) for mix in found}) == 16
        assert all(mix.keys() <= set(ADAPTERS) and sum(mix.values()) == pytest.approx(1) for mix in found)


def test_ratios_are_of_rounds_and_against_vllms_single_adapter() -> None:
    found = {
        Side("ours", 0): Turns([40.0, 20.0, 40.0], [2.0, 4.0, 2.0], [1, 2]),
        Side("ours", 1): Turns([30.0, 15.0, 30.0], [2.0, 4.0, 2.0], [1, 2]),
        Side("ours", 2): Turns([30.0, 15.0, 20.0], [2.0, 4.0, 2.0], [1, 3]),
        Side("vllm", 0): Turns([50.0, 25.0, 50.0], [2.0, 4.0, 2.0], [1, 2]),
        Side("vllm", 1): Turns([20.0, 10.0, 20.0], [2.0, 4.0, 2.0], [1, 4]),
    }
    by_side = {(row["engine"], row["side"]): row for row in rows(found, 2)}
    assert by_side["ours", "k=2"]["over_plain"] == 0.75
    assert by_side["vllm", "k=1"] == {
        "sequences": 2,
        "engine": "vllm",
        "side": "k=1",
        "tokens_per_s": 20.0,
        "spread": 0.25,
        "cpu_ms_per_token": 2.0,
        "over_plain": 0.4,
        "same_first": 0.5,
    }
    (target,) = targets_of(found, 2)
    assert (target.ratio, target.met) == (1.5, True)


def test_mixes_inside_vllm_are_held_against_all_three() -> None:
    found = {
        Side("ours", 2): Turns([10.0], [8.0], [1]),
        Side(INSIDE, 2): Turns([30.0], [4.0], [1]),
        Side("vllm", 0): Turns([40.0], [3.0], [1]),
        Side("vllm", 1): Turns([10.0], [9.0], [1]),
    }
    assert [target.ratio for target in targets_of(found, 16)] == [1.0, 0.75, 3.0, 3.0]
    assert [target.met for target in targets_of(found, 16)] == [False, False, True, True]
    assert len(targets_of(found, 4)) == 2


def test_a_target_is_an_upper_bound_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    kept = target_rows([Target("slow-down", 1.2, 1.1), Target("speed-up", 1.2, 1.1, at_least=True)])
    assert [target["met"] for target in kept] == [False, True]
    assert capsys.readouterr().err == ("slow-down: 1.200, target <= 1.1: MISSED\nspeed-up: 1.200, target >= 1.1: met\n")


ECHO = """
from benchmarks.measure.worker import BatchResult, serve

def load():
    print("loading")
    return lambda batch: print("running") or BatchResult(0.5, batch.prompts), {"echo": "1"}

serve(load)
"""


def test_a_worker_may_print_without_breaking_its_answers(tmp_path: Path) -> None:
    worker = Worker([sys.executable, "-c", ECHO], tmp_path / "log")
    assert worker.versions == {"echo": "1"}
    assert worker.run(Batch([[1, 2]], [{}], 4)).tokens == [[1, 2]]
    worker.close()


CHILD = """
import subprocess, sys
from benchmarks.measure.worker import BatchResult, serve

def load():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return lambda batch: BatchResult(0.5, batch.prompts), {"child": str(child.pid)}

serve(load)
"""


def test_what_a_worker_has_started_ends_with_it(tmp_path: Path) -> None:
    worker = Worker([sys.executable, "-c", CHILD], tmp_path / "log")
    child = psutil.Process(int(worker.versions["child"]))
    worker.close()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child's end")


def test_a_worker_that_cannot_start_reports_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"^ModuleNotFoundError: No module named 'no_such_engine'$"):
        Worker([sys.executable, "-c", "import no_such_engine"], tmp_path / "log")


def test_ours_runs_alone_when_no_peer_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    capsys.readouterr()  # its progress bar
    with start_engines(
        tmp_path / "model", tmp_path, dtype="float32", vllm_python=tmp_path / "none", llama_server=None
    ) as engines:
        assert capsys.readouterr().err.splitlines() == [
            "loading ours: plain, k=1, k=2, k=3",
            "loading ours in vllm: plain, k=1, k=2, k=3",
            f"ours in vllm is skipped: [Errno 2] No such file or directory: '{tmp_path / 'none'}'",
            "loading vllm: plain",
            f"vllm is skipped: [Errno 2] No such file or directory: '{tmp_path / 'none'}'",
            "llama.cpp is skipped: give its server's binary with --llama-server or LLAMA_SERVER",
        ]
        found = measure(engines, 2, 1, VOCAB)
    assert [side.name for side in found] == ["plain", "k=1", "k=2", "k=3"]
    assert all(row["same_first"] == 1 for row in rows(found, 2))
    assert targets_of(found, 2) == []
