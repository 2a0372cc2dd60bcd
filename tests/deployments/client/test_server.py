"""What a user hears of a server that is not there, is another one, or refuses. The servers are real."""

from __future__ import annotations

import pickle
from contextlib import closing

import pytest

from deployments.client.conversation import Answer, Conversation
from deployments.client.server import Refused, Server, Unreachable
from dlp_core.errors import EngineFailed, InvalidRequest
from dlp_core.ports import free_port
from tests.support.echo import EchoService
from tests.support.echo_server import echo_server
from tests.support.http_server import QuietHandler, serving
from tests.support.waiting import wait_for


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_urls_are_taken_as_people_paste_them(end: str) -> None:
    with echo_server(EchoService()) as url:
        for start in (url, url.removeprefix("http://")):
            with Server(start + end) as server:
                assert server.json("/health") == {"status": "ok", "bank": "b1"}
                assert server.url == url


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://[::1", "http://host:port"])
def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--url"):
        Server(url)


def test_no_server_is_one_line_with_what_to_do() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Server(url) as server, pytest.raises(Unreachable, match=rf"no server answers at {url}.*dlp serve.*--url"):
        server.json("/health")


@pytest.mark.parametrize(
    ("status", "body"), [(404, b"<html>"), (500, b'{"error": "text"}'), (200, b"<html>"), (200, b"[]")]
)
def test_another_server_is_told_apart(status: int, body: bytes) -> None:
    class Other(QuietHandler):
        def answer(self, _: bytes) -> None:
            self.reply(status, body)

    with serving(Other) as address, Server(address) as server, pytest.raises(Unreachable, match="as dlp does"):
        server.json("/v1/models")


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with echo_server(EchoService()) as url, Server(url) as server:
        assert server.json("/health")["status"] == "ok"


def test_an_error_of_the_server_keeps_its_words() -> None:
    with echo_server(EchoService()) as url, Server(url) as server, pytest.raises(Refused, match="nope") as refused:
        server.json("/v1/models/nope")
    found = pickle.loads(pickle.dumps(refused.value))
    assert (found.status, found.code, found.message) == (404, "model_not_found", refused.value.message)


def test_an_answer_that_breaks_off_is_said() -> None:
    class Breaks(QuietHandler):
        def answer(self, _: bytes) -> None:
            self.reply(200, b'data: {"choices": []}\n\n')

    with serving(Breaks) as address, Server(address) as server, pytest.raises(Unreachable, match="broke off"):
        list(server.events("/v1/chat/completions", {}))


# --- conversations


def ask(conversation: Conversation, prompt: str) -> Answer:
    answer = Answer(prompt, conversation.model)
    assert "".join(conversation.ask(prompt, answer)) == answer.text
    return answer


def test_an_answer_says_who_gave_it() -> None:
    with echo_server(EchoService()) as url, Server(url) as server:
        answer = ask(Conversation(server, "auto"), "sql cron sql")
    assert (answer.text, answer.finish_reason) == ("sql cron sql ", "stop")
    assert [part["adapter"] for part in answer.mix] == ["sql", "cron"]
    assert sum(part["weight"] for part in answer.mix) == pytest.approx(1)
    assert (answer.dlp["reason"], answer.dlp["bank"]) == ("routed", "b1")
    assert answer.usage["completion_tokens"] == 3
    assert answer.first_token_seconds is not None
    assert 0 < answer.first_token_seconds <= answer.seconds


def texts_of(service: EchoService) -> list[list[str]]:
    return [[turn.content for turn in request.source] for request in service.asked]  # type: ignore[union-attr]


def test_what_was_said_before_goes_along_until_it_is_cleared() -> None:
    service = EchoService()
    with echo_server(service) as url, Server(url) as server:
        conversation = Conversation(server, "sql")
        ask(conversation, "one")
        ask(conversation, "two")
        conversation.clear()
        ask(conversation, "three")
    assert texts_of(service) == [["one"], ["one", "one ", "two"], ["three"]]


@pytest.mark.parametrize("after", [0, 1])
def test_a_turn_that_fails_is_forgotten(after: int) -> None:
    service = EchoService(fail=EngineFailed("the replica is gone"), fail_after=after)
    with echo_server(service) as url, Server(url) as server:
        conversation = Conversation(server, "sql")
        with pytest.raises(Refused, match="the replica is gone"):
            ask(conversation, "one two")
        service.fail = None
        ask(conversation, "three")
    assert texts_of(service)[-1] == ["three"]


def test_a_stopped_answer_ends_its_request_and_is_forgotten() -> None:
    service = EchoService(stall_after=1)
    with echo_server(service) as url, Server(url) as server:
        conversation = Conversation(server, "sql")
        with closing(conversation.ask("one two", Answer("one two", "sql"))) as pieces:
            assert next(pieces) == "one "
        wait_for(lambda: service.closed == 1, "end of the request")
        service.stall_after = None
        ask(conversation, "three")
    assert texts_of(service)[-1] == ["three"]
