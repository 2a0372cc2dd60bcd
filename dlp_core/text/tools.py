"""Functions that an answer may call, the calls in it, and what reads them from a model's text. No torch, no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Choice = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Tools:
    """What a conversation offers, and whether its answer must call something."""

    schemas: tuple[Mapping[str, Any], ...]
    """As chat templates read them: {"type": "function", "function": {"name", "description", "parameters"}}."""
    choice: Choice = "auto"
    only: str | None = None
    """The function that is called; `choice` is "required" then."""
    parallel: bool = True
    """Whether an answer may have several calls."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call, complete."""

    id: str
    name: str
    arguments: str
    """A JSON object, unless the model wrote something else."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The next part of a call. The first part of each has `id` and `name`; calls begin in the order of `index`."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class Read(NamedTuple):
    """What a piece of an answer turned out to be."""

    text: str = ""
    calls: tuple[CallDelta, ...] = ()


class CallReader(Protocol):
    """Reads one answer, from its first piece to its last."""

    @property
    def special_tokens(self) -> bool:
        """Whether the text must have the tokenizer's special tokens, because some of them mark calls."""

    @property
    def schema(self) -> str | None:
        """The JSON schema that the answer must follow, as JSON: then all of it is calls."""

    def push(self, text: str, token_ids: Sequence[int]) -> Read:
        """Read the text that these tokens have released."""

    def finish(self) -> Read:
        """What was held back until the end."""


class CallReaders(Protocol):
    """Makes the readers of one model."""

    def reader(self, tools: Tools, prompt_ids: Sequence[int], *, stream: bool) -> CallReader:
        """The reader of one answer to a prompt. Without `stream`, everything comes at its end. Raises InvalidRequest
        for schemas that cannot be followed."""
