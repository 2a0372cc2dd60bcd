"""`dlp chat`: talk to a running server in the terminal, or pipe prompts through it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deployments import terminal
from deployments.cli.options import Json, Key, Url
from dlp_core.adapter.names import AUTO
from dlp_core.errors import DLPError, InvalidRequest

if TYPE_CHECKING:
    from deployments.client.conversation import Answer, Conversation
    from deployments.client.server import Server

PROMPT = "> "
HELP = "/model NAME: another model; /model: which there are; /clear: forget what was said; /quit or Ctrl-D: leave"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline: a model may not steer the terminal


def chat(
    *,
    url: Url = None,
    key: Key = None,
    model: Annotated[
        str, typer.Option(help="auto: the router chooses adapters; else an adapter or the base model.")
    ] = AUTO,
    json: Json = False,
) -> None:
    """Talk to a running server. Each answer says which adapters gave it, with which weights.

    Each line is a turn of one conversation. Piped into it, the lines of a file are answered one after another."""
    from deployments.client.conversation import Conversation
    from deployments.client.server import DEFAULT_URL, Server

    with Server(url or DEFAULT_URL, key=key) as server:
        models = _models(server)
        _check_model(model, models)
        session = Session(server, Conversation(server, model), json=json)
        if not sys.stdin.isatty():
            session.pipe(sys.stdin)
            return
        if not json:
            terminal.say(f"[bold]{escape(server.url)}[/], model [bold]{escape(model)}[/]\n[dim]{HELP}[/]")
        session.type()


class Session:
    """What is done with each line."""

    def __init__(self, server: Server, conversation: Conversation, *, json: bool) -> None:
        self._server = server
        self._conversation = conversation
        self._json = json

    def type(self) -> None:
        """Answer what is typed until /quit, Ctrl-D, or Ctrl-C where no answer is under way."""
        for line in _typed():
            try:
                if not self._line(line):
                    return
            except DLPError as error:
                terminal.mistake(error.message)

    def pipe(self, lines: Iterator[str]) -> None:
        """Answer each line. Exits with 1 at the end if a line got no answer; raises Unreachable at once."""
        from deployments.client.server import Unreachable

        failed = False
        for line in lines:
            try:
                if not self._line(line):
                    break
            except Unreachable:
                raise
            except DLPError as error:
                failed = True
                terminal.mistake(error.message)
        if failed:
            raise typer.Exit(1)

    def _line(self, line: str) -> bool:
        """Whether to go on."""
        line = line.strip()
        command, _, argument = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/clear":
            self._conversation.clear()
        elif command == "/model":
            self._switch(argument.strip())
        elif command.startswith("/") and "/" not in command[1:]:
            raise InvalidRequest(f"{command} is not a command. {HELP}")
        elif line:
            self._ask(line)
        return True

    def _switch(self, name: str) -> None:
        models = _models(self._server)
        if not name:
            terminal.say(escape(", ".join(models)))
            return
        _check_model(name, models)
        self._conversation.model = name

    def _ask(self, prompt: str) -> None:
        from deployments.client.conversation import Answer

        answer = Answer(prompt, self._conversation.model)
        try:
            with closing(self._conversation.ask(prompt, answer)) as pieces:
                for piece in pieces:
                    if not self._json:
                        terminal.out.out(_CONTROL.sub("", piece), end="", highlight=False)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            terminal.say("\n[dim]stopped; this turn is forgotten[/]")
            return
        except DLPError:
            if answer.text and not self._json:
                terminal.say("")
            raise
        if self._json:
            terminal.print_json(_as_dict(answer))
        else:
            terminal.say(f"\n[dim]{escape(_caption(answer))}[/]")


def _typed() -> Iterator[str]:
    """What the user types, line by line, up to Ctrl-D or Ctrl-C."""
    import readline  # noqa: F401  # gives input() a history and a cursor

    while True:
        try:
            yield input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            terminal.say("")
            return


def _models(server: Server) -> list[str]:
    return [str(model["id"]) for model in server.json("/v1/models").get("data", ())]


def _check_model(name: str, models: list[str]) -> None:
    if name not in models and name.rpartition(":")[2] not in models:
        raise InvalidRequest(f"there is no model {name!r}; there are {', '.join(models)}")


def _caption(answer: Answer) -> str:
    """One line below an answer: who gave it, and why."""
    mix = " + ".join(f"{part['adapter']} {part['weight']:.2f}" for part in answer.mix) or "base model"
    confidence, written = answer.dlp.get("confidence"), answer.usage.get("completion_tokens", 0)
    tokens = "1 token" if written == 1 else f"{written} tokens"
    why = str(answer.dlp.get("reason", "")).replace("_", " ")
    if confidence is not None:
        why += f", confidence {confidence:.2f}"
    cut = " (cut off)" if answer.finish_reason == "length" else ""
    return f"  {mix} · {why} · {tokens} in {answer.seconds:.1f} s{cut}"


def _as_dict(answer: Answer) -> dict[str, Any]:
    return {
        "prompt": answer.prompt,
        "model": answer.model,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "mix": answer.mix,
        "confidence": answer.dlp.get("confidence"),
        "reason": answer.dlp.get("reason"),
        "bank": answer.dlp.get("bank"),
        "usage": answer.usage,
        "first_token_seconds": answer.first_token_seconds,
        "seconds": answer.seconds,
    }
