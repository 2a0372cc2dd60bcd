"""Text to tokens and back: chat templates, length limits, incremental decoding, stop strings.

The engine sees token ids only. transformers owns the templates and tokenizers owns the byte-exact
incremental decoder; what is here joins them to a stream of tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dlp_core.errors import InvalidRequest, PromptTooLong
from dlp_core.text.chat import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DECODER_CONTEXT = 6
"""Prompt tokens the decoder starts from: enough for decoders that treat the first word of a text specially."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads of a request, and where the words of its author stand in it."""

    ids: list[int]
    text: str
    """As the model reads it, the chat template's own words included."""
    ends: list[int]
    """For each token, the offset in `text` after its last character."""
    turns: tuple[tuple[int, int], ...]
    """Start and end in `text` of what each turn says; of the whole text for a bare prompt."""
    is_chat: bool
    """Whether the completion is a turn of its own. It continues a bare prompt's last sentence."""

    def token_at(self, offset: int) -> int:
        """The token with the character at `offset`, by its last character; the number of tokens at the end."""
        return bisect_right(self.ends, offset)


_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""Byte-level vocabularies write each byte as one printable character."""


class TextCodec:
    """One tokenizer and one context window. Tokenising is for one thread at a time.

    `context` is the most tokens prompt and completion may have together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, context: int) -> None:
        self._tokenizer = tokenizer
        self.context = context
        self._longest_token = max(map(len, tokenizer.get_vocab()))

    def encode_chat(self, messages: Sequence[Message]) -> Prompt:
        """The conversation in the model's chat template, up to where the assistant begins to speak.

        Raises PromptTooLong, or InvalidRequest where the template refuses the turns (jinja2 raises what it likes).
        """
        self._refuse_hopeless(sum(len(message.content) for message in messages), param="messages")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        except Exception as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from error
        ids, ends = self._tokens(text, param="messages", add_special_tokens=False)
        found, at = [], 0
        for message in messages:
            said = message.content.strip()  # as templates do
            start = text.find(said, at) if said else -1
            if start >= 0:
                at = start + len(said)
                found.append((start, at))
        return Prompt(ids, text, ends, tuple(found), is_chat=True)

    def encode(self, prompt: str) -> Prompt:
        """A bare prompt, with the special tokens the model starts a text with.

        Raises PromptTooLong, or InvalidRequest for a prompt of no tokens.
        """
        self._refuse_hopeless(len(prompt), param="prompt")
        ids, ends = self._tokens(prompt, param="prompt", add_special_tokens=True)
        return Prompt(ids, prompt, ends, ((0, len(prompt)),), is_chat=False)

    def continued(self, prompt: Prompt, text: str) -> Prompt:
        """`prompt` with `text` after it, as the beginning of its completion."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [len(prompt.text) + end for _, end in encoded.offset_mapping]
        return replace(
            prompt, ids=[*prompt.ids, *encoded.input_ids], text=prompt.text + text, ends=[*prompt.ends, *ends]
        )

    def room(self, prompt_tokens: int, wanted: int | None, *, default: int) -> int:
        """Tokens the completion may have: `wanted`, or as much of `default` as the prompt leaves room for.

        Raises PromptTooLong naming max_tokens if `wanted` does not fit.
        """
        left = self.context - prompt_tokens
        if wanted is None:
            return min(default, left)
        if wanted > left:
            raise PromptTooLong(
                f"max_tokens is {wanted}, but the context window is {self.context} tokens and the prompt takes "
                f"{prompt_tokens}; ask for at most {left}",
                param="max_tokens",
            )
        return wanted

    def stream(self, prompt: Prompt, stop: Iterable[str] = ()) -> TextStream:
        """The text of the completion that follows `prompt`, up to the first of the `stop` strings."""
        return TextStream(self._tokenizer, prompt.ids, stop)

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """One token by itself: as text, with U+FFFD for what is no whole character, and as the bytes it stands for."""
        text = self._tokenizer.decode([token_id])
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if match := _BYTE_PIECE.fullmatch(piece):  # SentencePiece falls back on these
            return text, bytes([int(match[1], 16)])
        if self._is_byte_level and all(character in _BYTES for character in piece):
            return text, bytes(_BYTES[character] for character in piece)
        return text, text.encode()

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in str(self._tokenizer.backend_tokenizer.decoder)

    def _refuse_hopeless(self, characters: int, *, param: str) -> None:
        """No token stands for more characters than the longest vocabulary entry: no need to tokenise this."""
        if characters > self.context * self._longest_token:
            raise PromptTooLong(
                f"{param} has {characters} characters, more than the context window of {self.context} tokens can hold",
                param=param,
            )

    def _tokens(self, text: str, *, param: str, add_special_tokens: bool) -> tuple[list[int], list[int]]:
        """Token ids of `text`, and the offset after each token."""
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids: list[int] = encoded.input_ids
        if not ids:
            raise InvalidRequest(f"{param} has no tokens; send some text", param=param)
        if len(ids) >= self.context:
            raise PromptTooLong(
                f"{param} has {len(ids)} tokens; the context window is {self.context} tokens and the answer needs "
                "some of them: send less text",
                param=param,
            )
        return ids, [end for _, end in encoded.offset_mapping]


class TextStream:
    """Turns the tokens of one completion into text that may be sent at once.

    Held back are bytes that do not yet make a character and characters that may yet become a stop string.
    What is left of the former at the end is half a character and is dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int], stop: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(ids=list(prompt_ids[-_DECODER_CONTEXT:]), skip_special_tokens=True)
        self._stops = StopStrings(stop)
        self._ends: list[int] = []
        self._length = self._sent = 0
        self.tokens = 0
        """Tokens read so far, those of a stop string included."""

    @property
    def released(self) -> int:
        """Tokens whose text was returned in full: those of a stop string, or held back, are not among them."""
        return bisect_right(self._ends, self._sent)

    def offset(self, token: int) -> int:
        """Where the text of the completion's token number `token` begins in the completion's."""
        return self._ends[token - 1] if token else 0

    @property
    def stopped(self) -> bool:
        """A stop string came; nothing follows what was returned."""
        return self._stops.found

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens release, without the stop string and what follows it."""
        pieces = []
        for token_id in token_ids:
            self.tokens += 1
            text = self._decoder.step(self._tokenizer, token_id) or ""
            self._length += len(text)
            self._ends.append(self._length)
            pieces.append(self._stops.push(text))
            if self._stops.found:
                break
        return self._count("".join(pieces))

    def finish(self) -> str:
        """The text held back for a stop string that did not come."""
        return self._count(self._stops.finish())

    def _count(self, sent: str) -> str:
        self._sent += len(sent)
        return sent


class StopStrings:
    """Finds the stop string that is complete first, in a text that arrives in pieces. Pure text, no tokens.

    How the text is cut into pieces makes no difference.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What of the text so far can be part of no stop string any more."""
        if self.found:
            return ""
        text = self._held + text
        hits = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if hits:
            self.found, self._held = True, ""
            return text[: min(hits)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
