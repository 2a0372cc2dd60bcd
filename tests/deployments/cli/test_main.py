"""How the command line ends: one line on stderr and an exit code that says whose fault it was."""

from __future__ import annotations

import errno
import os

import pytest

from deployments.cli import main
from dlp_core.errors import BankError, DiskFull, InvalidRequest, LocalDiskError, NotFound, StoreUnavailable


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InvalidRequest("--top-p is 2"), 2, "--top-p is 2"),
        (NotFound("no bank is published"), 2, "no bank is published"),
        (BankError("bank.json is damaged"), 2, "damaged"),
        (StoreUnavailable("http://s3 does not answer"), 1, "does not answer"),
        (LocalDiskError("/a: cannot be read"), 1, "cannot be read"),
        (DiskFull("/a: cannot be written"), 1, "cannot be written"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "No space left on device"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/srv/eval"), 2, "/srv/eval: cannot be used"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/data/eval"), 1, "/data/eval: cannot be used"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    error: Exception, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as end:
        main.main()
    printed = capsys.readouterr()
    assert (end.value.code, printed.out, printed.err.count("\n")) == (code, "", 1)
    assert says in printed.err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main.main()
