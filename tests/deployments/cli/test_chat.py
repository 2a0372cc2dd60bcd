"""`dlp chat` in front of a real server: piped, and typed into a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deployments.cli import main
from deployments.http.access import Access
from dlp_core.errors import PromptTooLong
from dlp_core.ports import free_port
from tests.support.echo import EchoService
from tests.support.echo_server import echo_server
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def service() -> EchoService:
    return EchoService()


@pytest.fixture
def url(service: EchoService) -> Iterator[str]:
    with echo_server(service) as found:
        yield found


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Pipes text into `dlp chat ...`; returns exit code, stdout, stderr."""

    def run(typed: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", "chat", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def test_each_line_is_answered_with_its_adapters_below(chat: Run, url: str) -> None:
    code, out, err = chat("hello there\n\nsql cron sql\n", "--url", url)
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 4)
    assert lines[0].rstrip() == "hello there"
    assert lines[1].startswith("  base model · none of these, confidence 0.00 · 2 tokens in ")
    assert lines[2].rstrip() == "sql cron sql"
    assert lines[3].startswith("  sql 0.67 + cron 0.33 · routed, confidence 0.67 · 3 tokens in ")


def test_json_is_one_object_for_each_answer(chat: Run, url: str) -> None:
    code, out, _ = chat("hello\nsql\n", "--url", url, "--json")
    first, second = map(json.loads, out.splitlines())
    assert (code, second["text"], first["mix"]) == (0, "sql ", [])
    assert second["mix"] == [{"adapter": "sql", "weight": 1.0}]
    assert (second["prompt"], second["model"], second["reason"], second["bank"]) == ("sql", "auto", "routed", "b1")


def test_commands_work_in_a_pipe_too(chat: Run, url: str, service: EchoService) -> None:
    code, out, _ = chat("one\n/model cron\ntwo\n/clear\nthree\n/model\n/quit\nnever\n", "--url", url)
    assert code == 0
    assert "auto, org/tiny, sql, cron, dates" in out
    prompts = [[turn.content for turn in request.source] for request in service.asked]  # type: ignore[union-attr]
    assert prompts == [["one"], ["one", "one ", "two"], ["three"]]
    assert [wish.model for wish in service.wishes] == ["auto", "cron", "cron"]


def test_a_line_that_fails_is_said_and_the_others_are_answered(chat: Run, url: str, service: EchoService) -> None:
    service.fail, service.fail_number = PromptTooLong("the prompt is too long"), 0
    code, out, err = chat("one\n/nope\ntwo\n", "--url", url)
    assert (code, out.splitlines()[0].rstrip()) == (1, "two")
    assert err.splitlines()[0] == "dlp: the prompt is too long"
    assert err.splitlines()[1].startswith("dlp: /nope is not a command.")


def test_no_server_is_one_line(chat: Run) -> None:
    code, out, err = chat("one\n", "--url", f"127.0.0.1:{free_port()}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "start one with `dlp demo` or `dlp serve`" in err


def test_a_model_that_is_not_there_is_said_at_once(chat: Run, url: str) -> None:
    code, _, err = chat("one\n", "--url", url, "--model", "nope")
    assert (code, err) == (2, "dlp: there is no model 'nope'; there are auto, org/tiny, sql, cron, dates\n")


def test_a_key_is_sent_and_asked_for(chat: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "a", "key": "key-of-a-tenant-01234"}]}))
    with echo_server(EchoService(), access=Access(keys_file=keys)) as url:
        code, _, err = chat("sql\n", "--url", url)
        assert (code, err.count("\n")) == (2, 1)
        assert "API key" in err
        assert chat("sql\n", "--url", url, "--key", "key-of-a-tenant-01234")[0] == 0
        monkeypatch.setenv("DLP_API_KEY", "key-of-a-tenant-01234")
        assert chat("sql\n", "--url", url)[0] == 0


def test_an_answer_does_not_steer_the_terminal(chat: Run, url: str) -> None:
    _, out, _ = chat("red \x1b[31mtext\x07\n", "--url", url)
    assert out.splitlines()[0].rstrip() == "red [31mtext"


class Terminal:
    """`dlp chat` in a terminal of its own."""

    def __init__(self, url: str) -> None:
        self._screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli.main", "chat", "--url", url],
            cwd=ROOT,
            env=os.environ | {"TERM": "dumb", "COLUMNS": "80"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        os.set_blocking(self._screen, False)
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def shows(self, text: str) -> None:
        """Wait until `text` is on the screen, after what was waited for before."""

        def there() -> bool:
            with suppress(OSError):  # nothing new, or the program has ended
                self._shown += os.read(self._screen, 65536).decode(errors="replace")
            return text in self._shown

        wait_for(there, repr(text))
        self._shown = self._shown.partition(text)[2]

    def end(self) -> int:
        try:
            return self.process.wait()
        finally:
            os.close(self._screen)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_conversation_in_a_terminal(url: str, service: EchoService) -> None:
    terminal = Terminal(url)
    terminal.shows(f"{url}, model auto")
    terminal.shows("> ")
    terminal.type("sql please\n")
    terminal.shows("sql 1.00 · routed")
    terminal.shows("> ")
    terminal.type("/model nope\n")
    terminal.shows("there is no model 'nope'")
    service.stall_after = 1
    terminal.shows("> ")
    terminal.type("cron forever\n")
    terminal.shows("cron forever")  # as typed
    terminal.shows("cron ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.shows("stopped")
    wait_for(lambda: service.closed == 2, "end of the request")
    terminal.shows("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_at_the_prompt_ends_it(url: str) -> None:
    terminal = Terminal(url)
    terminal.shows("> ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
