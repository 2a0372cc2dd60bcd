"""What a log gets of a long job: a line now and then, and nothing of a short one."""

from __future__ import annotations

import pytest

from deployments import terminal
from dlp_core.errors import InvalidRequest


def test_a_log_is_told_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    with terminal.progress("train") as bar:
        for step in range(1, 101):
            now += 1
            bar.update(step, total=100, title="train cron")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"  … train cron: {step} of 100" for step in (31, 62, 93)]


def test_work_reports_what_is_done_and_what_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    with terminal.progress("pull") as bar:
        now += 31
        bar.report(1_500, 3_000)
    assert capsys.readouterr().err == "  … pull: 1,500 of 3,000\n"


def test_a_short_job_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress("read") as bar:
        bar.update(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("requested", "mps", "says"),
    [
        ("mps", False, "it must be cpu or cuda"),
        ("tpu", True, "it must be cpu or cuda or mps"),
        ("mps", True, "no Apple"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(requested: str, says: str, *, mps: bool) -> None:
    import torch

    if requested == "mps" and mps and torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    with pytest.raises(InvalidRequest, match=says):
        terminal.device(requested, mps=mps)
    assert terminal.device("cpu", mps=mps) == terminal.device(None, default="cpu") == "cpu"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600 * 2 + 5, "2:00:05")])
def test_durations(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text
