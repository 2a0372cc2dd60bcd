"""The demo's chat, in front of a real server that echoes: what it sends, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from examples.bank import chat
from tests.support.echo import EchoService
from tests.support.echo_server import echo_server

app = typer.Typer()
app.command()(chat.main)


@pytest.fixture
def service() -> EchoService:
    return EchoService()


@pytest.fixture
def url(service: EchoService) -> Iterator[str]:
    with echo_server(service) as found:
        yield found


def test_each_turn_is_asked_with_and_without_the_cache_after_the_same_turns(url: str, service: EchoService) -> None:
    result = CliRunner().invoke(app, ["--url", url, "--json"], catch_exceptions=False)
    turns = json.loads(result.stdout)
    prompts = chat.read_prompts()
    assert [turn["prompt"] for turn in turns] == prompts
    assert [turn["text"] for turn in turns] == [f"{prompt} " for prompt in prompts]
    assert all(turn["same_answer"] and turn["cached_tokens"] == 0 for turn in turns)
    without, served = service.asked[::2], service.asked[1::2]
    assert [request.source for request in without] == [request.source for request in served]
    assert len(served[-1].source) == 2 * len(prompts) - 1
    assert len({request.salt for request in served}) == 1
    assert len({request.salt for request in service.asked}) == 1 + len(prompts)
    again = CliRunner().invoke(app, ["--url", url, "--json"], catch_exceptions=False)
    assert again.exit_code == 0
    assert service.asked[-1].salt != served[-1].salt, "a chat before leaves nothing to find"


def test_it_is_told_in_a_table_with_the_medians_below(url: str) -> None:
    result = CliRunner().invoke(app, ["--url", url, "--rounds", "2"], catch_exceptions=False)
    assert "one chat, another task each turn" in result.stdout
    assert "after the first turn: 0% of the prompts in the cache; first token after" in result.stdout


def test_without_a_server_it_says_so_in_one_line() -> None:
    result = CliRunner().invoke(app, ["--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert result.stdout == ""
