"""Tokens to text as they come, with the text that decoding all of them at once gives.

A tokenizer's decoder looks at several tokens: bytes of one character may be spread over them, spaces depend on what is
before. So a window of the last tokens is decoded again with each new one, and what it adds is the new text. Two kinds
of vocabularies hold text back:

    byte level (GPT-2, Llama 3, Qwen)    a character that is not complete yet
    byte fallback (Llama 2, Gemma)       all of a run of byte tokens: one byte too many makes each of them U+FFFD

U+FFFD is held back too until other text follows: at the end of a text it is most likely a character cut in two.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WINDOW = 6
"""Tokens that the decoder sees before the new ones: more than a character has bytes."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""Byte-level vocabularies represent each byte by one printable character."""

UNKNOWN = "\ufffd"


class Pieces:
    """What single tokens of a tokenizer stand for. A token id that the tokenizer does not have stands for nothing: the
    vocabularies of models are often padded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """All of `ids` as text, special tokens included."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def is_text(self, token_id: int, *, special: bool = False) -> bool:
        """Whether a token is part of the text: it exists and, unless special tokens count too, is not one of them."""
        return (special or token_id not in self._special) and self._backend.id_to_token(token_id) is not None

    def byte(self, token_id: int) -> bytes | None:
        """The byte of a byte-fallback token; None for any other."""
        match = _BYTE_PIECE.fullmatch(self._backend.id_to_token(token_id) or "") if self._falls_back else None
        return None if match is None else bytes([int(match[1], 16)])

    def raw(self, token_id: int) -> bytes | None:
        """The bytes of a token; None where the tokenizer has no such notion."""
        piece = self._backend.id_to_token(token_id) or ""
        if self._is_byte_level and all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        return self.byte(token_id)

    def text(self, token_id: int) -> tuple[str, bytes]:
        """One token within a text: with U+FFFD for incomplete characters, and as the bytes it stands for."""
        if self._backend.id_to_token(token_id) is None:
            return "", b""
        raw = self.raw(token_id)
        if raw is not None:
            return raw.decode(errors="replace"), raw
        text = self.decode([*self._before, token_id])[len(self.decode(self._before)) :]
        return text, text.encode()

    @cached_property
    def _before(self) -> list[int]:
        """An ordinary word: decoders drop the space of the first word of a text."""
        ids: list[int] = self._backend.encode("a", add_special_tokens=False).ids
        return ids

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def _falls_back(self) -> bool:
        return "ByteFallback" in str(self._backend.decoder)

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in str(self._backend.decoder)


class IncrementalDecoder:
    """The text of tokens that follow `before`, piece by piece, with or without special tokens."""

    def __init__(self, pieces: Pieces, before: Sequence[int] = (), *, special_tokens: bool = False) -> None:
        self._pieces = pieces
        self._special_tokens = special_tokens
        window: list[int] = []
        for token_id in reversed(before):
            if len(window) >= _WINDOW and (pieces.byte(window[-1]) is None or pieces.byte(token_id) is None):
                break
            if pieces.is_text(token_id):
                window.append(token_id)
        self._window = window[::-1]
        text = pieces.decode(self._window)
        whole = not self._incomplete() and not self._has_broken_run()
        self._released = len(text if whole else text.rstrip(UNKNOWN))
        self._pending = ""
        """U+FFFD that was released and not returned."""
        self.held = 0
        """Tokens since the last text that was returned, which the text of the next tokens may complete."""

    def push(self, token_id: int) -> str:
        """The text that this token releases, often its own."""
        if not self._pieces.is_text(token_id, special=self._special_tokens):
            return ""
        self._window.append(token_id)
        self.held += 1
        if self._pieces.byte(token_id) is not None:
            return ""
        incomplete = self._incomplete()
        text = self._pending + self._release(hold=incomplete)
        returned = text.rstrip(UNKNOWN)
        self._pending = text[len(returned) :]
        if not incomplete and not self._pending:
            self.held = 0
        return returned

    def finish(self) -> str:
        """The text still held back, without incomplete characters at the end."""
        self.held = 0
        run = self._run()
        if not run:
            return ""
        try:
            complete = codecs.getincrementaldecoder("utf-8")().decode(b"".join(run))
        except UnicodeDecodeError:
            return ""
        del self._window[len(self._window) - len(run) + len(complete.encode()) :]
        return self._pending + self._release(hold=False) if complete else ""

    def _release(self, *, hold: bool) -> str:
        """What the window has beyond what was returned; `hold`: except for U+FFFD at its end."""
        text = self._pieces.decode(self._window)
        end = len(text) - (hold and text.endswith(UNKNOWN))
        new = text[self._released : end]
        self._released = max(end, self._released)
        if len(self._window) > 2 * _WINDOW:
            self._shorten(hold=hold)
        return new

    def _shorten(self, *, hold: bool) -> None:
        """Forget the tokens before the last few. A run of bytes stays whole or goes."""
        start = len(self._window) - _WINDOW
        while start < len(self._window) and self._pieces.byte(self._window[start]) is not None:
            start += 1
        del self._window[:start]
        text = self._pieces.decode(self._window)
        self._released = len(text) - (hold and text.endswith(UNKNOWN))

    def _incomplete(self) -> bool:
        """Whether the last tokens, of a byte-level vocabulary, end within a character."""
        data = b"".join(self._pieces.raw(token_id) or b" " for token_id in self._window[-_WINDOW:])
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(data)
        return bool(decoder.getstate()[0]) and not self._run()

    def _run(self) -> list[bytes]:
        """The run of byte-fallback tokens at the end of the window."""
        run: list[bytes] = []
        for token_id in reversed(self._window):
            byte = self._pieces.byte(token_id)
            if byte is None:
                break
            run.append(byte)
        return run[::-1]

    def _has_broken_run(self) -> bool:
        try:
            b"".join(self._run()).decode()
        except UnicodeDecodeError:
            return True
        return False
