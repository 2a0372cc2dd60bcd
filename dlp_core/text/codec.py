"""Text to tokens and back: chat templates, length limits, incremental decoding, stop strings.

The engine sees only token ids. transformers provides the templates and tokenizers the byte-exact incremental decoder;
this file applies them to a stream of tokens.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from dlp_core.errors import InvalidRequest, PromptTooLong
from dlp_core.text.chat import Message
from dlp_core.text.decoding import IncrementalDecoder, Pieces
from dlp_core.text.foreign import ForeignTemplates
from dlp_core.text.template import ChatTemplate, Schemas, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_TEMPLATES = 256
"""Chat templates that are kept ready."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text that the model reads for a request, and where its author's words are in it."""

    ids: list[int]
    text: str
    """As the model reads it, including what the chat template adds."""
    ends: list[int]
    """Each token's end offset in `text`."""
    turns: tuple[tuple[int, int], ...]
    """Start and end in `text` of each turn's content; of the whole text for a bare prompt."""
    is_chat: bool
    """Whether the completion is a turn of its own. After a bare prompt, it continues the last sentence."""
    last_turn: int = 0
    """Where in `text` the last user turn begins, with what the chat template writes before its words. 0 for a bare
    prompt, and for a chat without a user turn."""

    def token_at(self, offset: int) -> int:
        """The index of the first token that ends after `offset`; the number of tokens at the end of the text."""
        return bisect_right(self.ends, offset)


class TextCodec:
    """One tokenizer and one context window. Only one thread may tokenise at a time.

    `context` is the maximum number of tokens of prompt and completion together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, context: int) -> None:
        self._tokenizer = tokenizer
        self.context = context
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._foreign = ForeignTemplates()
        self._template = lru_cache(_TEMPLATES)(self._make_template)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Schemas | None = None,
        chat_template: str | None = None,
        add_special_tokens: bool = False,
    ) -> Prompt:
        """Encode a conversation that offers `tools` with the model's chat template, or with an adapter's
        `chat_template`, up to where the assistant's turn begins.

        `add_special_tokens` puts the special tokens of a bare text around what the template writes, which normally
        brings its own. Raises PromptTooLong, InvalidRequest if the template rejects the turns or has no place for
        tools, or AdapterRefused if an adapter's takes too much time or memory.
        """
        self._reject_oversized(sum(map(_size, messages)), param="messages")
        if tools:
            self._reject_oversized(len(json.dumps(list(tools), ensure_ascii=False)), param="tools")
        template = self._template(chat_template)
        text = template.render(messages, tools)
        ids, ends = self._tokens(text, param="messages", add_special_tokens=add_special_tokens)
        spans, end, last_words = [], len(text), None
        for message in reversed(messages):  # before the first may be tools, with any words
            content = message.content.strip()  # as templates do
            start = text.rfind(content, 0, end) if content else -1
            if start >= 0:
                spans.append((start, start + len(content)))
                end = start
                if message.role == "user" and last_words is None:
                    last_words = len(spans) - 1
        last_turn = 0
        if last_words is not None:
            words = spans[last_words][0]
            before = spans[last_words + 1][1] if last_words + 1 < len(spans) else 0
            opening = text.rfind(template.user_opening, before, words) if template.user_opening else -1
            last_turn = words if opening < 0 else opening
        return Prompt(ids, text, ends, tuple(reversed(spans)), is_chat=True, last_turn=last_turn)

    def user_opening(self) -> list[int]:
        """The tokens that begin a user's turn whatever its words are, such as those of `<|im_start|>user`; none if the
        model's chat template writes nothing there."""
        opening = self._template(None).user_opening.rstrip()  # words may join with the space before them
        return list(self._tokenizer.encode(opening, add_special_tokens=False)) if opening else []

    def encode(self, prompt: str, *, add_special_tokens: bool = True) -> Prompt:
        """Encode a bare prompt, with the special tokens that the model expects at the start of a text. One that the
        prompt itself begins with is not added again.

        Raises PromptTooLong, or InvalidRequest for a prompt without tokens.
        """
        self._reject_oversized(len(prompt), param="prompt")
        ids, ends = self._tokens(prompt, param="prompt", add_special_tokens=add_special_tokens)
        return Prompt(ids, prompt, ends, ((0, len(prompt)),), is_chat=False)

    def decode_prompt(self, ids: Sequence[int]) -> Prompt:
        """A bare prompt that comes as token ids. Raises PromptTooLong, or InvalidRequest if there are none."""
        ids = self._checked(list(ids), param="prompt")
        decoder = IncrementalDecoder(self._pieces)
        texts = [decoder.push(token_id) for token_id in ids]
        text = "".join([*texts, decoder.finish()])
        return Prompt(ids, text, list(accumulate(map(len, texts))), ((0, len(text)),), is_chat=False)

    def continued(self, prompt: Prompt, text: str) -> Prompt:
        """Append `text` to `prompt`, as the beginning of its completion."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [len(prompt.text) + end for _, end in encoded.offset_mapping]
        return replace(
            prompt, ids=[*prompt.ids, *encoded.input_ids], text=prompt.text + text, ends=[*prompt.ends, *ends]
        )

    def room(self, prompt_tokens: int, requested: int | None, *, default: int) -> int:
        """Tokens the completion may have: `requested`, or `default`, limited to the room that the prompt leaves.

        Raises PromptTooLong, naming max_tokens, if `requested` does not fit.
        """
        available = self.context - prompt_tokens
        if requested is None:
            return min(default, available)
        if requested > available:
            raise PromptTooLong(
                f"{self._limit} However, you requested {prompt_tokens + requested} tokens ({prompt_tokens} in the "
                f"prompt, {requested} in the completion); max_tokens may be at most {available}: the prompt is too "
                "long for more",
                param="max_tokens",
            )
        return requested

    def stream(self, prompt: Prompt, stop: Iterable[str] = (), *, special_tokens: bool = False) -> TextStream:
        """The text of the completion that follows `prompt`, with or without special tokens, up to the first of the
        `stop` strings."""
        return TextStream(IncrementalDecoder(self._pieces, prompt.ids, special_tokens=special_tokens), stop)

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """One token within a text: with U+FFFD for incomplete characters, and as the bytes it stands for."""
        return self._pieces.text(token_id)

    def _make_template(self, text: str | None) -> ChatTemplate:
        own = self._tokenizer.chat_template
        if text is None or (isinstance(own, str) and text.strip() == own.strip()):
            return ChatTemplate(self._apply_template)
        special = self._tokenizer.special_tokens_map
        return ChatTemplate(
            lambda turns, tools, answer: self._foreign.render(text, turns, special, tools, answer=answer)
        )

    def _apply_template(self, turns: list[Turn], tools: Schemas | None, answer: bool) -> str:
        functions = None if tools is None else [dict(tool) for tool in tools]
        return str(
            self._tokenizer.apply_chat_template(turns, tools=functions, add_generation_prompt=answer, tokenize=False)
        )

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self._tokenizer)

    @property
    def _limit(self) -> str:
        """In the words by which LiteLLM recognises this error; LangChain looks for "prompt is too long"."""
        return f"This model's maximum context length is {self.context} tokens."

    def _reject_oversized(self, characters: int, *, param: str) -> None:
        """Reject a text that is too long for the context window even in the longest tokens, without tokenising it."""
        if characters > self.context * self._longest_token:
            raise PromptTooLong(
                f"{self._limit} However, the prompt is too long: {param} has {characters} characters, more than that "
                "many tokens hold; send less text",
                param=param,
            )

    def _tokens(self, text: str, *, param: str, add_special_tokens: bool) -> tuple[list[int], list[int]]:
        """Token ids of `text`, and each token's end offset."""
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids, ends = encoded.input_ids, [end for _, end in encoded.offset_mapping]
        if add_special_tokens and len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:
            ids, ends = ids[1:], ends[1:]
        return self._checked(ids, param=param), ends

    def _checked(self, ids: list[int], *, param: str) -> list[int]:
        """`ids`, if they are a prompt's length."""
        if not ids:
            raise InvalidRequest(f"{param} has no tokens; send some text", param=param)
        if len(ids) >= self.context:
            raise PromptTooLong(
                f"{self._limit} However, the prompt is too long: {param} has {len(ids)} tokens, and the answer needs "
                "some too; send less text",
                param=param,
            )
        return ids


