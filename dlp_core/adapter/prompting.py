"""What an adapter's folder says about prompts: a chat template of its own, and tokens it adds to the vocabulary.

Trainers save the whole tokenizer beside the adapter. Most often it is the base model's, and nothing follows from it. If
not, prompts would be read differently than in training, so it is never passed over: the template renders the prompts
of requests that use this adapter alone, and an adapter with tokens that the base model's tokenizer does not have is
refused.

    chat_template.jinja     the template; before transformers 4.51 it was in tokenizer_config.json
    tokenizer.json          `added_tokens`; before, in tokenizer_config.json (`added_tokens_decoder`) or
    added_tokens.json

A bank keeps both in one small file, PROMPT_FILE.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlp_core.errors import AdapterRefused
from dlp_core.store.documents import parse_json, read_regular

PROMPT_FILE = "prompt.json"
"""In a bank: {"chat_template": str or null, "added_tokens": {token: id}, "pad_token": str or null}."""

TOKENIZER_FILES = ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "added_tokens.json")
"""In a trainer's folder."""

MAX_TEMPLATE = 256 * 1024
"""Characters of a chat template."""

_MAX_TOKENIZER_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Prompting:
    """How the prompts of one adapter are made."""

    chat_template: str | None
    added_tokens: Mapping[str, int]
    """Tokens outside the trained vocabulary, with their ids: normally the base model's own."""
    pad_token: str | None
    """It is never in a prompt, so it may be any."""

    @property
    def content(self) -> bytes:
        """As PROMPT_FILE."""
        fields = {
            "chat_template": self.chat_template,
            "added_tokens": dict(sorted(self.added_tokens.items())),
            "pad_token": self.pad_token,
        }
        return json.dumps(fields, indent=1, ensure_ascii=False).encode() + b"\n"

    def check(self, name: str, vocabulary: Mapping[str, int]) -> None:
        """Raise AdapterRefused if the adapter has tokens that the base model's `vocabulary` (token to id) has not."""
        missing = [
            token
            for token, token_id in sorted(self.added_tokens.items())
            if vocabulary.get(token) != token_id and token != self.pad_token
        ]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise AdapterRefused(
                f"adapter {name!r} adds {missing[0]!r}{others} to the vocabulary, as token "
                f"{self.added_tokens[missing[0]]}, which the base model's tokenizer does not have: prompts would be "
                "read differently than in its training; train it with the base model's tokenizer"
            )


def read_prompting(folder: Path, name: str, *, inside: Path | None = None) -> tuple[Prompting | None, tuple[str, ...]]:
    """What the folder of adapter `name` says about prompts, None if nothing, and notes on files of a tokenizer that
    cannot be read: those say nothing either.

    Raises AdapterRefused for a damaged PROMPT_FILE.
    """
    inside = inside or folder
    kept = _document(folder, PROMPT_FILE, inside, strict=name)
    if kept is not None:
        found = _valid(kept.get("chat_template"), kept.get("added_tokens"), kept.get("pad_token"))
        if found is None:
            raise AdapterRefused(f"adapter {name!r}: {PROMPT_FILE} is damaged; publish the adapter again")
        return found, ()
    notes: list[str] = []
    template = _text(folder, "chat_template.jinja", inside, notes)
    config = _document(folder, "tokenizer_config.json", inside, notes=notes) or {}
    tokenizer = _document(folder, "tokenizer.json", inside, notes=notes)
    extra = _document(folder, "added_tokens.json", inside, notes=notes)
    try:
        added = dict(_added_tokens(config, tokenizer, extra))
        template = template or _default(config.get("chat_template"))
        found = _valid(template, added, _content(config.get("pad_token")))
    except (AttributeError, KeyError, TypeError, ValueError):
        found = None
    if found is None:
        notes.append(f"its {', '.join(TOKENIZER_FILES)} are not a tokenizer's; the base model's is assumed")
    elif found.chat_template is None and not found.added_tokens:
        found = None
    return found, tuple(notes)


def read_vocabulary(base_model: Path) -> Mapping[str, int] | None:
    """Token to id of the tokenizer in a base model's folder; None if it has none of the fast kind."""
    from tokenizers import Tokenizer

    path = base_model / "tokenizer.json"
    return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True) if path.is_file() else None


def _valid(template: object, added: object, pad: object) -> Prompting | None:
    """None unless these are of the right types, and the template of a sensible length."""
    if not isinstance(template, str | None) or len(template or "") > MAX_TEMPLATE or not isinstance(pad, str | None):
        return None
    if not isinstance(added, dict):
        return None
    if not all(isinstance(token, str) and type(token_id) is int for token, token_id in added.items()):
        return None
    return Prompting(template, added, pad)


def _text(folder: Path, file: str, inside: Path, notes: list[str]) -> object:
    try:
        return read_regular(folder / file, _MAX_TOKENIZER_BYTES, inside=inside).decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"{file} cannot be read ({error}); the base model's tokenizer is assumed")
        return None


def _document(
    folder: Path, file: str, inside: Path, *, notes: list[str] | None = None, strict: str | None = None
) -> dict[str, Any] | None:
    """A JSON object, None if there is none. What cannot be read is noted, or refused for the adapter `strict`."""
    problems: list[str] = []
    text = _text(folder, file, inside, problems)
    document = None
    if isinstance(text, str):
        try:
            document = parse_json(text)
        except ValueError as error:
            problems.append(f"{file} cannot be read ({error}); the base model's tokenizer is assumed")
        else:
            if not isinstance(document, dict):
                problems.append(f"{file} is not a JSON object; the base model's tokenizer is assumed")
                document = None
    if problems and strict is not None:
        raise AdapterRefused(f"adapter {strict!r}: {file} is damaged; publish the adapter again")
    if notes is not None:
        notes += problems
    return document


def _default(template: object) -> object:
    """Of several named templates, the one for chats without tools."""
    if not isinstance(template, list):
        return template
    named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    return named.get("default")


def _added_tokens(*documents: Mapping[str, Any] | None) -> Iterator[tuple[str, int]]:
    config, tokenizer, added = documents
    for token in (tokenizer or {}).get("added_tokens") or ():
        yield token["content"], token["id"]
    for token_id, token in ((config or {}).get("added_tokens_decoder") or {}).items():
        yield token["content"], int(token_id)
    yield from (added or {}).items()


def _content(token: object) -> object:
    """A special token as tokenizer_config.json has it: text, or an object with its text."""
    return token.get("content") if isinstance(token, dict) else token
