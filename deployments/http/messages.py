"""The messages of a chat: what each role says, calls of tools and their results."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from deployments.http.fields import Neutral, StrictBody
from dlp_core.text.chat import Message, Role, joined
from dlp_core.text.tools import ToolCall


def _text_of(content: object) -> object:
    """Join OpenAI's list of text parts into one string; other values are left to the type check."""
    if not isinstance(content, list):
        return content
    try:
        return joined(content)
    except ValueError as error:
        raise PydanticCustomError("content_part", "{problem}", {"problem": str(error)}) from None


class CalledFunction(StrictBody):
    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    arguments: str = ""


class MessageCall(StrictBody):
    """A call in an assistant's message."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def ignored(self) -> tuple[str, ...]:
        return (*(self.model_extra or ()), *(f"function.{key}" for key in self.function.model_extra or ()))

    def call(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments)


class ChatMessage(StrictBody):
    model_config = ConfigDict(extra="allow")

    neutral: ClassVar[Neutral] = {
        "refusal": (),
        "annotations": ([],),
        "audio": (),
        "function_call": (),
    }  # OpenAI's client sends these when a response is passed back as a turn

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_text_of)] = None
    name: str | None = None  # of the author, which no template reads, or of the function that a tool is
    tool_calls: list[MessageCall] = Field(default_factory=list)
    tool_call_id: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise _of_another_role("tool_calls", "an assistant")
        if self.tool_call_id is not None and self.role != "tool":
            raise _of_another_role("tool_call_id", "a tool")
        if self.content is None and not self.tool_calls:
            raise _missing("content")
        if self.tool_call_id is None and self.role == "tool":
            raise _missing("tool_call_id")
        return self

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields that are in no API this server knows."""
        in_calls = (f"tool_calls.{number}.{key}" for number, call in enumerate(self.tool_calls) for key in call.ignored)
        return (*(self.model_extra or ()), *in_calls)

    def message(self) -> Message:
        role: Role = "system" if self.role == "developer" else self.role
        calls = tuple(call.call() for call in self.tool_calls)
        return Message(role, self.content or "", calls, self.tool_call_id, self.name if role == "tool" else None)


def _missing(field: str) -> PydanticCustomError:
    return PydanticCustomError("missing", "Field required", {"field": field})


def _of_another_role(field: str, role: str) -> PydanticCustomError:
    return PydanticCustomError("role", "only {role} has it", {"field": field, "role": role})
