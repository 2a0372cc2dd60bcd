"""A chat with the running demo whose task, and so whose adapter, changes every turn.

    python -m examples.bank.chat [--url http://127.0.0.1:8000] [--rounds 2]

Every turn is sent twice, after the same turns before it: as it is served, where the history is found in the cache, and
with a `cache_salt` of its own, which finds nothing. The second is what a change of ordinary adapters costs: none of
their history is of use to another. Prints who answered, how much of the prompt was in the cache, and the times to the
first token.
"""

from __future__ import annotations

import json
import secrets
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.options import Json, Key, Url
from deployments.client.conversation import Answer, Conversation
from deployments.client.server import DEFAULT_URL, Server
from dlp_core.adapter.names import AUTO
from dlp_core.errors import DLPError

PROMPTS = Path(__file__).parent / "prompts.json"


def read_prompts() -> list[str]:
    """Those of the demo, but for one that has a mix for each of its parts."""
    return [row["prompt"] for row in json.loads(PROMPTS.read_text()) if "granularity" not in row]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn, answered twice."""

    served: Answer
    anew: Answer
    """With nothing in the cache."""

    def as_dict(self) -> dict[str, Any]:
        usage = self.served.usage
        return {
            "prompt": self.served.prompt,
            "mix": self.served.mix,
            "text": self.served.text,
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "first_token_seconds": self.served.first_token_seconds,
            "first_token_seconds_without_cache": self.anew.first_token_seconds,
            "same_answer": self.served.text == self.anew.text,
        }


def chat(server: Server, prompts: list[str]) -> list[Turn]:
    """Both answers to each prompt, in one conversation. Raises what Server raises."""
    name = secrets.token_hex(8)  # finds nothing of a chat before
    served, anew = Conversation(server, AUTO), Conversation(server, AUTO)
    turns = []
    with terminal.progress("chat", total=len(prompts)) as bar:
        for number, prompt in enumerate(prompts, 1):
            anew.turns = list(served.turns)
            without = _ask(anew, prompt, f"{name} {number}")
            turns.append(Turn(_ask(served, prompt, name), without))
            bar.update(number)
    return turns


def _ask(conversation: Conversation, prompt: str, salt: str) -> Answer:
    answer = Answer(prompt, conversation.model)
    conversation.fields = {"cache_salt": salt, "temperature": 0, "max_tokens": 96}
    with closing(conversation.ask(prompt, answer)) as pieces:
        for _ in pieces:
            pass
    return answer


def table(turns: list[Turn]) -> Table:
    """A row for each turn."""
    view = Table("prompt", "adapters", "answer", title="one chat, another task each turn")
    for name in ("prompt tokens", "in the cache", "first token, ms", "without, ms"):
        view.add_column(name, justify="right", max_width=7)
    for turn in (turn.as_dict() for turn in turns):
        mix = "\n".join(f"{part['adapter']} {part['weight']:.2f}" for part in turn["mix"]) or "base"
        times = [turn["first_token_seconds"], turn["first_token_seconds_without_cache"]]
        view.add_row(
            *(escape(text) for text in (turn["prompt"], mix, turn["text"].strip())),
            *(str(turn[count]) for count in ("prompt_tokens", "cached_tokens")),
            *("" if seconds is None else f"{1000 * seconds:.0f}" for seconds in times),
        )
    return view


def main(
    *,
    url: Url = None,
    key: Key = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the prompts are asked, in one chat.")] = 1,
    as_json: Json = False,
) -> None:
    """Hold a chat with the running demo that changes its task every turn."""
    prompts = read_prompts() * rounds
    try:
        with Server(url or DEFAULT_URL, key=key) as server:
            turns = chat(server, prompts)
    except DLPError as error:
        terminal.mistake(error.message)
        raise typer.Exit(1) from None
    if as_json:
        terminal.print_json([turn.as_dict() for turn in turns])
        return
    terminal.out.print(table(turns))
    later = [turn.as_dict() for turn in turns[1:]]
    found = sum(turn["cached_tokens"] for turn in later) / sum(turn["prompt_tokens"] for turn in later)
    served, anew = (
        median(turn[name] or 0.0 for turn in later)
        for name in ("first_token_seconds", "first_token_seconds_without_cache")
    )
    terminal.say(
        f"after the first turn: {found:.0%} of the prompts in the cache; first token after {1000 * served:.0f} ms, "
        f"without the cache {1000 * anew:.0f} ms (medians)"
    )


if __name__ == "__main__":
    typer.run(main)