def _size(message: Message) -> int:
    """Characters of a message's content and of its calls' arguments."""
    return len(message.content) + sum(len(call.arguments) for call in message.tool_calls)


class TextStream:
    """Turns the tokens of one completion into text that can be sent immediately.

    It holds back bytes that are not yet a complete character and characters that may become a stop string. An
    incomplete character at the end is dropped.
    """

    def __init__(self, decoder: IncrementalDecoder, stop: Iterable[str] = ()) -> None:
        self._decoder = decoder
        self._stops = StopStrings(stop)
        self._ends: list[int] = []
        self._length = self._sent = 0
        self.tokens = 0
        """Tokens read so far, including those of a stop string."""

    @property
    def released(self) -> int:
        """Tokens whose text was returned in full, which excludes stop strings and text held back."""
        return min(bisect_right(self._ends, self._sent), len(self._ends) - self._decoder.held)

    def offset(self, token: int) -> int:
        """Offset in the completion's text at which the text of its token number `token` begins."""
        return self._ends[token - 1] if token else 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: no text follows what was returned."""
        return self._stops.found

    def push(self, token_ids: Iterable[int]) -> str:
        """Read tokens and return the text they release, up to but without a stop string."""
        pieces = []
        for token_id in token_ids:
            self.tokens += 1
            text = self._decoder.push(token_id)
            self._length += len(text)
            self._ends.append(self._length)
            pieces.append(self._stops.push(text))
            if self._stops.found:
                break
        return self._count("".join(pieces))

    def finish(self) -> str:
        """Return the text held back: of characters that may not have been complete, and for a stop string that did not
        come."""
        if self._stops.found:
            return ""
        rest = self._decoder.finish()
        return self._count(self._stops.push(rest) + self._stops.finish())

    def _count(self, sent: str) -> str:
        self._sent += len(sent)
        return sent


class StopStrings:
    """Finds the stop string that is completed first, in a text that arrives in pieces. Works on text, not tokens.

    How the text is split into pieces makes no difference.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Read text and return what can no longer be part of a stop string."""
        if self.found:
            return ""
        text = self._held + text
        hits = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
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
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
