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
from dlp_core.store.disk import disk_error
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


def read_prompting(folder: Path, name: str, *, inside: Path | None = None) -> Prompting | None:
    """What the folder of adapter `name` says about prompts, or None if nothing.

    Raises AdapterRefused, naming the file, for one that cannot be read.
    """
    documents = _Documents(folder, name, inside or folder)
    if (kept := documents.get(PROMPT_FILE)) is not None:
        return _checked(name, PROMPT_FILE, kept.get("chat_template"), kept.get("added_tokens"), kept.get("pad_token"))
    config = documents.get("tokenizer_config.json") or {}
    template = documents.text("chat_template.jinja") or _default(config.get("chat_template"))
    try:
        added = dict(_added_tokens(config, documents.get("tokenizer.json"), documents.get("added_tokens.json")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AdapterRefused(
            f"adapter {name!r}: the added tokens of its tokenizer cannot be read ({type(error).__name__}: {error}); "
            f"remove {', '.join(TOKENIZER_FILES[1:])} if it was trained with the base model's"
        ) from None
    if template is None and not added:
        return None
    return _checked(name, "its tokenizer", template, added, _content(config.get("pad_token")))


def _checked(name: str, source: str, template: object, added: object, pad: object) -> Prompting:
    problem = None
    if not isinstance(template, str | None) or len(template or "") > MAX_TEMPLATE:
        problem = f"chat_template must be text of at most {MAX_TEMPLATE:,} characters"
    elif not isinstance(added, dict) or not all(
        isinstance(token, str) and type(token_id) is int for token, token_id in added.items()
    ):
        problem = "added_tokens must be token ids by token"
    elif not isinstance(pad, str | None):
        problem = "pad_token must be text"
    if problem:
        raise AdapterRefused(f"adapter {name!r}: {source}: {problem}; remove it, or save the tokenizer again")
    return Prompting(template, added, pad)  # type: ignore[arg-type]  # as checked


class _Documents:
    """Files of one folder, each read once, None where there is none."""

    def __init__(self, folder: Path, name: str, inside: Path) -> None:
        self._folder, self._name, self._inside = folder, name, inside

    def text(self, file: str) -> str | None:
        try:
            return read_regular(self._folder / file, _MAX_TOKENIZER_BYTES, inside=self._inside).decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise AdapterRefused(f"adapter {self._name!r}: {file} is not UTF-8; save the tokenizer again") from None
        except OSError as error:
            what = f"adapter {self._name!r}: {file} cannot be read"
            raise disk_error(error, what, mistake=AdapterRefused) from error

    def get(self, file: str) -> dict[str, Any] | None:
        text = self.text(file)
        if text is None:
            return None
        try:
            document = parse_json(text)
        except ValueError as error:
            raise AdapterRefused(f"adapter {self._name!r}: {file} cannot be read as JSON: {error}") from None
        if not isinstance(document, dict):
            raise AdapterRefused(f"adapter {self._name!r}: {file} must hold a JSON object")
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
