"""Trainings that are interrupted or killed, as processes: what they print, how they exit, and that they go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.cli.interrupts import Stop, resumable_training
from dlp_core.store.checkpoints import checkpoint_folder
from examples.tiny.model import tiny_backbone
from tests.support.encoders import write_encoder
from tests.support.paths import ROOT
from tests.support.router_rows import make_rows, write_rows
from tests.support.waiting import HANG_S, wait_for

SMALL = """
from functools import partial
from deployments.cli.main import main
from dlp_core.router.training import everyday, teacher, train
from dlp_core.router.training.net import NetSettings

everyday.COUNT = teacher.COUNT = 200
train.TrainSettings = partial(train.TrainSettings, net=NetSettings(epochs=0, min_steps=40, batch=32, widths=(16,)))
main()
"""
"""The command, with a router that is trained in few steps."""


class Training:
    """`dlp ... train` into `out`, in a process of its own."""

    def __init__(self, command: list[str], out: Path, home: Path) -> None:
        self.out, self._command = out, command
        self._environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SMALL, *self._command, "--out", str(self.out), "--json"]
        return subprocess.Popen(
            [*command, *more],
            cwd=ROOT,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self, file: str, number: int, *more: str) -> tuple[int, str, str]:
        """Signals the process once it has written this file of its checkpoint anew; its exit code and output."""
        path = checkpoint_folder(self.out) / file
        before = path.stat().st_mtime_ns if path.exists() else 0
        with self.start(*more) as process:
            wait_for(lambda: path.exists() and path.stat().st_mtime_ns != before, f"checkpoint {path}", 5 * HANG_S)
            process.send_signal(number)
            out, err = process.communicate()
        return process.returncode, out, err

    def finish(self, *more: str) -> dict[str, object]:
        with self.start(*more) as process:
            out, err = process.communicate()
        assert process.returncode == 0, err
        summary: dict[str, object] = json.loads(out)
        return summary


def told(err: str, out: Path) -> str:
    """The one line that a stopped training ends with."""
    line = err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert line.startswith("dlp: ")
    assert f"checkpoint in {checkpoint_folder(out)}; go on with: dlp " in line
    return line


@pytest.mark.model
@pytest.mark.slow
def test_an_adapters_training_survives_kill_and_ctrl_c(tmp_path: Path) -> None:
    tiny_backbone(tmp_path / "tiny-llama")
    rows = ({"task": "x", "input": f"the adapter of {n}", "output": f"of{n}"} for n in range(60))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["adapter", "train", "--base-model", str(tmp_path / "tiny-llama"), "--rank", "2", "--batch-rows", "1"]
    command += ["--data", str(tmp_path / "rows.jsonl"), "--steps", "160", "--validate-every", "40"]
    whole = Training(command, tmp_path / "whole", tmp_path).finish()
    training = Training(command, tmp_path / "again", tmp_path)
    code, out, _ = training.end("training.pt", signal.SIGKILL)
    assert (code, out) == (-signal.SIGKILL, "")
    code, out, err = training.end("training.pt", signal.SIGINT, "--resume")
    assert (code, out) == (130, "")
    assert "of 160; " in told(err, training.out)
    command_line = told(err, training.out).partition("go on with: dlp ")[2]
    assert shlex.split(command_line) == [*command, "--out", str(training.out), "--json", "--resume"]
    again = training.finish("--resume")
    assert len(again["answers"]) == 3  # type: ignore[arg-type]
    for name in ("seconds", "adapter"):
        del whole[name], again[name]
    assert again == whole
    files = [(path / "adapter_model.safetensors").read_bytes() for path in (tmp_path / "whole", training.out)]
    assert files[0] == files[1]
    assert not checkpoint_folder(training.out).exists()


@pytest.mark.model
@pytest.mark.slow
def test_a_routers_training_survives_sigterm(tmp_path: Path) -> None:
    rows = make_rows(12, seed=1)
    encoder = write_encoder(tmp_path / "encoder", [row.input for row in rows])
    command = ["router", "train", "--data", str(write_rows(tmp_path / "rows.jsonl", rows))]
    command += ["--encoder", str(encoder), "--tuned-layers", "1"]
    whole = Training(command, tmp_path / "whole", tmp_path)
    whole.finish()
    training = Training(command, tmp_path / "again", tmp_path)
    code, out, err = training.end("tuning.pt", signal.SIGTERM)
    assert (code, out) == (143, "")
    assert "of the way; " in told(err, training.out)
    assert not training.out.exists()
    training.finish("--resume")
    for file in whole.out.glob("*.*"):
        assert (training.out / file.name).read_bytes() == file.read_bytes()


def test_a_signal_before_there_is_anything_to_keep_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Stop().handle(signal.SIGINT, None)
    stop = Stop()
    assert not stop()
    stop.handle(signal.SIGINT, None)
    assert stop()
    with pytest.raises(KeyboardInterrupt):  # the second
        stop.handle(signal.SIGINT, None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Exception, match="143"), resumable_training(tmp_path / "a"):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
